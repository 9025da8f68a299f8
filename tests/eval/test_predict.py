"""The predicting commands end to end on a tiny evaluation: answers, shards, resuming, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_evaluation import FILMS, write_evaluation

from revisionllm.cli import main
from revisionllm.eval import predict_segments, predict_windows
from revisionllm.eval.calibrate import PARTS
from revisionllm.grounding.windows import dense_windows
from revisionllm.records.predictions import read_predictions


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluation"))


def flags(tiny, run: str, output: Path, *more: str) -> list[str]:
    shared = {name: tiny[name] for name in ("data_path", "features", "text_features")}
    values = {"checkpoint": tiny[run], "output": str(output), "device": "cpu", **shared}
    return [part for name, value in values.items() for part in (f"--{name}", value)] + list(more)


def lines(folder: Path) -> list[str]:
    """The merged file without what a clock says."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        row["cost"].pop("seconds")
    return [json.dumps(row) for row in rows]


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    assert predict_windows.main(flags(tiny, "dense", folder)) == 0
    return folder


def test_every_window_of_every_query_is_answered(dense, capsys):
    predictions = read_predictions(dense / "predictions.jsonl")
    assert [p.qid for p in predictions] == sorted((f"q{i}" for i in range(10)), key=by_film)
    for prediction in predictions:
        assert prediction.status == "ok" and prediction.run == "dense"
        assert prediction.gt == [(1.0, 5.0)]
        windows = dense_windows(FILMS[prediction.vid], window_s=12.0, stride_s=6.0)
        assert [w.index for w in prediction.windows] == [w.index for w in windows]
        assert prediction.cost.dense_windows == len(windows)
        assert prediction.cost.llm_tokens > 0
        scores = [moment.score for moment in prediction.moments]
        assert scores == sorted(scores, reverse=True)
        for moment in prediction.moments:
            others = {"entropy", "cosine", "support", "log_odds", "second_look", "seen_twice"}
            assert set(moment.parts) == {"presence"} | others
            assert 0 <= moment.start_s < moment.end_s <= prediction.duration_s


def by_film(qid: str) -> tuple[int, str]:
    return int(qid[1:]) % 3, qid


def test_prints_the_scores(tiny, tmp_path, capsys):
    assert predict_windows.main(flags(tiny, "dense", tmp_path, "--limit", "2")) == 0
    assert "R1" in capsys.readouterr().out.replace("@", "")


def test_shards_give_the_same_file(tiny, dense, tmp_path, capsys):
    for shard in ("1", "0"):
        more = ["--shard", shard, "--num_shards", "2", "--queries_per_batch", "2"]
        assert (tmp_path / "predictions.jsonl").exists() is False
        assert predict_windows.main(flags(tiny, "dense", tmp_path, *more)) == 0
    wanted = [json.loads(line) for line in lines(dense)]
    for found, expected in zip(map(json.loads, lines(tmp_path)), wanted, strict=True):
        assert found["qid"] == expected["qid"]
        assert [w["answer"] for w in found["windows"]] == [w["answer"] for w in expected["windows"]]
        for moment, other in zip(found["moments"], expected["moments"], strict=True):
            assert moment["start_s"] == other["start_s"]
            assert moment["score"] == pytest.approx(other["score"], abs=1e-5)
    assert predict_windows.main(flags(tiny, "dense", tmp_path)) == 2  # of two shards, not of one
    assert "--num_shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")]
)
def test_shards_of_a_cluster(tiny, tmp_path, monkeypatch, names):
    for name, value in zip(names, ("2", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert predict_windows.main(flags(tiny, "dense", tmp_path)) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["made_with.json", "shard-2-of-3.jsonl"]
    assert {p.vid for p in read_predictions(tmp_path / "shard-2-of-3.jsonl")} == {"film_c"}


def test_a_killed_run_goes_on(tiny, dense, tmp_path, capsys):
    whole = (dense / "shard-0-of-1.jsonl").read_text().splitlines(keepends=True)
    shard = tmp_path / "shard-0-of-1.jsonl"
    shard.write_text("".join(whole[:6]) + whole[6][:30])
    assert predict_windows.main(flags(tiny, "dense", tmp_path)) == 0
    assert "dropped a torn last line" in capsys.readouterr().err
    assert "".join(shard.read_text().splitlines(keepends=True)[:6]) == "".join(whole[:6])
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 10


def test_what_cannot_be_answered_is_a_failure(tiny, tmp_path, capsys):
    annotations = json.loads(Path(tiny["data_path"]).read_text())
    annotations["q0"]["movie"] = annotations["q3"]["movie"] = "no_such_film"
    annotations["new"] = dict(annotations["q1"])  # without text features
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(annotations))
    argv = flags(tiny | {"data_path": str(changed)}, "dense", tmp_path / "out")
    assert predict_windows.main(argv) == 0
    predictions = {p.qid: p for p in read_predictions(tmp_path / "out" / "predictions.jsonl")}
    failed = {qid: p.reason for qid, p in predictions.items() if p.status == "failed"}
    assert set(failed) == {"q0", "q3", "new"}
    assert "no_such_film" in failed["q0"] and "new" in failed["new"]
    assert "3 failed" in capsys.readouterr().err
    argv = flags(tiny, "dense", tmp_path / "out", "--retry_failed", "--limit", "10")
    (tmp_path / "out" / "predictions.jsonl").unlink()
    assert predict_windows.main(argv) == 0
    assert all(p.status == "ok" for p in read_predictions(tmp_path / "out" / "predictions.jsonl"))


def test_segments_and_their_restriction(tiny, dense, tmp_path):
    more = ["--num_segments", "8"]
    assert predict_segments.main(flags(tiny, "long", tmp_path / "all", *more)) == 0
    everywhere = read_predictions(tmp_path / "all" / "predictions.jsonl")
    for prediction in everywhere:
        segments = dense_windows(FILMS[prediction.vid], window_s=12.0, stride_s=3.0)
        assert prediction.cost.segments == len(segments)
        assert {moment.level for moment in prediction.moments} <= {"long_8"}
        positive = [w for w in prediction.windows if w.answer != "Not Present"]
        assert bool(prediction.moments) == bool(positive)
    assert any(prediction.moments for prediction in everywhere)
    argv = flags(tiny, "long", tmp_path / "some", *more, "--grounding_path", str(dense))
    assert predict_segments.main(argv) == 0
    for prediction in read_predictions(tmp_path / "some" / "predictions.jsonl"):
        assert prediction.status == "ok"
        assert prediction.cost.segments >= min(
            8, len(dense_windows(FILMS[prediction.vid], window_s=12.0, stride_s=3.0))
        )


@pytest.mark.parametrize(
    "name, message",
    [
        ("checkpoint", "no checkpoint /"),
        ("data_path", "no annotations at"),
        ("features", "feature store not found"),
        ("text_features", "no text features at"),
    ],
)
def test_missing_input_is_one_line(tiny, tmp_path, capsys, name, message):
    argv = [*flags(tiny, "dense", tmp_path), f"--{name}", str(tmp_path / "nothing")]
    assert predict_windows.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def searched(tiny, output: Path, *more: str) -> list:
    """Predictions of `revisionllm eval run`."""
    assert main(["eval", "run", *flags(tiny, "dense", output, *more)]) == 0
    return read_predictions(output / "predictions.jsonl")


def test_run_skips_windows(tiny, dense, tmp_path, capsys):
    plan = ["--plan", "cosine > dense", "--keep", "0.3"]
    found = searched(tiny, tmp_path / "cosine", *plan)
    everywhere = read_predictions(dense / "predictions.jsonl")
    assert sum(p.cost.dense_windows for p in found) < sum(p.cost.dense_windows for p in everywhere)
    answers = {(p.qid, w.index): w.answer for p in everywhere for w in p.windows}
    for prediction in found:
        assert prediction.status == "ok" and prediction.windows
        assert all(answers[prediction.qid, w.index] == w.answer for w in prediction.windows)
    assert "plan for film_a: cosine > dense" in capsys.readouterr().err


def test_refined_moments_stay_in_the_film(tiny, tmp_path):
    for prediction in searched(tiny, tmp_path, "--refine", "2", "--limit", "4"):
        assert prediction.status == "ok"
        for moment in prediction.moments:
            assert 0 <= moment.start_s < moment.end_s <= prediction.duration_s


def test_run_exhaustive_equals_stage_one(tiny, dense, tmp_path):
    searched(tiny, tmp_path, "--plan", "exhaustive")
    assert lines(tmp_path) == lines(dense)


@pytest.mark.parametrize("order", ["coarse_to_fine", "fine_to_coarse"])
def test_run_through_long_levels(tiny, tmp_path, order):
    plan = ["--no-cosine", "--long", tiny["long"], "--plan", "long_100 > dense"]
    found = searched(tiny, tmp_path, *plan, "--order", order)
    assert sum(prediction.cost.segments for prediction in found) > 0
    for prediction in found:
        assert prediction.status == "ok" and prediction.cost.dense_windows > 0
        assert prediction.moments and prediction.moments[0].level == "dense"


@pytest.mark.parametrize("weight", ["0", "80"])
def test_what_long_levels_keep_is_bounded_on_request(tiny, tmp_path, weight):
    """A tenth of the root of the number of segments: one range, by the LLM alone or jointly."""
    plan = ["--no-cosine", "--long", tiny["long"], "--plan", "long_100 > dense"]
    keep = ["--long_keep", "0.1", "--cosine_weight", weight]
    found = searched(tiny, tmp_path, *plan, *keep)
    num_windows = {v: len(dense_windows(s, window_s=12.0, stride_s=6.0)) for v, s in FILMS.items()}
    assert all(p.status == "ok" and p.cost.segments > 0 for p in found)
    assert all(0 < p.cost.dense_windows <= num_windows[p.vid] for p in found)
    assert any(p.cost.dense_windows < num_windows[p.vid] for p in found)


def test_run_plans_for_itself_and_names_plans(tiny, tmp_path, capsys):
    searched(tiny, tmp_path, "--limit", "3")
    assert "plan for film_a: " in capsys.readouterr().err
    argv = ["eval", "run", *flags(tiny, "dense", tmp_path / "x", "--plan", "fast")]
    assert main(argv) == 2
    assert "'exhaustive'" in capsys.readouterr().err


def test_calibration_is_stored_and_used(tiny, dense, tmp_path, capsys):
    import shutil

    run = tmp_path / "dense"
    shutil.copytree(tiny["dense"], run)
    config = json.loads((run / "config.json").read_text())
    config["base"] = str(Path(tiny["dense"]).parent / "base")
    (run / "config.json").write_text(json.dumps(config))
    assert main(["eval", "calibrate", str(dense), "--checkpoint", str(run)]) == 0
    assert capsys.readouterr().out.count("ECE ") == 3
    stored = json.loads((run / "calibration.json").read_text())
    assert stored["kind"] == "logistic" and stored["names"] == sorted(PARTS)
    argv = flags(tiny | {"dense": str(run)}, "dense", tmp_path / "out")
    assert predict_windows.main(argv) == 0
    moment = read_predictions(tmp_path / "out" / "predictions.jsonl")[0].moments[0]
    total = stored["bias"] + sum(
        weight * moment.parts[name]
        for name, weight in zip(stored["names"], stored["weights"], strict=True)
    )
    assert moment.score == pytest.approx(1 / (1 + np.exp(-total)), abs=1e-6)


def test_released_convention_writes_released_logs(tiny, tmp_path):
    from revisionllm.formats.released_log import read_logs

    for command, run, more in (
        (predict_windows, "dense", []),
        (predict_segments, "long", ["--num_segments", "8"]),
    ):
        argv = flags(tiny, run, tmp_path / run, "--convention", "released", "--limit", "3", *more)
        log = tmp_path / run / "predictions_streaming_0.txt"
        assert command.main(argv) == 0
        written = log.read_text()
        rows, problems = read_logs([log])
        assert [row.query_id for row in rows] == ["q0", "q1"] and not problems  # q2's is too short
        log.write_text("".join(written.splitlines(keepends=True)[:1]))
        assert command.main(argv) == 0
        assert log.read_text() == written


def test_released_logs_skip_films_that_are_shorter_than_a_window(tiny, tmp_path, capsys):
    more = ["--convention", "released", "--score_kind", "cosine_sim", "--top_frames", "0"]
    assert predict_windows.main(flags(tiny, "dense", tmp_path, *more)) == 0
    assert "film_c is shorter than a window: 3 queries are skipped" in capsys.readouterr().err
    log = (tmp_path / "predictions_streaming_0.txt").read_text()
    assert {json.loads(line)["video_id"] for line in log.splitlines()} == {"film_a", "film_b"}


def test_a_restriction_that_plays_no_part_is_refused(tiny, tmp_path, capsys):
    more = ["--convention", "released", "--grounding_path", str(tmp_path / "nothing")]
    assert predict_segments.main(flags(tiny, "long", tmp_path / "out", *more)) == 2
    assert "--grounding_path" in capsys.readouterr().err


def test_dense_windows_are_asked_about_sentences_that_have_no_text_features(tiny, tmp_path):
    """With --skip_bad: a sentence may be too long for the CLIP, and the extractor left it out."""
    annotations = json.loads(Path(tiny["data_path"]).read_text())
    annotations["long"] = dict(annotations["q1"])
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(annotations))
    argv = flags(tiny | {"data_path": str(changed)}, "dense", tmp_path / "out", "--skip_bad")
    assert predict_windows.main(argv) == 0
    found = {p.qid: p for p in read_predictions(tmp_path / "out" / "predictions.jsonl")}
    assert all(p.status == "ok" for p in found.values()) and len(found) == 11
    assert found["long"].moments and found["long"].moments[0].parts["cosine"] == 0.0
    assert found["q1"].moments[0].parts["cosine"] != 0.0  # asked in the same batch
