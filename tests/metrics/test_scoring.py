"""`eval score`: every query counts once, whatever is not used is named, the sums are right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_files import make, write

from revisionllm.cli import main
from revisionllm.errors import UserError
from revisionllm.metrics.scoring import queries_from, score
from revisionllm.records.rankings import LabelledQuery, Ranking


def query(qid: str, *spans, vid="film", duration_s=1000.0) -> LabelledQuery:
    return LabelledQuery(qid, vid, "q", duration_s, np.array(spans, float).reshape(-1, 2))


def ranking(qid: str, *spans, scores=None, **fields) -> Ranking:
    scores = None if scores is None else np.array(scores, float)
    return Ranking(qid, np.array(spans, float).reshape(-1, 2), scores, **fields)


def test_every_query_of_the_ground_truth_counts():
    queries = [query(str(i), (0, 10)) for i in range(4)]
    rankings = [ranking("0", (0, 10)), ranking("1", (0, 10), failed=True), ranking("2", (50, 60))]
    rankings += [ranking("0", (5, 6)), ranking("77", (0, 10))]
    scored = score(queries, rankings, num_resamples=10)
    assert scored.report["recall"]["R1@0.5"] == 25.0 and scored.report["mIoU"] == 25.0
    accounting = scored.accounting
    assert (accounting.missing, accounting.failed) == (["3"], ["1"])
    assert (accounting.duplicates, accounting.unknown) == (["0"], ["77"])
    assert len(accounting.lines()) == 4


def test_answers_out_of_order_are_sorted_and_equal_scores_keep_theirs():
    rankings = [ranking("0", (50, 60), (0, 10), (70, 80), scores=[0.1, 0.9, 0.9])]
    scored = score([query("0", (0, 10))], rankings)
    assert scored.report["recall"]["R1@0.9"] == 100.0
    assert scored.rankings[0].spans.tolist() == [[0, 10], [70, 80], [50, 60]]
    assert scored.accounting.reordered == ["0"]


def test_absent_events_count_for_not_present_only():
    queries = [query("0", (0, 10)), query("1"), query("2")]
    rankings = [
        ranking("0", (0, 10), found=True),
        ranking("1", (5, 6), found=False),
        ranking("2", (5, 6), found=True),
    ]
    report = score(queries, rankings).report
    assert (report["num_queries"], report["num_present"], report["mIoU"]) == (3, 1, 100.0)
    wanted = {"precision": 100.0, "recall": 50.0, "num_absent": 2, "num_said_absent": 1}
    assert report["not_present"] == wanted


def test_several_true_spans():
    queries = [query("0", (0, 10), (20, 30))]
    report = score(
        queries, [ranking("0", (0, 10), (20, 30), (40, 50), scores=[0.9, 0.6, 0.4])]
    ).report
    assert report["set_iou"] == {"mean": 100.0, "num_queries": 1}  # the third is not confident
    assert report["mAP"]["avg"] == 100.0


def test_calibration_only_of_probabilities():
    queries = [query("0", (0, 10)), query("1", (0, 10))]
    unsure = [ranking("0", (0, 10), scores=[0.75]), ranking("1", (50, 60), scores=[0.25])]
    assert score(queries, unsure).report["calibration"]["0.5"]["ece"] == 0.25
    logits = [ranking("0", (0, 10), scores=[7.5]), ranking("1", (50, 60), scores=[-3])]
    assert score(queries, logits).report["calibration"] is None


def test_breakdowns_hold_every_query_once():
    rng = np.random.default_rng(0)
    queries = [
        query(str(i), (5, 5 + length), duration_s=float(d))
        for i, (length, d) in enumerate(
            zip(rng.uniform(0, 200, 50), rng.uniform(9, 9999, 50), strict=True)
        )
    ]
    report = score(queries, [ranking(q.qid, *q.spans.tolist()) for q in queries]).report
    for name in ("by_duration", "by_length"):
        assert sum(row["num_queries"] for row in report[name]) == 50
        assert all(row["mIoU"] == 100.0 for row in report[name])


def test_intervals_are_over_films_and_repeatable():
    queries = [query(str(i), (0, 10), vid=f"film{i % 3}") for i in range(30)]
    rankings = [ranking(q.qid, (0, 10) if int(q.qid) % 2 else (50, 60)) for q in queries]
    first, second = score(queries, rankings).report, score(queries, rankings).report
    assert first == second and first["resampled"] == "films"
    low, high = first["intervals"]["R1@0.5"]
    assert low <= 50.0 <= high


def test_files_that_do_not_belong_together():
    with pytest.raises(UserError, match="no query id is in both"):
        score([query("a", (0, 1))], [ranking("b", (0, 1))])
    with pytest.raises(UserError, match="twice"):
        score([query("a", (0, 1))] * 2, [ranking("a", (0, 1))])
    with pytest.raises(UserError, match="give the annotation file"):
        queries_from([ranking("a", (0, 1))])


def test_command_writes_files_and_prints_the_field_s_lines(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make("1", [(10, 20)]), make("2", [(50, 60), (10, 19)]))
    path.write_text(path.read_text() + '{"schema": 1, "qid": "3"}\n' + '{"torn')
    out = tmp_path / "out"
    assert main(["eval", "score", str(path), "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert "R1@0.5: 50.00" in printed.out and "R5@0.5: 100.00" in printed.out
    assert f"{path}:3: " in printed.err and "the last line is torn" in printed.err
    report = json.loads((out / "report.json").read_text())
    assert report["recall"]["R5@0.9"] == 100.0 and report["counts"]["problems"] == 2
    assert (out / "metrics.csv").read_text().startswith("name,value,low,high\nmIoU,50.0,")
    assert (out / "recall.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "reliability.png").read_bytes()[:4] == b"\x89PNG"


def test_json_output_is_json_even_when_nothing_can_be_ranked(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make("1", gt=(), found=False))
    assert main(["eval", "score", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mIoU"] is None


def test_predictions_of_another_format_with_annotations(tmp_path, capsys):
    truth = {"qid": 1, "query": "q", "duration": 60, "vid": "v", "relevant_windows": [[0, 10]]}
    (tmp_path / "gt.jsonl").write_text(json.dumps(truth) + "\n")
    guess = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 5, 0.9]]}
    (tmp_path / "p.jsonl").write_text(json.dumps(guess) + "\n")
    assert main(["eval", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "gt.jsonl")]) == 0
    assert "mIoU: 50.00" in capsys.readouterr().out


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_file_never_gives_a_traceback_or_another_number(tmp_path, capsys, data):
    """Damage to one line: exit code 2 and one line, or the other queries score as they did."""
    path = write(tmp_path / "p.jsonl", make("1", [(10, 20)]), make("2", [(10, 20)]))
    first, second = path.read_bytes().splitlines(keepends=True)
    raw = bytearray(second)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 2))] = data.draw(st.integers(33, 126))
    path.write_bytes(first + bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    code = main(["eval", "score", str(path), "--json", "--resamples", "0"])
    printed = capsys.readouterr()
    assert code in (0, 2)
    if code == 2:
        assert printed.err.count("\n") >= 1 and "error: " in printed.err
    else:
        report = json.loads(printed.out)
        named = f"{path}:2" in printed.err or "duplicate" in printed.err
        assert report["num_queries"] == 2 or named or "without ground truth" in printed.err
