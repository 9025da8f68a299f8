"""Each peer's way of counting, on cases small enough to count by hand.

The numbers are those that the peers' own evaluators print for these cases (see conventions.py for
their addresses).
"""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest

from revisionllm.cli import main
from revisionllm.errors import UserError
from revisionllm.eval.cli import CONVENTION_NAMES
from revisionllm.metrics.conventions import CONVENTIONS
from revisionllm.metrics.scoring import score
from revisionllm.records.rankings import LabelledQuery, Ranking


def query(qid: str, *spans, **extra) -> LabelledQuery:
    return LabelledQuery(qid, "v", "q", 150.0, np.array(spans, float).reshape(-1, 2), extra)


def answer(qid: str, *spans, scores=None, **extra) -> Ranking:
    scores = None if scores is None else np.array(scores, float)
    return Ranking(qid, np.array(spans, float).reshape(-1, 2), scores, extra=extra)


def report(name: str, queries, rankings) -> dict:
    return score(queries, rankings, num_resamples=0, convention=CONVENTIONS[name]).report


def headline(name: str, queries, rankings) -> dict:
    return report(name, queries, rankings)["headline"]


def test_the_command_knows_them_all():
    assert set(CONVENTION_NAMES) == set(CONVENTIONS)
    assert CONVENTIONS["ours"] is CONVENTIONS["field"]


class TestLimits:
    """An answer whose IoU is exactly 0.5, and one of 0.7 that single precision rounds down."""

    queries: ClassVar = [query("0", (0, 10)), query("1", (0, 10))]
    rankings: ClassVar = [answer("0", (0, 5)), answer("1", (0, 7))]

    @pytest.mark.parametrize(
        ("name", "at_half", "at_seven"),
        [
            ("field", 100.0, 50.0),
            ("released", 50.0, 0.0),
            ("mad", 50.0, 0.0),
            ("nlq", 50.0, 0.0),
            ("vidchapters", 50.0, 0.0),
            ("timelens", 100.0, 50.0),
            ("qvhighlights", 100.0, 50.0),
        ],
    )
    def test_hits(self, name, at_half, at_seven):
        recall = report(name, self.queries, self.rankings)["recall"]
        assert (recall["R1@0.5"], recall["R1@0.7"]) == (at_half, at_seven)


@pytest.mark.parametrize(
    ("name", "share"),
    [("field", 50.0), ("nlq", 100.0), ("released", 100.0), ("timelens", 50.0), ("mad", 100.0)],
)
def test_queries_without_an_answer(name, share, capsys):
    queries = [query("0", (0, 10)), query("1", (0, 10))]
    scored = score(queries, [answer("0", (0, 10))], convention=CONVENTIONS[name])
    assert scored.report["recall"]["R1@0.5"] == share
    assert scored.accounting.missing == ["1"]  # never in silence
    assert any("leaves the 1 missing" in note for note in scored.accounting.notes) == (share == 100)


def test_released_rounds_to_two_decimals():
    queries, rankings = [query("0", (0, 1000))], [answer("0", (0, 504))]
    assert report("released", queries, rankings)["mIoU"] == 50.0
    assert report("released", queries, rankings)["recall"]["R1@0.5"] == 0.0
    assert report("field", queries, rankings)["recall"]["R1@0.5"] == 100.0


def test_qvhighlights_takes_the_first_answer_of_the_file_for_r1_and_the_best_for_map():
    rankings = [answer("0", (50, 60), (0, 10), scores=[0.1, 0.9])]
    found = headline("qvhighlights", [query("0", (0, 10))], rankings)
    assert found["R1@0.5"] == 0.0 and found["mAP"] == 100.0
    assert report("field", [query("0", (0, 10))], rankings)["recall"]["R1@0.5"] == 100.0


def test_qvhighlights_gives_the_last_of_equally_overlapped_spans():
    """The first answer overlaps both alike and takes the last, so that nothing is left."""
    queries = [query("0", (0, 10), (10, 20))]
    rankings = [answer("0", (0, 20), (10, 20), scores=[0.9, 0.8])]
    ours = report("field", queries, rankings)["mAP"]["0.5"]
    assert headline("qvhighlights", queries, rankings)["mAP@0.5"] == 50.0 < ours == 100.0


def test_qvhighlights_drops_long_events_and_unanswered_queries_from_map():
    queries = [query("0", (0, 10)), query("1", (0, 1600)), query("2", (0, 10))]
    rankings = [answer("0", (0, 10), scores=[1]), answer("1", (0, 1600), scores=[1])]
    rankings.append(answer("2", scores=[]))
    found = headline("qvhighlights", queries, rankings)
    assert (found["mAP"], found["R1@0.5"]) == (100.0, 50.0)


def test_qvhighlights_highlights():
    relevant = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 0, 3], [2, 2, 2]]}
    queries = [query("0", (2, 6), **relevant)]
    rankings = [answer("0", (2, 6), pred_saliency_scores=[0.9, 0.8, 0.1])]
    found = headline("qvhighlights", queries, rankings)
    assert found["HL-Hit1 Fair"] == 0.0
    # fair for the three workers: clips {1, 2}, {2}, {1, 2} at ranks 2 and 3
    assert found["HL-mAP Fair"] == pytest.approx(100 * (2 / 3 + 1 / 3 + 2 / 3) / 3)
    rankings = [answer("0", (2, 6), pred_saliency_scores=[0.1, 0.9, 0.2])]
    assert headline("qvhighlights", queries, rankings)["HL-Hit1 VeryGood"] == 100.0


@pytest.mark.parametrize(
    ("scores", "ids"), [(["x"], [0]), ([0.5], [999]), ([0.5], ["a"]), ([[1], [2, 3]], [0])]
)
def test_saliency_that_cannot_be_read_is_one_line(scores, ids):
    queries = [query("0", (2, 6), relevant_clip_ids=ids, saliency_scores=[[1, 2, 3]])]
    with pytest.raises(UserError, match="query 0: its saliency scores"):
        headline("qvhighlights", queries, [answer("0", (2, 6), pred_saliency_scores=scores)])


def test_vue_tr_areas():
    queries = [query("0", (0, 10), duration_category="short"), query("1")]
    rankings = [answer("0", (0, 4.2)), answer("1")]  # in whole seconds: (0, 5)
    found = headline("vue-tr", queries, rankings)
    # IoU 0.5 lies above 50 of the 101 thresholds, 1.0 (rightly nowhere) above 100
    assert found["IoU-AUC"] == pytest.approx(100 * (0.995 + 0.495) / 2)
    assert found["IoU-AUC short"] == pytest.approx(49.5)
    assert found["recall-AUC"] == pytest.approx(50.5)  # of the query that has a true span
    assert found["precision-AUC"] == pytest.approx(100.0)


def test_unitime_counts_overlapping_answers_twice():
    found = headline("unitime", [query("0", (0, 10))], [answer("0", (0, 10), (0, 10))])
    assert found["mIoU"] == 200.0  # 20 s shared of a union of 10: over 1, as the peer prints it
    found = headline("unitime", [query("0", (0, 10))], [answer("0", (0, 5))])
    assert found["R1@0.3"] == 100.0 and found["R1@0.5"] == 0.0


def test_vidchapters_starts():
    queries = [query(str(n), (100, 200)) for n in range(4)]
    rankings = [answer(str(n), (100 + n * 3, 200)) for n in range(4)]
    found = headline("vidchapters", queries, rankings)
    assert [found[f"R@{s}s"] for s in (1, 3, 5, 10)] == [25.0, 25.0, 50.0, 100.0]
    assert found["R1@0.9"] == 100.0


def test_nlq_headline():
    queries = [query("0", (0, 10)), query("1", (0, 10))]
    rankings = [answer("0", (50, 60), (0, 10)), answer("1", (0, 5))]
    found = headline("nlq", queries, rankings)
    assert (found["R1@0.3"], found["R1@0.5"], found["R5@0.5"]) == (50.0, 0.0, 50.0)
    assert found["mIoU"] == 25.0


def results(tmp_path, document: dict):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_truth_inside_predictions_never_leaves_the_denominator(tmp_path, capsys):
    document = {
        "v>>>q>>>[100.0, 110.0]": {"timestamps": [[110, 100]]},
        "v>>>q2>>>[0.0, 10.0]": {"answers": "0 - 10"},
        "v>>>q3>>>[0.0, 10.0]": {"timestamps": "x"},
        "v>>>q4>>>[0.0, 10.0]": {"timestamps": [[0, 10], [9, 3]]},
    }
    assert main(["eval", "score", results(tmp_path, document), "--convention", "timelens"]) == 0
    out, err = capsys.readouterr()
    assert "R1@0.5: 50.00" in out and "4 queries" in out
    assert "2 failed queries" in err and "q4" in err and "spans end before they start" in err


def test_one_reversed_span_costs_nothing_else(tmp_path, capsys):
    rows = [[5, 2], [0, 10]]
    document = [{"query_id": 0, "video_id": "v", "duration": 99.0, "query": "q", "answer": rows}]
    truth = [{"query_id": 0, "video_id": "v", "duration": 99.0, "query": "q", "gt": [[0, 10]]}]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    argv = ["eval", "score", results(tmp_path, document), str(tmp_path / "gt.json")]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "R1@0.9: 100.00" in out and "query 0: 1 spans end before they start" in err


def test_files_of_which_nothing_can_be_used_are_refused(tmp_path, capsys):
    detr = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": "x"}
    truth = {"qid": 1, "query": "q", "vid": "v", "duration": 9, "relevant_windows": [[0, 5]]}
    (tmp_path / "p.jsonl").write_text(json.dumps(detr) + "\n")
    (tmp_path / "gt.jsonl").write_text(json.dumps(truth) + "\n")
    assert main(["eval", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "gt.jsonl")]) == 2
    assert "none of its 1 records can be used" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["moment-detr", "mad", "own"])
def test_json_lists_are_read_like_their_jsonl(name, tmp_path, capsys):
    rows = {
        "moment-detr": {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 5, 1]]},
        "mad": {"query_id": 1, "predicted_times": [[0, 5]]},
        "own": {"schema": 1, "qid": "1", "vid": "v", "query": "q", "duration_s": 9.0}
        | {"found": True, "moments": [{"start_s": 0, "end_s": 5, "score": 1.0}], "status": "ok"},
    }
    truth = {"qid": 1, "query": "q", "vid": "v", "duration": 9, "relevant_windows": [[0, 5]]}
    (tmp_path / "p.json").write_text(json.dumps([rows[name]], indent=1))
    (tmp_path / "gt.jsonl").write_text(json.dumps(truth) + "\n")
    assert main(["eval", "score", str(tmp_path / "p.json"), str(tmp_path / "gt.jsonl")]) == 0
    assert "R1@0.9: 100.00" in capsys.readouterr().out


BAD_TRUTH = {
    "outside": {"timestamps": [10, 200]},
    "reversed": {"timestamps": [20, 10]},
    "empty": {"sentence": " "},
    "no length": {"movie_duration": 0},
}


@pytest.mark.parametrize("change", BAD_TRUTH.values(), ids=BAD_TRUTH)
def test_one_set_of_checks_for_every_command(change, tmp_path, capsys):
    good = {"movie": "m", "sentence": "He runs.", "timestamps": [0, 10], "movie_duration": 150}
    source = tmp_path / "MAD.json"
    source.write_text(json.dumps({"1": good, "2": good | change}))
    predictions = tmp_path / "p.jsonl"
    predictions.write_text('{"query_id": "1", "predicted_times": [[0, 10]]}\n')
    assert main(["eval", "score", str(predictions), str(source)]) == 2
    assert "--skip-bad" in capsys.readouterr().err
    assert main(["eval", "score", str(predictions), str(source), "--skip-bad"]) == 0
    assert "1 queries" in capsys.readouterr().out
    argv = ["convert-data", str(source), str(tmp_path / "out.jsonl"), "--to", "cone"]
    assert main(argv) == 2
    assert main([*argv, "--skip-bad"]) == 0


def test_absent_events_are_known_to_every_reader(tmp_path, capsys):
    absent = {"movie": "m", "sentence": "He runs.", "timestamps": [], "movie_duration": 150}
    present = absent | {"timestamps": [0, 10]}
    (tmp_path / "absent.json").write_text(json.dumps({"1": absent, "2": present}))
    rows = [
        {"query_id": "1", "predicted_times": []},
        {"query_id": "2", "predicted_times": [[0, 9]]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["eval", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "absent.json")]
    assert main(argv) == 0
    assert "not present: precision 100.00, recall 100.00 of 1 absent" in capsys.readouterr().out


def test_a_test_file_without_truth_takes_a_submission(tmp_path, capsys):
    hidden = {"qid": 7, "query": "a dog", "duration": 150, "vid": "v"}
    (tmp_path / "test.jsonl").write_text(json.dumps(hidden) + "\n")
    (tmp_path / "p.jsonl").write_text('{"query_id": "7", "predicted_times": [[0, 10]]}\n')
    argv = ["convert-data", str(tmp_path / "p.jsonl"), str(tmp_path / "s.jsonl")]
    argv += ["--to", "moment-detr", "--annotations", str(tmp_path / "test.jsonl")]
    assert main(argv) == 0
    record = json.loads((tmp_path / "s.jsonl").read_text())
    assert (record["qid"], record["vid"], record["query"]) == (7, "v", "a dog")
    assert main(["eval", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "test.jsonl")]) == 2
    assert "does not say where its queries are true" in capsys.readouterr().err


def test_annotations_are_filled_in_from_others(tmp_path):
    (tmp_path / "sta.txt").write_text("AO8RW 0.0 6.9##a person puts a book.\n")
    lengths = {"AO8RW": {"duration": 30.5, "timestamps": [[0, 1]], "sentences": ["x"]}}
    (tmp_path / "lengths.json").write_text(json.dumps(lengths))
    argv = ["convert-data", str(tmp_path / "sta.txt"), str(tmp_path / "q.jsonl")]
    assert main([*argv, "--to", "qvhighlights"]) == 2
    assert (
        main([*argv, "--to", "qvhighlights", "--annotations", str(tmp_path / "lengths.json")]) == 0
    )
    assert json.loads((tmp_path / "q.jsonl").read_text())["duration"] == 30.5


@pytest.mark.parametrize(
    ("words", "key"), [([], "[0.0, 10.0]"), (["--nested-spans"], "[[0.0, 10.0]]")]
)
def test_keys_of_timelens_results(words, key, tmp_path):
    truth = {"qid": 1, "query": "q", "vid": "v", "duration": 20, "relevant_windows": [[0, 10]]}
    (tmp_path / "gt.jsonl").write_text(json.dumps(truth) + "\n")
    (tmp_path / "p.jsonl").write_text('{"query_id": "1", "predicted_times": [[0, 10]]}\n')
    argv = ["convert-data", str(tmp_path / "p.jsonl"), str(tmp_path / "t.json"), "--to", "timelens"]
    assert main([*argv, "--annotations", str(tmp_path / "gt.jsonl"), *words]) == 0
    assert list(json.loads((tmp_path / "t.json").read_text())) == [f"v>>>q>>>{key}"]


def test_released_chapters_logs_need_their_windows(tmp_path, capsys):
    """A perfect log of 500 s windows of 100 frames."""
    folder = tmp_path / "logs"
    folder.mkdir()
    info = {"iou": [1.0], "scores": [1.0], "gt": [0, 0.1]}
    line = {"video_id": "v", "task": "grounding", "query_id": "v_0", "answer": ["From 0 to 10."]}
    (folder / "predictions_streaming_0.txt").write_text(json.dumps(line | {"info": info}) + "\n")
    truth = {"qid": "v_0", "query": "q", "vid": "v", "duration": 500, "relevant_windows": [[0, 50]]}
    (tmp_path / "gt.jsonl").write_text(json.dumps(truth) + "\n")
    argv = ["eval", "score", str(folder), str(tmp_path / "gt.jsonl")]
    assert main(argv) == 2
    assert "--window_s and --frames_per_window" in capsys.readouterr().err
    assert main([*argv, "--window_s", "500", "--frames_per_window", "100"]) == 0
    assert "R1@0.7: 100.00" in capsys.readouterr().out


def test_one_query_without_windows_among_others_lacks_them(tmp_path, capsys):
    row = {"qid": 1, "query": "q", "vid": "v", "duration": 9}
    rows = [row | {"relevant_windows": [[0, 5]]}, row | {"qid": 2}]
    (tmp_path / "gt.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.jsonl").write_text('{"query_id": "1", "predicted_times": [[0, 5]]}\n')
    argv = ["eval", "score", str(tmp_path / "p.jsonl"), str(tmp_path / "gt.jsonl")]
    assert main(argv) == 2
    assert "query 2: no relevant_windows" in capsys.readouterr().err
