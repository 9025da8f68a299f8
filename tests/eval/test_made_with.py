"""Predictions know what made them: no run goes on with, or scores, another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_evaluation import write_evaluation

from revisionllm.eval import metric_retrieval_forward, predict_segments, predict_windows
from revisionllm.model.tensors import read_tensors, write_tensors
from revisionllm.records.predictions import read_predictions


@pytest.fixture
def tiny(tmp_path):
    return write_evaluation(tmp_path)


def predict(tiny, *more: str, command=predict_windows, run: str = "dense") -> int:
    shared = {name: tiny[name] for name in ("data_path", "features", "text_features")}
    values = {"checkpoint": tiny[run], "device": "cpu", **shared}
    flags = [part for name, value in values.items() for part in (f"--{name}", value)]
    return command.main([*flags, *more])


def stage(tiny, name: str, run: str = "dense") -> Path:
    return Path(tiny[run]) / "predictions" / name


def train_on(run: str) -> None:
    """What another training would leave in the same place."""
    path = Path(run) / "adapter.safetensors"
    tensors = read_tensors(path)
    write_tensors(
        {name: tensor + 0.5 * torch.ones_like(tensor) for name, tensor in tensors.items()}, path
    )


def test_another_model_is_refused_with_the_command_that_starts_anew(tiny, capsys):
    assert predict(tiny) == 0
    first = (stage(tiny, "dense") / "predictions.jsonl").read_text()
    assert predict(tiny) == 0  # the same: nothing to do
    train_on(tiny["dense"])
    capsys.readouterr()
    assert predict(tiny) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    folder = stage(tiny, "dense")
    assert "adapter of --checkpoint was" in error and f"mv {folder} {folder}.1" in error
    assert (folder / "predictions.jsonl").read_text() == first
    folder.rename(f"{folder}.1")
    assert predict(tiny) == 0
    assert (folder / "predictions.jsonl").read_text() != first


@pytest.mark.parametrize("flag", [["--explore", "0.5"], ["--top_k", "2"], ["--stride_s", "4"]])
def test_another_flag_is_refused(tiny, capsys, flag):
    assert predict(tiny, "--limit", "2") == 0
    assert predict(tiny, *flag) == 2
    assert flag[0] in capsys.readouterr().err.strip().splitlines()[-1]


def test_flags_that_change_no_answer_are_free(tiny):
    assert predict(tiny, "--limit", "2") == 0
    assert predict(tiny, "--queries_per_batch", "3", "--budget_mb", "64", "--retry_failed") == 0
    assert len(read_predictions(stage(tiny, "dense") / "predictions.jsonl")) == 10


def test_a_new_calibration_and_another_base_are_seen(tiny, capsys):
    assert predict(tiny, "--limit", "2") == 0
    calibration = {"kind": "logistic", "names": ["presence"], "weights": [1.0], "bias": 0.0}
    path = Path(tiny["dense"]) / "calibration.json"
    path.write_text(json.dumps(calibration))
    assert predict(tiny) == 2
    assert "calibration of --checkpoint" in capsys.readouterr().err
    path.unlink()
    weights = Path(tiny["dense"]).parent / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert predict(tiny) == 2
    assert "base of --checkpoint" in capsys.readouterr().err


def other_queries(tiny, name: str) -> dict[str, str]:
    document = json.loads(Path(tiny["data_path"]).read_text())
    changed = {f"v{qid}": record | {"timestamps": [2.0, 4.0]} for qid, record in document.items()}
    path = Path(tiny["data_path"]).with_name(name)
    path.write_text(json.dumps(changed))
    return tiny | {"data_path": str(path), "text_features": "none"}


def test_other_annotations_get_a_folder_of_their_own_and_are_found(tiny, capsys):
    validation = other_queries(tiny, "val.json")
    assert predict(tiny, "--text_features", "none") == 0
    assert predict(validation) == 0
    held = {p.qid for p in read_predictions(stage(tiny, "dense") / "predictions.jsonl")}
    assert held == {f"q{n}" for n in range(10)}
    held = {p.qid for p in read_predictions(stage(tiny, "dense-val") / "predictions.jsonl")}
    assert held == {f"vq{n}" for n in range(10)}

    segments = ["--num_segments", "8", "--text_features"]
    assert (
        predict(tiny, *segments, tiny["text_features"], command=predict_segments, run="long") == 0
    )
    long_run = stage(tiny, "long_8", "long")
    shutil.copytree(long_run, stage(tiny, "long_100", "long"))
    shutil.copytree(long_run, stage(tiny, "long_33", "long"))
    paths = ["--grounding_path", tiny["dense"], "--retrieval_path", tiny["long"]]
    paths += ["--retrieval_path2", tiny["long"]]
    capsys.readouterr()
    assert metric_retrieval_forward.main([*paths, "--data_path", validation["data_path"]]) == 0
    assert "missing queries: 10" in capsys.readouterr().out  # retrieval has those of test.json
    assert (stage(tiny, "dense-val") / "metrics.json").exists()
    assert metric_retrieval_forward.main([*paths, "--data_path", tiny["data_path"]]) == 0
    assert "missing queries: 0" in capsys.readouterr().out
    assert metric_retrieval_forward.main(paths) == 0
    assert "dense-val" in capsys.readouterr().err  # which of both is taken is said


def test_annotations_that_changed_under_their_name_are_refused(tiny, capsys):
    assert predict(tiny) == 0
    path = Path(tiny["data_path"])
    document = json.loads(path.read_text())
    document["q4"]["sentence"] = "a woman sings"
    path.write_text(json.dumps(document))
    capsys.readouterr()
    assert predict(tiny) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'q4' had another film, sentence or duration" in error and "mv " in error


def test_released_logs_know_what_made_them(tiny, capsys):
    more = ["--convention", "released", "--limit", "2"]
    assert predict(tiny, *more) == 0
    assert predict(tiny, *more) == 0
    train_on(tiny["dense"])
    assert predict(tiny, *more) == 2
    assert "adapter of --checkpoint" in capsys.readouterr().err
