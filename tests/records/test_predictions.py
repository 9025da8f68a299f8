"""The prediction schema: what is written is read back, a kill loses one line, the rest is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_files import make, write

from revisionllm.errors import UserError
from revisionllm.grounding.levels import Cost, Moment, WindowAnswer
from revisionllm.records.predictions import (
    Prediction,
    PredictionWriter,
    merge_shards,
    read_predictions,
    scan_predictions,
)

number = st.floats(0, 1e5, allow_nan=False)
moments = st.builds(
    lambda start, length, score, parts: Moment(start, start + length, score, parts, "dense"),
    number,
    number,
    st.floats(0, 1),
    st.dictionaries(st.sampled_from(["presence", "entropy", "cosine"]), st.floats(0, 9)),
)
windows = st.builds(
    WindowAnswer,
    st.integers(0, 99),
    number,
    number,
    st.text(),
    spans=st.just(()),
    presence=st.none() | number,
)
predictions = st.builds(
    Prediction,
    qid=st.text(min_size=1),
    vid=st.text(min_size=1),
    query=st.text(),
    duration_s=number,
    found=st.booleans(),
    moments=st.lists(moments, max_size=3),
    cost=st.builds(Cost, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), number),
    status=st.sampled_from(["ok", "failed"]),
    reason=st.none() | st.text(),
    run=st.text(),
    gt=st.none() | st.just([]) | st.just([(1.0, 2.5), (3.0, 3.0)]),
    windows=st.none() | st.lists(windows, max_size=2),
)


@given(predictions)
def test_json_round_trip(prediction):
    assert Prediction.from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


def test_the_record_has_the_keys_of_the_contract():
    record = make("1", [(1, 2)]).to_json()
    assert list(record) == [
        *("schema", "qid", "vid", "query", "duration_s", "found", "moments", "cost"),
        *("status", "reason", "run", "gt"),
    ]
    assert list(record["moments"][0]) == ["start_s", "end_s", "score", "parts", "level"]
    assert list(record["cost"]) == ["dense_windows", "segments", "llm_tokens", "seconds"]
    assert "windows" in make("1", windows=[(0, 9)]).to_json()


def test_a_torn_last_line_is_dropped_and_its_query_done_again(tmp_path):
    path = write(tmp_path / "p.jsonl", make("1"), make("2"))
    path.write_bytes(path.read_bytes()[:-9])
    assert [p.qid for p in read_predictions(path)] == ["1"]
    with PredictionWriter(path) as writer:
        assert writer.done == {"1"} and writer.dropped_torn_line
        writer.write(make("2"))
    assert [p.qid for p in read_predictions(path)] == ["1", "2"]


@pytest.mark.parametrize("at", range(0, 400, 23))
def test_a_kill_at_any_byte_can_be_resumed(tmp_path, at):
    path = write(tmp_path / "p.jsonl", make("1"), make("2", [(1, 2)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:at])
    with PredictionWriter(path) as writer:
        for qid, spans in (("1", []), ("2", [(1, 2)])):
            if qid not in writer.done:
                writer.write(make(qid, spans))
    assert path.read_bytes() == whole


def test_other_bad_lines_are_named(tmp_path):
    path = write(tmp_path / "p.jsonl", make("1"), make("2"))
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], "{", lines[1].replace('"schema": 1', '"schema": 2')]) + "\n"
    )
    found, problems = scan_predictions(path)
    assert [p.qid for p in found] == ["1"]
    assert [str(p).split(": ")[0] for p in problems] == [f"{path}:2", f"{path}:3"]
    with pytest.raises(UserError, match=r"p.jsonl:2: .* \(and 1 more\)"):
        read_predictions(path)


def test_shards_merge_sorted_and_refuse_a_query_twice(tmp_path):
    first = write(tmp_path / "shard-0-of-2.jsonl", make("9", vid="b"), make("1", vid="b"))
    second = write(tmp_path / "shard-1-of-2.jsonl", make("5", vid="a"))
    merged = merge_shards([first, second], tmp_path / "predictions.jsonl")
    assert [p.qid for p in merged] == ["5", "1", "9"]
    assert read_predictions(tmp_path / "predictions.jsonl") == merged
    with pytest.raises(UserError, match="answered twice"):
        merge_shards([first, first], tmp_path / "predictions.jsonl")
