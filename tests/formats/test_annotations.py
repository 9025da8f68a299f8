"""Readers of annotations: each format, each kind of mistake, everything at once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from revisionllm.errors import UserError
from revisionllm.formats.annotations import (
    Annotation,
    evaluation_record,
    read_annotations,
    read_sentences,
    require_good,
    training_record,
)
from revisionllm.formats.questions import clean_query

DOOR = Annotation("7", "film_1", "A man opens a door.", 12.34, 20.0, 120.5)


def mad(**changes) -> dict:
    record = {
        "movie": "film_1",
        "sentence": "A man opens a door.",
        "timestamps": [12.34, 20.0],
        "ext_timestamps": [10.0, 22.0],
        "movie_duration": 120.5,
    }
    return record | changes


def write(path, value) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_mad_json(tmp_path):
    file = read_annotations(write(tmp_path / "MAD_train.json", {"7": mad()}))
    assert file.annotations == [DOOR] and file.problems == []


def test_evaluation_json_is_read_back(tmp_path):
    file = read_annotations(write(tmp_path / "test.json", {"7": evaluation_record(DOOR)}))
    assert file.annotations == [DOOR]


def test_training_json_is_read_back_in_the_questions_wording(tmp_path):
    record = training_record(DOOR, "mad")
    assert record == {
        "query_id": "7",
        "id": "film_1",
        "conversations": [
            {
                "from": "human",
                "value": "<video>\nDuring which frames can we see a man opens a door?",
            },
            {"from": "gpt", "value": "From <s0> to <e0>."},
        ],
        "meta": {"duration": 120.5, "token": {"<s0>": 12.3, "<e0>": 20.0}},
        "source": "mad",
    }
    file = read_annotations(write(tmp_path / "train.json", [record]))
    assert file.annotations == [Annotation("7", "film_1", "a man opens a door.", 12.3, 20.0, 120.5)]


@pytest.mark.parametrize("sentence", ["He waits...", "Why?", " Odd . ", "No stop", "Two\nlines."])
def test_a_training_json_asks_the_same_question_again(tmp_path, sentence):
    record = training_record(dataclasses.replace(DOOR, sentence=sentence), "mad")
    (read,) = read_annotations(write(tmp_path / "train.json", [record])).annotations
    assert clean_query(read.sentence) == clean_query(sentence)


def test_jsonl_of_mad_and_chapters(tmp_path):
    path = tmp_path / "all.jsonl"
    lines = [
        {
            "query_id": 7,
            "query": "A man opens a door.",
            "clip_id": "film_1",
            "duration": 120.5,
            "timestamps": [12.34, 20.0],
        },
        {
            "vid": "v",
            "duration": 600,
            "query": ["Intro", "The end"],
            "relevant_windows": [[[0, 60]], [[500, 600]]],
        },
        {"qid": 3, "query": "Intro", "duration": 90, "vid": "w", "relevant_windows": [[0, 9]]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    file = read_annotations(path)
    assert file.problems == []
    assert file.annotations == [
        DOOR,
        Annotation("v_0", "v", "Intro", 0.0, 60.0, 600.0),
        Annotation("v_1", "v", "The end", 500.0, 600.0, 600.0),
        Annotation("3", "w", "Intro", 0.0, 9.0, 90.0),
    ]


def test_every_problem_of_a_file_is_reported_with_its_id(tmp_path, caplog):
    bad = {
        "reversed": mad(timestamps=[20.0, 12.0]),
        "beyond": mad(timestamps=[110.0, 150.0]),
        "nan": mad(timestamps=[float("nan"), 12.0]),
        "endless": mad(movie_duration=float("inf")),
        "early": mad(timestamps=[-1.0, 3.0]),
        "empty": mad(sentence=" . "),
        "nothing": mad(sentence=None),
        "no_film": mad(movie=""),
        "one_time": mad(timestamps=[1.0]),
        "text": mad(timestamps=["1", "2"]),
        "not_even": [],
        "latin": mad(sentence="caf@"),
        "good": mad(),
    }
    text = json.dumps(bad)[:-1] + ', "good": ' + json.dumps(mad()) + "}"
    path = tmp_path / "MAD_train.json"
    path.write_bytes(text.encode().replace(b"caf@", b"caf\xe9"))
    file = read_annotations(path)
    assert [annotation.query_id for annotation in file.annotations] == ["good"]
    told = "\n".join(file.problems)
    assert len(file.problems) == len(bad)  # the repeated id, and all but the good one
    for query_id in bad:
        assert f"query {query_id}:" in told
    for reason in ("reversed", "beyond", "UTF-8", "empty", "occurs 2 times", "times are [nan"):
        assert reason in told
    with pytest.raises(UserError, match="13 problems"):
        require_good(path, file.problems, skip_bad=False)
    assert all(problem in caplog.text for problem in file.problems)
    require_good(path, file.problems, skip_bad=True)


def test_bad_lines_of_jsonl(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"vid": "v", "duration": 10, "query": ["a", "b"], "relevant_windows": [[[0, 1]]]}\n'
        "{torn\n"
        '{"vid": "v", "duration": 10, "query": ["a"], "relevant_windows": [[[0, 1], [2, 3]]]}\n'
        "[]\n"
    )
    file = read_annotations(path)
    assert not file.annotations
    assert len(file.problems) == 4
    assert "2 queries and 1 windows" in file.problems[0]
    assert "line 2" in file.problems[1]
    assert "v_0" in "".join(file.problems)


def test_an_end_a_little_after_the_film_is_clipped(tmp_path):
    file = read_annotations(write(tmp_path / "a.json", {"7": mad(timestamps=[119.0, 121.2])}))
    assert file.annotations[0].end_s == 120.5


def test_sentences_that_happen_nowhere(tmp_path):
    path = tmp_path / "absent.json"
    record = {"movie": "1", "sentence": "a ball", "timestamps": [], "movie_duration": 60.0}
    path.write_text(json.dumps({"5": record}))
    (annotation,) = read_annotations(path, absent_ok=True).annotations
    assert annotation.spans_s == [] and annotation.duration_s == 60.0
    (problem,) = read_annotations(path).problems
    assert problem.startswith("query 5: the times are []")


def test_annotations_of_any_other_format(tmp_path):
    """Those of a table, whose films say how long they are elsewhere; several spans are several."""
    path = tmp_path / "events.csv"
    path.write_text(
        "video,start,end,sentence,query_id\nf.mp4,1,2,a dog,d\nf.mp4,5,6,a dog,d\n"
        "f.mp4,3,4,a cat,c\ng.mp4,3,4,a cow,w\nf.mp4,,,a pig,p\n"
    )
    file = read_annotations(path, absent_ok=True, length_of={"f": 60.0}.get)
    assert file.annotations[:3] == [
        Annotation("d#1", "f", "a dog", 1.0, 2.0, 60.0),
        Annotation("d#2", "f", "a dog", 5.0, 6.0, 60.0),
        Annotation("c", "f", "a cat", 3.0, 4.0, 60.0),
    ]
    assert file.annotations[3].spans_s == []
    assert file.problems == ["query w: the film's duration is None"]
    sta = tmp_path / "sta.txt"
    sta.write_text("AO8RW 0.0 6.9##a person puts a book.\n")
    (one,) = read_annotations(sta, length_of=lambda _vid: 30.0).annotations
    assert (one.video_id, one.start_s, one.end_s, one.duration_s) == ("AO8RW", 0.0, 6.9, 30.0)


def test_sentences_do_not_need_times(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"query_id": "1", "query": "A dog."}\n{"query_id": "2", "query": ""}\n')
    sentences, problems = read_sentences(path)
    assert sentences == {"1": "A dog."} and len(problems) == 1


@pytest.mark.parametrize("text", ["", "[1, 2", "3"])
def test_files_that_are_no_annotations(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        read_annotations(path)
    with pytest.raises(UserError, match="cannot read"):
        read_annotations(tmp_path / "missing.json")
