"""Every format: literal examples read, round trips, detection, conversion between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.cli import main
from revisionllm.errors import UserError
from revisionllm.formats.registry import (
    ANNOTATIONS,
    FORMATS,
    PREDICTIONS,
    detect,
    names,
    read_queries,
    read_rankings,
)
from revisionllm.records.rankings import LabelledQuery, Ranking

# One literal file per format, as the field's own tools write it.
QVH = {"qid": 7, "query": "a dog", "duration": 150, "vid": "v_60.0_210.0"}
QVH |= {"relevant_windows": [[0, 10], [26, 36.5]], "relevant_clip_ids": [0, 1], "split": "val"}
VIDEO = {"vid": "yt", "duration": 900.0, "query": ["intro", "end"]}
VIDEO |= {"relevant_windows": [[[0, 30]], [[800, 900]]]}
MAD = {"movie": "1001_X", "sentence": "He runs.", "timestamps": [1.5, 3.25]}
MAD |= {"ext_timestamps": [1.0, 4.0], "movie_duration": 6000.4}
CONE = {"query_id": "a1_0", "query": "where is it", "duration": 480.0, "clip_id": "c1"}
CONE |= {"video_id": "v1", "timestamps": [10.0, 12.5]}
LANGUAGE_QUERY = {"clip_start_sec": 3.0, "clip_end_sec": 5.5, "query": "where", "template": "T"}
EGO4D = {
    "version": "v2",
    "videos": [
        {
            "video_uid": "v1",
            "clips": [
                {
                    "clip_uid": "c1",
                    "video_start_sec": 100.0,
                    "video_end_sec": 580.0,
                    "annotations": [
                        {"annotation_uid": "a1", "language_queries": [LANGUAGE_QUERY] * 2}
                    ],
                }
            ],
        }
    ],
}
VUE = {"query_id": 3, "video_id": "v", "duration": 99.5, "query": "q", "gt": [[1, 2], [5, 9]]}
VUE |= {"task": "temporal_retrieval", "duration_category": "short"}
EWB = {"qid": "e1", "video_id": "v", "source_corpus": "MLVU", "question": "when?"}
EWB |= {"correct_interval": [60.0, 69.0], "duration_s": 9.0, "video_duration_s": 5000.0}
SNAG_VIDEO = {"fps": 5.0, "num_frames": 500, "duration": 100.0}
SNAG_VIDEO |= {"annotations": [{"sentence": "s", "sentence_id": 4, "segment": [1.0, 2.0]}]}
CAPTIONS = {"v_1": {"duration": 82.7, "timestamps": [[0.8, 19.0], [17.4, 60.8]]}}
CAPTIONS["v_1"]["sentences"] = ["A girl dances.", " She stops."]
EWB_RESULT = {"qid": "e1", "video_id": "v", "source_corpus": "MLVU", "pred_raw": "1 - 2"}
EWB_RESULT |= {"pred_interval": [1.0, 2.0], "gt": [1.0, 3.0], "iou": 0.5, "parsed": True}
NLQ_RESULT = {"clip_uid": "c1", "annotation_uid": "a1", "query_idx": 0}
NLQ_RESULT |= {"predicted_times": [[1.0, 2.0], [3.0, 4.0]]}
DETR = {"qid": 7, "query": "a dog", "vid": "v", "pred_relevant_windows": [[1, 2, 0.9], [3, 4, 0.1]]}
VUE_RESULT = {"query_id": 3, "video_id": "v", "duration": 99.5, "query": "q", "answer": [[1, 2]]}
VUE_RESULT |= {"task": "temporal_retrieval"}
CHALLENGE = {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": [NLQ_RESULT]}

MSRVTT_VIDEO = {"video_id": "video0", "id": 0, "split": "train", "category": 9}
MSRVTT_VIDEO |= {"start time": 137.72, "end time": 149.44}
MSRVTT_SENTENCE = {"caption": "a man runs", "video_id": "video0", "sen_id": 0}
MSRVTT = {"videos": [MSRVTT_VIDEO], "sentences": [MSRVTT_SENTENCE]}

EXAMPLES: dict[str, tuple[str, str]] = {
    "qvhighlights": ("a.jsonl", json.dumps(QVH) + "\n"),
    "vidchapters": ("train.jsonl", json.dumps(VIDEO) + "\n"),
    "mad": ("MAD_test.json", json.dumps({"17": MAD, "18": MAD})),
    "cone": ("cone.jsonl", json.dumps(CONE) + "\n"),
    "ego4d-nlq": ("nlq.json", json.dumps(EGO4D, indent=1)),
    "activitynet": ("val_2.json", json.dumps(CAPTIONS)),
    "charades-sta": ("sta.txt", "AO8RW 0.0 6.9##a person puts a book.\nAO8RW 1 2.5##x\n"),
    "captions": ("c.jsonl", '{"vid": "v", "start_s": 1.5, "end_s": 3.0, "caption": "Rain."}\n'),
    "csv": ("events.csv", "video,start,end,sentence\nlong film.mp4,1:02,75.5,A man runs.\n"),
    "msrvtt": ("MSRVTT_data.json", json.dumps(MSRVTT)),
    "vue-tr": ("vue.json", json.dumps([VUE])),
    "extremewhen": ("ewb.jsonl", json.dumps(EWB) + "\n"),
    "snag": ("snag.json", json.dumps({"test": {"v": SNAG_VIDEO}}, indent=2)),
    "moment-detr": ("p.jsonl", json.dumps(DETR) + "\n"),
    "mad-predictions": ("p.jsonl", '{"query_id": "17", "predicted_times": [[1, 2], [3, 4]]}\n'),
    "ego4d-nlq-predictions": ("p.json", json.dumps(CHALLENGE)),
    "timelens": ("p.json", json.dumps({"v.mp4>>>a >>> b>>>[[1, 3]]": {"timestamps": [[1, 2]]}})),
    "vue-tr-predictions": ("p.json", json.dumps([VUE_RESULT])),
    "extremewhen-predictions": ("p.jsonl", json.dumps(EWB_RESULT) + "\n"),
}


# Not written as they were read: per video becomes per query, `1` becomes `1.0` in a text file,
# minutes become seconds.
REWRITTEN = ("vidchapters", "charades-sta", "csv")


def example(name: str, folder: Path) -> Path:
    file, text = EXAMPLES[name]
    path = folder / file
    path.write_text(text)
    return path


def read(name: str, path: Path) -> list:
    items, problems = FORMATS[name].read(path)
    assert not problems
    return items


def comparable(item: LabelledQuery | Ranking) -> dict:
    fields = {slot: getattr(item, slot) for slot in item.__slots__ if slot != "extra"}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}


def write(name: str, path: Path, items: list) -> None:
    FORMATS[name].write(path, items)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_of_the_field_is_detected_and_comes_back_from_a_round_trip(name, tmp_path):
    path = example(name, tmp_path)
    assert detect(path, FORMATS[name].kind).name == name
    items = read(name, path)
    if FORMATS[name].write is None:
        return
    again = tmp_path / f"again{path.suffix}"
    if name == "vidchapters":  # written per query, the form of its test file
        again = tmp_path / "again.jsonl"
    write(name, again, items)
    assert [comparable(item) for item in read(name, again)] == [comparable(item) for item in items]


@pytest.mark.parametrize(
    "name",
    [name for name in EXAMPLES if name not in REWRITTEN and FORMATS[name].write],
)
def test_writing_gives_back_the_file_itself(name, tmp_path):
    path = example(name, tmp_path)
    write(name, tmp_path / "again", read(name, path))
    first, again = path.read_text(), (tmp_path / "again").read_text()
    if path.suffix == ".jsonl":
        assert [json.loads(s) for s in again.splitlines()] == [
            json.loads(s) for s in first.splitlines()
        ]
    else:
        assert json.loads(again) == json.loads(first)


def test_what_the_readers_read():
    assert len(EXAMPLES) + 2 == len(FORMATS)  # + our own and released logs, tested elsewhere


@pytest.mark.parametrize(
    ("name", "vid", "duration_s", "spans"),
    [
        ("qvhighlights", "v_60.0_210.0", 150.0, [[0, 10], [26, 36.5]]),
        ("mad", "1001_X", 6000.4, [[1.5, 3.25]]),
        ("cone", "c1", 480.0, [[10, 12.5]]),
        ("ego4d-nlq", "c1", 480.0, [[3, 5.5]]),
        ("activitynet", "v_1", 82.7, [[0.8, 19]]),
        ("charades-sta", "AO8RW", None, [[0, 6.9]]),
        ("captions", "v", None, [[1.5, 3]]),
        ("csv", "long film", None, [[62, 75.5]]),
        ("vue-tr", "v", 99.5, [[1, 2], [5, 9]]),
        ("extremewhen", "v", 5000.0, [[60, 69]]),
        ("snag", "v", 100.0, [[1, 2]]),
        ("vidchapters", "yt", 900.0, [[0, 30]]),
        ("msrvtt", "video0", 149.44 - 137.72, [[0, 149.44 - 137.72]]),
    ],
)
def test_annotations_say_what_the_format_means(name, vid, duration_s, spans, tmp_path):
    query = read(name, example(name, tmp_path))[0]
    assert (query.vid, query.duration_s, query.spans.tolist()) == (vid, duration_s, spans)


def test_ids_of_formats_without_ids(tmp_path):
    ids = {n: [q.qid for q in read(n, example(n, tmp_path))] for n in names(ANNOTATIONS)}
    assert ids["ego4d-nlq"] == ["a1_0", "a1_1"] and ids["activitynet"] == ["v_1_0", "v_1_1"]
    assert ids["charades-sta"] == ["AO8RW_0", "AO8RW_1"] and ids["vidchapters"] == ["yt_0", "yt_1"]


def test_predictions_say_what_the_format_means(tmp_path):
    detr = read("moment-detr", example("moment-detr", tmp_path))[0]
    assert detr.scores.tolist() == [0.9, 0.1] and detr.spans.tolist() == [[1, 2], [3, 4]]
    timelens = read("timelens", example("timelens", tmp_path))[0]
    assert (timelens.vid, timelens.query, timelens.gt.tolist()) == ("v.mp4", "a >>> b", [[1, 3]])
    unparsed = dict(EWB_RESULT, pred_interval=None, parsed=False)
    (tmp_path / "x.jsonl").write_text(json.dumps(unparsed) + "\n")
    assert read("extremewhen-predictions", tmp_path / "x.jsonl")[0].failed


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ("The event happens in 1.5 - 2 seconds", [[1.5, 2]]),
        ({"answers": "from 9 to 3"}, []),  # the benchmark takes it for no hit
        ("01:02:03 - 01:02:13", [[3723, 3733]]),
        ("starts at 100 seconds and ends at 110 seconds", [[100, 110]]),
        ("100 \u2013 110", [[100, 110]]),
        ("100 ~ 110", [[100, 110]]),
        ("It happens in 100. - 110. seconds.", [[100, 110]]),
        ("between 2.5 s and 7 s", [[2.5, 7]]),
        ("1:30 to 2:05.5 and 200s-210s", [[90, 125.5], [200, 210]]),
        ({"answers": "no idea"}, []),
        ({"timestamps": [[1, 2], [4, 5]], "answers": "7 - 8"}, [[1, 2], [4, 5]]),
    ],
)
def test_timelens_answers(value, spans, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"v>>>q>>>[1, 3]": value}) + "\n")
    ranking = read("timelens", path)[0]
    assert ranking.spans.tolist() == spans and ranking.failed == (not spans)


def convert(source: Path, target: Path, *words: str) -> int:
    return main(["convert-data", str(source), str(target), *words])


seconds = st.integers(0, 4000).map(lambda n: n / 8)
spans = st.tuples(seconds, seconds).map(sorted)
sentence = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1
)
queries = st.lists(st.tuples(sentence, spans), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(queries)
def test_any_annotations_survive_a_walk_through_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("walk")
    made = [
        LabelledQuery(f"film_{i}", "film", text, 500.0, np.array([span]))
        for i, (text, span) in enumerate(rows)
    ]
    path = folder / "start.jsonl"
    write("qvhighlights", path, made)
    for name in ("mad", "cone", "activitynet", "vue-tr", "extremewhen", "qvhighlights"):
        target = folder / f"{name}.json"
        write(name, target, read(detect(path, ANNOTATIONS).name, path))
        path = target
    assert [comparable(query) for query in read("qvhighlights", path)] == [
        comparable(query) for query in made
    ]


def test_convert_between_annotations(tmp_path, capsys):
    source, target = example("mad", tmp_path), tmp_path / "out.json"
    assert convert(source, target, "--from", "mad", "--to", "snag", "--fps", "5") == 0
    assert "2 queries written" in capsys.readouterr().out
    video = json.loads(target.read_text())["test"]["1001_X"]
    assert (video["fps"], video["num_frames"], len(video["annotations"])) == (5.0, 30002, 2)
    assert convert(source, target, "--to", "cone") == 2  # never overwritten unasked
    assert convert(source, target, "--to", "cone", "--overwrite") == 0


def test_convert_predictions_takes_what_is_lacking_from_the_annotations(tmp_path, capsys):
    annotations, source = example("mad", tmp_path), example("mad-predictions", tmp_path)
    target = tmp_path / "ours.jsonl"
    assert convert(source, target, "--to", "revisionllm") == 2
    assert "--annotations" in capsys.readouterr().err
    words = ["--to", "revisionllm", "--annotations", str(annotations)]
    assert convert(source, target, *words) == 0
    ours = read_rankings(target)[0][0]
    assert (ours.vid, ours.duration_s, ours.gt.tolist()) == ("1001_X", 6000.4, [[1.5, 3.25]])
    assert ours.scores.tolist() == [1.0, 0.5]


def test_our_predictions_convert_to_every_format_of_predictions(tmp_path):
    ranking = Ranking(
        "a1_0", np.array([[1.0, 2.0], [4.0, 5.0]]), np.array([0.9, 0.2]), "v", "q", 9.0
    )
    ranking.found, ranking.gt = True, np.array([[1.0, 3.0]])
    source = tmp_path / "ours.jsonl"
    write("revisionllm", source, [ranking])
    for name in names(PREDICTIONS):
        if FORMATS[name].write is None or name == "revisionllm":
            continue
        target = tmp_path / f"{name}.json"
        assert convert(source, target, "--to", name) == 0
        best = read_rankings(target, name)[0][0]
        assert best.spans[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("qvhighlights", "mad", "one span per query; query 7 has 2"),
        ("charades-sta", "mad", "needs the film's length"),
        ("mad", "snag", "--fps"),
        ("mad", "nonsense", "--to takes"),
        ("mad", "released-log", "cannot write"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(source, target, message, tmp_path, capsys):
    assert convert(example(source, tmp_path), tmp_path / "out", "--to", target) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_lines_stop_a_conversion_unless_they_may_be_skipped(tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps(QVH) + "\n" + '{"qid": 8, "relevant_windows": [[5, 1]]}\n')
    assert convert(source, tmp_path / "out", "--to", "vue-tr") == 2
    assert f"{source}:2: " in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "--to", "vue-tr", "--skip-bad") == 0


def test_a_broken_first_line_does_not_hide_the_format(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"torn\n' + json.dumps(QVH) + "\n")
    queries, problems = read_queries(path)
    assert [query.qid for query in queries] == ["7"]
    assert [str(problem).split(": ")[0] for problem in problems] == [f"{path}:1"]


def test_an_unknown_file_lists_the_names(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="say which one"):
        read_queries(path)
    path.write_text("")
    with pytest.raises(UserError, match="no JSON record"):
        read_queries(path)
    with pytest.raises(UserError, match="cannot read"):
        read_queries(tmp_path / "missing.json")


def test_tables_as_spreadsheets_save_them(tmp_path):
    """Other names and separators, decimal commas, ids, several spans, absent sentences, quotes."""
    path = tmp_path / "table.csv"
    path.write_text(
        "\ufeffid;Film;Caption;Start_s;End_s;Duration\n"
        'q1;a.mkv;"He says ""no""; she goes";0,5;1:00:02,5;2:00:00\n'
        'q1;a.mkv;"He says ""no""; she goes";7000;7001;2:00:00\n'
        ";;;;;\n"
        "q2;dir/a.mkv;Nobody sings.;;;7200\n",
        encoding="utf-8",
    )
    assert detect(path).name == "csv"
    first, second = read("csv", path)
    assert (first.qid, first.vid, first.query) == ("q1", "a", 'He says "no"; she goes')
    assert first.spans.tolist() == [[0.5, 3602.5], [7000, 7001]] and first.duration_s == 7200
    assert second.spans.tolist() == [] and second.labelled


def test_a_short_row_of_a_wide_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,c,d,e,f,video,start,end,sentence\n1,2\n1,2,3,4,5,6,v,1,2,b\n")
    queries, problems = FORMATS["csv"].read(path)
    assert [query.query for query in queries] == ["b"] and "no video" in str(problems[0])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("v,1,x,a", "end 'x' is no time"),
        ("v,1:61,2,a", "no time"),
        (",1,2,a", "no video"),
        ("v,1,,a", "one of start and end is empty"),
        ("v,5,2,a", "times"),
    ],
)
def test_bad_rows_of_a_table_are_named(row, what, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"video,start,end,sentence\n{row}\nv,1,2,b\n")
    queries, problems = FORMATS["csv"].read(path)
    assert [query.query for query in queries] == ["b"]
    assert (
        len(problems) == 1 and what in str(problems[0]) and str(problems[0]).startswith(f"{path}:2")
    )
