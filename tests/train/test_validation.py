"""Looking at validation data while training: what is measured, what it costs, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_resume import Killed, die_at, start
from tiny_training import flags, losses

from revisionllm.cli import main as revisionllm
from revisionllm.eval.predict_windows import main as predict_windows
from revisionllm.formats.annotations import Annotation
from revisionllm.train import validation
from revisionllm.train.train import main
from revisionllm.train.validation import fixed_part, hits, holds_middle, merit

SETTINGS = {"max_steps": 5, "save_steps": 2, "val_queries": 7}


def looks(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


def train(world: Path, stage: str, out: Path, **changes) -> Path:
    values = SETTINGS | {"val_data_path": world / "annotations.json", "output_dir": out} | changes
    values = {name: value for name, value in values.items() if value is not None}
    assert main(flags(world, stage, **values)) == 0
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = load_file(run / "adapter.safetensors")
    if (run / "lora").is_dir():
        found |= load_file(run / "lora" / "adapter_model.safetensors")
    return found


@pytest.mark.parametrize("stage", ["dense", "sparse", "long"])
def test_looks_change_nothing_of_what_is_learned(trained, tmp_path, stage) -> None:
    run = train(trained, stage, tmp_path / "run", val_steps=2)
    without = train(trained, stage, tmp_path / "no", val_data_path=None, val_queries=None)
    assert losses(run) == losses(without)
    ours, theirs = weights(run), weights(without)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    found = looks(run)
    assert [record["step"] for record in found] == [2, 4, 5]
    recall = {"dense": "R1@0.5", "sparse": None, "long": "R1@middle"}[stage]
    assert all((recall in record) == (recall is not None) for record in found if recall)
    assert all(record["loss_present"] > 0 and record["loss_not_present"] > 0 for record in found)


def test_best_run_is_that_of_its_step_and_answers(trained, tmp_path, capsys) -> None:
    run = train(trained, "dense", tmp_path / "run", val_steps=1)
    found = looks(run)
    best = max(found, key=lambda r: (merit(r), -r["step"]))
    assert [r["step"] for r in found if r["is_best"]][-1] == best["step"]
    kept = json.loads((run / "best" / "validation.json").read_text())
    assert kept["step"] == best["step"]
    same = train(trained, "dense", tmp_path / "until", max_steps=5, val_data_path=None,
                 val_queries=None, save_steps=best["step"])  # fmt: skip
    if best["step"] < 5:
        taken = tmp_path / "taken"
        words = ["run", "from-checkpoint", str(same / f"checkpoint-{best['step']}")]
        assert revisionllm([*words, "--to", str(taken)]) == 0
        same = taken
    ours, theirs = weights(run / "best"), weights(same)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    told = (run / "log.txt").read_text()
    assert "validation every 1 steps: 7 queries in 1 films, 14 questions for the loss, " in told
    assert "the best run is kept in best/, 0." in told


def test_searches_are_those_of_the_evaluation(trained, tmp_path, monkeypatch) -> None:
    """Moments of the last look, and of the run that was written then."""
    searched = {}

    def keep(config, predictions):
        searched.update({p.qid: p for p in predictions})
        return hits(config, predictions)

    monkeypatch.setattr(validation, "hits", keep)
    run = train(trained, "dense", tmp_path / "run", val_queries=100, val_steps=5)
    words = ["--checkpoint", run, "--data_path", trained / "annotations.json", "--features"]
    words += [trained / "features", "--text_features", "none", "--device", "cpu"]
    assert predict_windows([*map(str, words), "--output", str(tmp_path / "predictions")]) == 0
    lines = (tmp_path / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(searched) == 24
    for record in map(json.loads, lines):
        ours = searched[record["qid"]]
        assert [list(span) for span in ours.gt] == record["gt"]
        for moment, other in zip(ours.moments, record["moments"], strict=True):
            assert (moment.start_s, moment.end_s) == (other["start_s"], other["end_s"])
            assert moment.score == pytest.approx(other["score"], abs=1e-5)


def test_hits_of_moments_and_of_ranges() -> None:
    def moments(*spans):
        return [SimpleNamespace(start_s=a, end_s=b) for a, b in spans]

    predictions = [
        SimpleNamespace(gt=[(10.0, 20.0)], moments=moments((0, 40), (10, 19), (0, 1))),
        SimpleNamespace(gt=[(0.0, 1.0), (10.0, 20.0)], moments=moments((9, 20))),
        SimpleNamespace(gt=[(10.0, 20.0)], moments=[]),
    ]
    dense, long = SimpleNamespace(stage="dense"), SimpleNamespace(stage="long")
    assert hits(dense, predictions).tolist() == [[False, True], [True, True], [False, False]]
    assert hits(long, predictions).tolist() == [[True, True], [True, True], [False, False]]


def test_killed_and_continued_looks_are_the_same(trained, tmp_path, monkeypatch) -> None:
    whole = train(trained, "dense", tmp_path / "whole", val_steps=1, max_steps=6)
    with monkeypatch.context() as patched:
        die_at(patched, 5)
        with pytest.raises(Killed):
            train(trained, "dense", tmp_path / "run", val_steps=1, max_steps=6)
    run = train(trained, "dense", tmp_path / "run", val_steps=1, max_steps=6)
    ours, theirs = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in looks(it)]
        for it in (run, whole)
    )
    assert [r["step"] for r in ours] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_data_path": "nowhere.json"}, "--val_data_path nowhere.json is not there"),
        ({"val_data_path": None, "val_steps": 3}, "need --val_data_path"),
        ({"val_queries": 0}, "--val_queries must be at least 1"),
    ],
)
def test_wrong_flags_are_told_before_anything(trained, tmp_path, capsys, changes, said) -> None:
    values = {"val_data_path": trained / "annotations.json"} | changes
    values = {name: value for name, value in values.items() if value is not None}
    assert main(flags(trained, "dense", output_dir=tmp_path / "run", **values)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validation_features_of_another_width(trained, tmp_path, capsys) -> None:
    shutil.copytree(trained / "features", tmp_path / "features")
    for file in (tmp_path / "features").glob("*.npy"):
        np.save(file, np.load(file)[:, :8])
    words = {"val_data_path": trained / "annotations.json", "val_features": tmp_path / "features"}
    assert main(flags(trained, "dense", output_dir=tmp_path / "run", **words)) == 2
    assert "8 wide, the adapter reads 16" in capsys.readouterr().err


def test_part_and_middles() -> None:
    made = [Annotation(f"q{n}", f"f{n % 3}", "x", 0.0, 1.0, 10.0) for n in range(9)]
    part = fixed_part(made, 4)
    assert part == fixed_part(made[::-1][::-1], 4)
    assert len({a.video_id for a in part}) == 2
    ranges = np.array([[0.0, 10.0], [20.0, 30.0], [4.0, 5.0]])
    assert holds_middle(ranges, np.array([[8.0, 12.0]])).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["none", "scripts/zero2.json", "scripts/zero3.json"])
def test_two_ranks_look_as_one(trained, tmp_path, zero) -> None:
    """The same losses and recall, however questions are spread; ZeRO-3 has no search."""
    settings = {"max_steps": 2, "val_steps": 1, "val_queries": 7, "lora_dropout": 0}
    settings |= {"val_data_path": trained / "annotations.json"}
    cases = {"one": (1, 8, "none"), "two": (2, 4, zero)}
    for name, (processes, per_device, deepspeed) in cases.items():
        words = {"per_device_batch_size": per_device, "deepspeed": deepspeed}
        argv = flags(trained, "dense", output_dir=tmp_path / name, **settings, **words)
        assert start(argv, processes=processes).wait() == 0
    for ours, theirs in zip(looks(tmp_path / "two"), looks(tmp_path / "one"), strict=True):
        for name in ("loss", "loss_present", "loss_not_present"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
        if "zero3" not in zero:
            assert ours["R1@0.5"] == theirs["R1@0.5"]
    assert (tmp_path / "two" / "best" / "config.json").is_file()
