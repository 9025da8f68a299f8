"""`revisionllm convert-checkpoint`: the run folder gives the published model's logits."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_assets import ASSETS, BASE, PROJECTOR, dense_images, query, released

from revisionllm.cli import main
from revisionllm.model.loading import load_model

IDS = torch.tensor([[1, 5, -200, 6, 7]])


def convert(*words):
    return main(["convert-checkpoint", *map(str, words), "--base", str(BASE)])


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ckpt_dense", {"adapter_file": PROJECTOR}, {}),
        ("ckpt_sparse", {"stage": "sparse"}, query(1)),
        ("ckpt_stage2_cls", {"stage": "long"}, query(1)),
    ],
)
@torch.no_grad()
def test_same_logits_and_every_tensor_reported(tmp_path, capsys, name, settings, words):
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    assert convert(ASSETS / name, tmp_path / "run", *flags) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    images = dense_images()[:1, :20]
    converted = load_model(tmp_path / "run", device="cpu", dtype="float32")
    wanted = released(name, **settings)
    assert torch.equal(converted(IDS, images, **words).logits, wanted(IDS, images, **words).logits)
    num_adapter = len(converted.projector.state_dict())
    assert len(lines) == 1 + 28 + num_adapter
    assert lines[0] == ["file", "tensor", "shape", "dtype", "result"]


@torch.no_grad()
def test_stack_of_two_loras(tmp_path):
    loras = [ASSETS / "ckpt_dense", ASSETS / "ckpt_stage2_cls"]
    flags = ["--stage", "long", "--lora", *loras]
    assert convert(loras[1], tmp_path / "run", *flags) == 0
    shutil.move(tmp_path / "run", tmp_path / "moved")  # it needs nothing but its base
    images = dense_images()[:1, :20]
    found = load_model(tmp_path / "moved", device="cpu", dtype="float32")
    wanted = released("ckpt_stage2_cls", stage="long", lora=loras)
    assert torch.equal(
        found(IDS, images, **query(1)).logits, wanted(IDS, images, **query(1)).logits
    )


def test_numbers_of_the_launcher_can_be_given(tmp_path):
    flags = ["--adapter_file", PROJECTOR, "--window_s", "500", "--feature_fps", "2"]
    assert convert(ASSETS / "ckpt_dense", tmp_path, *flags) == 0
    config = load_model(tmp_path, device="cpu").config
    assert (config.window_s, config.feature_fps) == (500.0, 2.0)


def test_nothing_is_overwritten_and_runs_are_not_converted(tmp_path, capsys):
    flags = ["--adapter_file", PROJECTOR]
    assert convert(ASSETS / "ckpt_dense", tmp_path / "run", *flags) == 0
    assert convert(ASSETS / "ckpt_dense", tmp_path / "run", *flags) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert convert(tmp_path / "run", tmp_path / "other") == 2
    assert "is a run folder already" in capsys.readouterr().err


def test_what_is_missing_is_one_line(tmp_path, capsys):
    assert convert(ASSETS / "ckpt_dense", tmp_path / "run") == 2
    assert "give adapter_file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
