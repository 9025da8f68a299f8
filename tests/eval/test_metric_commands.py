"""The two metric commands under the field convention, on our predictions and on released logs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_files import make, write

from revisionllm.eval import metric_retrieval_forward, metric_retrieval_forward_chapters
from revisionllm.eval.retrieval.filter import DenseAnswers, filter_and_score

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets" / "eval" / "metrics"
WINDOWS = [(0, 100), (50, 150), (100, 200), (900, 1000)]


def run(folder: Path, *words: str, chapters: bool = False) -> int:
    module = metric_retrieval_forward_chapters if chapters else metric_retrieval_forward
    paths = [
        "--grounding_path",
        str(folder / "dense"),
        "--retrieval_path",
        str(folder / "long_100"),
    ]
    if not chapters:
        paths += ["--retrieval_path2", str(folder / "long_33")]
    return module.main([*paths, *words])


def dense(qid: str, spans, **fields):
    return make(qid, spans, gt=((950, 960),), windows=WINDOWS, **fields)


def stages(folder: Path, answers, long_100, long_33) -> Path:
    write(folder / "dense" / "shard-0-of-1.jsonl", *answers)
    write(folder / "long_100" / "predictions.jsonl", *long_100)
    write(folder / "long_33" / "shard-0-of-1.jsonl", *long_33)
    return folder


def printed(text: str) -> dict[str, float]:
    pairs = [line.split(": ") for line in text.splitlines() if ": " in line]
    return {name: float(value) for name, value in pairs if value.replace(".", "").isdigit()}


def test_the_union_of_both_retrievals_filters_and_the_last_window_is_reachable(tmp_path, capsys):
    answers = [dense("1", [(10, 20), (60, 90), (950, 960)])]
    folder = stages(tmp_path, answers, [make("1", [(900, 1000)])], [make("1", [(0, 40)])])
    assert run(folder) == 0
    out = printed(capsys.readouterr().out)
    assert out["share of windows kept"] == 0.5  # the first and the last of four
    assert (out["R1@0.9"], out["R5@0.9"], out["mIoU"]) == (0.0, 100.0, 0.0)
    report = json.loads((folder / "dense" / "metrics.json").read_text())
    assert report["blocks"][-1]["R5@0.9"] == 100.0 and report["convention"] == "field"
    rows = list(csv.reader((folder / "dense" / "metrics.csv").read_text().splitlines()))
    assert rows[0] == ["with_retrieval", "name", "value"] and ["true", "R5@0.9", "100.0"] in rows


def test_nothing_kept_by_long_100_scores_the_whole_list(tmp_path, capsys):
    answers = [dense("1", [(950, 960), (10, 20)])]
    folder = stages(tmp_path, answers, [make("1", [(400, 500)])], [make("1", [(0, 40)])])
    assert run(folder) == 0
    out = printed(capsys.readouterr().out)
    assert out["R1@0.9"] == 100.0 and out["nothing retrieved, scored unfiltered"] == 1


def test_chapters_prints_two_blocks_and_the_last_one_counts(tmp_path, capsys):
    answers = [dense("1", [(10, 20), (950, 960)])]
    folder = stages(tmp_path, answers, [make("1", [(900, 1000)])], [])
    assert run(folder, chapters=True) == 0
    first, second = capsys.readouterr().out.split("buffer:  0")
    assert printed(first)["R1@0.9"] == 0.0 and printed(second)["R1@0.9"] == 100.0
    report = json.loads((folder / "dense" / "metrics.json").read_text())
    assert [block["R1@0.9"] for block in report["blocks"]] == [0.0, 100.0]


def test_failed_missing_duplicate_and_absent_queries_are_counted(tmp_path, capsys):
    hit = [(950, 960)]
    answers = [dense("1", hit), dense("1", [(0, 1)]), dense("2", hit, status="failed", reason="x")]
    answers += [dense("3", hit), make("4", hit, gt=())]
    everywhere = [make(qid, [(0, 1000)]) for qid in ("1", "2", "4", "5")]
    folder = stages(tmp_path, answers, everywhere, everywhere)
    assert run(folder) == 0
    got = capsys.readouterr()
    out = printed(got.out)
    assert "Found 4 logs" in got.out and out["R1@0.9"] == 25.0
    assert (out["failed queries"], out["missing queries"]) == (
        1,
        2,
    )  # 3: not retrieved, 5: no answer
    assert "1 duplicate answers" in got.err and "1 queries have no event" in got.err


def test_a_missing_shard_and_a_half_written_line_are_named(tmp_path, capsys):
    folder = stages(tmp_path, [dense("1", [(950, 960)])], [make("1")], [make("1")])
    (folder / "dense/shard-0-of-1.jsonl").rename(folder / "dense/shard-0-of-2.jsonl")
    with (folder / "long_33/shard-0-of-1.jsonl").open("a") as file:
        file.write('{"schema": 1, "qid"')
    assert run(folder) == 0
    err = capsys.readouterr().err
    assert "dense/shard-1-of-2.jsonl: missing shard" in err
    assert "long_33/shard-0-of-1.jsonl:2: " in err


def test_annotations_name_the_queries_that_were_never_answered(tmp_path, capsys):
    folder = stages(tmp_path, [dense("1", [(950, 960)])], [make("1", [(0, 999)])], [make("1")])
    film = {"movie": "film", "sentence": "x", "timestamps": [950, 960], "movie_duration": 1000}
    (tmp_path / "gt.json").write_text(json.dumps({"1": film, "2": film}))
    assert run(folder, "--data_path", str(tmp_path / "gt.json")) == 0
    out = printed(capsys.readouterr().out)
    assert (out["R1@0.9"], out["missing queries"]) == (50.0, 1)


def test_without_ground_truth_one_line_says_so(tmp_path, capsys):
    folder = stages(tmp_path, [make("1", [(1, 2)], gt=None)], [make("1")], [make("1")])
    assert run(folder) == 2
    assert "--data_path" in capsys.readouterr().err


def released(case: str, out: Path, *words: str) -> int:
    folder = ASSETS / case
    paths = ["--grounding_path", str(folder / "grounding"), "--output_dir", str(out)]
    paths += ["--retrieval_path", str(folder / "retrieval_100")]
    paths += ["--retrieval_path2", str(folder / "retrieval_33")]
    return metric_retrieval_forward.main([*paths, *words])


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("iou_threshold_equal", {"R1@0.1": 100.0, "R5@0.3": 100.0, "R5@0.9": 100.0}),
        ("last_window_unreachable", {"R1@0.9": 100.0, "mIoU": 90.0}),
    ],
)
def test_corner_cases_of_the_released_logs(case, wanted, tmp_path, capsys):
    """Equal to the threshold is a hit, and the last window counts."""
    assert released(case, tmp_path) == 0
    assert printed(capsys.readouterr().out).items() >= wanted.items()


def test_cut_answers_do_not_shift_the_others(tmp_path, capsys):
    assert released("malformed_answers", tmp_path) == 0
    got = capsys.readouterr()
    assert printed(got.out)["failed queries"] == 0 and printed(got.out)["R50@0.1"] > 0
    assert "31 answers are neither a span nor Not Present" in got.err


def test_released_logs_with_annotations_give_unrounded_iou(tmp_path, capsys):
    queries = json.loads((ASSETS / "queries.json").read_text())["queries"]
    annotations = {
        q["qid"]: {
            "movie": q["movie"],
            "sentence": "x",
            "timestamps": q["ts"],
            "movie_duration": q["duration"],
        }
        for q in queries
    }
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    assert released("clamped", tmp_path) == 0
    logged = printed(capsys.readouterr().out)["mIoU"]
    assert released("clamped", tmp_path, "--data_path", str(tmp_path / "gt.json")) == 0
    exact = json.loads((tmp_path / "metrics.json").read_text())["blocks"][0]["mIoU"]
    assert exact == pytest.approx(logged, abs=0.5) and exact != round(exact, 2)


ranges = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=4)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(ranges, ranges, ranges, st.lists(st.integers(0, 10), min_size=4, max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_filter_equals_a_naive_one(items):
    answers, first, second, hits, kept_windows, asked_windows = {}, {}, {}, [], 0, 0
    for index, (windows, long_100, long_33, ious) in enumerate(items):
        qid = str(index)
        spans = [(start, start + length) for start, length in windows]
        retrieved = [[(s, s + n) for s, n in rows] for rows in (long_100, long_33)]
        answers[qid] = DenseAnswers(
            qid,
            np.array(ious[: len(spans)]) / 10,
            np.array(spans, float).reshape(-1, 2),
            np.array(spans, float).reshape(-1, 2),
            np.eye(len(spans), dtype=bool),
        )
        first[qid], second[qid] = (np.array(rows, float).reshape(-1, 2) for rows in retrieved)

        def kept(rows, spans=spans):
            return [any(s < b and a < e for a, b in rows) for s, e in spans]

        mask = kept(retrieved[0] + retrieved[1]) if any(kept(retrieved[0])) else [True] * len(spans)
        hits.append(any(m and iou >= 5 for m, iou in zip(mask, ious, strict=False)))
        kept_windows += sum(mask)
        asked_windows += len(spans)
    result = filter_and_score(answers, list(answers), [first, second])
    assert result.metrics["R5@0.5"] == pytest.approx(100 * sum(hits) / len(hits))
    assert result.share == pytest.approx(kept_windows / max(asked_windows, 1))


@pytest.mark.parametrize("name", ["metric_retrieval_forward", "metric_retrieval_forward_chapters"])
def test_started_by_path_from_anywhere_and_without_heavy_imports(name, tmp_path):
    script = ROOT / "revisionllm" / "eval" / f"{name}.py"
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines()[-1] == "False False", done.stderr
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2 and "eval_loop_stage1_dense.sh" in done.stderr
