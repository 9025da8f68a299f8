"""`--convention released` against what the released scripts printed and wrote, digit for digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from revisionllm.eval import metric_retrieval_forward, metric_retrieval_forward_chapters
from revisionllm.eval.retrieval.released import released_metrics
from revisionllm.formats.released_log import LogRow, log_ranking, read_logs, shard_paths
from revisionllm.metrics.recall import span_iou
from revisionllm.records.rankings import LabelledQuery

ASSETS = Path(__file__).parents[1] / "assets" / "eval" / "metrics"
CASES = ("clamped", "iou_threshold_equal", "last_window_unreachable")
RUNS = {
    "mad_100_33": (metric_retrieval_forward, "retrieval_100", "retrieval_33"),
    "mad_33_100": (metric_retrieval_forward, "retrieval_33", "retrieval_100"),
    "chapters_100": (metric_retrieval_forward_chapters, "retrieval_100", "none"),
    "chapters_100_33": (metric_retrieval_forward_chapters, "retrieval_100", "retrieval_33"),
}


def run(tag: str, folder: Path, out: Path, *more: str) -> int:
    module, first, second = RUNS[tag]
    second = second if second == "none" else str(folder / second)
    words = ["--grounding_path", str(folder / "grounding"), "--retrieval_path", str(folder / first)]
    words += ["--retrieval_path2", second, "--output_dir", str(out)]
    return module.main([*words, "--convention", "released", *more])


def printed(text: str, case: str) -> str:
    return text.replace(str(ASSETS / case), f"<fixtures>/metrics/{case}")


@pytest.mark.parametrize("tag", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_prints_and_writes_what_the_released_script_did(tag, case, tmp_path, capsys):
    assert run(tag, ASSETS / case, tmp_path) == 0
    wanted = (ASSETS / case / f"{tag}_stdout.txt").read_text()
    assert printed(capsys.readouterr().out, case) == wanted
    written = (tmp_path / "result_retrieval.txt").read_text()
    assert written == (ASSETS / case / f"{tag}_result_retrieval.txt").read_text()


@pytest.mark.parametrize("tag", RUNS)
def test_answers_where_the_released_script_crashes(tag, tmp_path, capsys):
    """Cut answers have no IoU in the log: an IndexError there, a line here."""
    case = "malformed_answers"
    assert run(tag, ASSETS / case, tmp_path) == 0
    out = capsys.readouterr()
    wanted = (ASSETS / case / f"{tag}_stdout.txt").read_text()
    assert printed(out.out, case).startswith(wanted) and "IndexError" in out.err
    assert out.out.count("Found 40 logs") == (2 if "chapters" in tag else 1)


def copy_case(case: str, tmp_path: Path) -> Path:
    shutil.copytree(ASSETS / case, tmp_path / case, copy_function=shutil.copyfile)
    return tmp_path / case


def rewrite(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def test_duplicate_rows_count_twice_and_are_named(tmp_path, capsys):
    folder = copy_case("clamped", tmp_path)
    rewrite(folder / "grounding/predictions_streaming_1.txt", lambda rows: [*rows, rows[0]])
    assert run("mad_100_33", folder, tmp_path / "out") == 0
    out = capsys.readouterr()
    assert "Found 41 logs" in out.out and "5001" in out.err


def test_a_query_missing_from_one_log_vanishes_but_is_named(tmp_path, capsys):
    folder = copy_case("clamped", tmp_path)
    rewrite(folder / "retrieval_100/predictions_streaming_0.txt", lambda rows: rows[1:])
    rewrite(folder / "retrieval_33/predictions_streaming_1.txt", lambda rows: rows[1:])
    assert run("mad_100_33", folder, tmp_path / "out") == 0
    out = capsys.readouterr()
    assert "Found 39 logs" in out.out
    assert "1 queries are not in the retrieval logs" in out.err
    assert "1 queries have no second retrieval: 5001" in out.err


def test_empty_logs_are_one_line(tmp_path, capsys):
    folder = copy_case("iou_threshold_equal", tmp_path)
    (folder / "grounding/predictions_streaming_0.txt").write_text("")
    assert run("mad_100_33", folder, tmp_path / "out") == 2
    assert "nothing to score" in capsys.readouterr().err


def test_a_missing_shard_is_named(tmp_path, capsys):
    folder = copy_case("clamped", tmp_path)
    (folder / "retrieval_33/predictions_streaming_0.txt").unlink()
    assert run("mad_100_33", folder, tmp_path / "out", "--distributed_grounding", "3") == 0
    err = capsys.readouterr().err
    assert "grounding/predictions_streaming_2.txt: missing shard" in err
    assert "retrieval_33/predictions_streaming_0.txt: missing shard" in err


def test_no_folder_names_the_command_that_makes_it(tmp_path, capsys):
    assert run("mad_100_33", tmp_path, tmp_path) == 2
    assert "bash scripts/mad/eval_loop_stage1_dense.sh" in capsys.readouterr().err


def test_equal_scores_stay_in_film_order():
    row = LogRow("m", "q", [], np.array([0.2, 0.9]), np.array([1.0, 1.0]), np.zeros((0, 2)))
    order = np.argsort(-row.scores, kind="stable")
    assert released_metrics([row.ious[order]])["mIoU"] == 20.0


def test_spans_in_seconds_give_the_logged_iou():
    """The reader's seconds, checked on all 568 answers of the realistic case, to 2 decimals."""
    truth = {q["qid"]: q for q in json.loads((ASSETS / "queries.json").read_text())["queries"]}
    rows, problems = read_logs(shard_paths(ASSETS / "clamped/grounding", None)[0])
    assert not problems
    checked = 0
    for row in rows:
        query = truth[row.query_id]
        spans = np.array([query["ts"]])
        asked = LabelledQuery(row.query_id, row.video_id, "", query["duration"], spans)
        ranking, num_reversed = log_ranking(row, asked, window_s=125, frames_per_window=250)
        logged = row.ious[np.argsort(-row.scores, kind="stable")]
        assert num_reversed == 0
        np.testing.assert_array_equal(np.round(span_iou(ranking.spans, spans), 2), logged)
        checked += len(logged)
    assert checked == 568
