"""Frozen weights in 4 bits and an optimizer in 8, as far as bitsandbytes runs on a CPU."""

from __future__ import annotations

import re

import pytest
import torch
from test_resume import Killed, assert_same_run, die_at, weights
from tiny_training import flags, losses

from revisionllm.model import quantized
from revisionllm.model.loading import load_model
from revisionllm.train.arguments import parse
from revisionllm.train.estimate import estimate
from revisionllm.train.train import main

pytest.importorskip("bitsandbytes")
NF4 = {"base_dtype": "nf4"}


def nf4_codes(weight: torch.Tensor) -> torch.Tensor:
    """NF4 by its definition: the nearest of 16 normal quantiles, scaled per 64 weights."""
    below = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    above = [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    table = torch.tensor([*below, *above])
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale).unsqueeze(-1).sub(table).abs().argmin(-1)
    return (table[nearest] * scale).reshape(weight.shape)


def test_weights_are_those_of_the_definition(trained) -> None:
    plain = load_model(trained / "dense", device="cpu")
    packed = load_model(trained / "dense", device="cpu", base_dtype="nf4")
    ours = dict(quantized.block_linears(packed.llm))
    assert ours.keys() == dict(quantized.block_linears(plain.llm)).keys() and len(ours) > 6
    for name, module in quantized.block_linears(plain.llm):
        x = torch.eye(module.in_features)
        got = ours[name](x).T
        if module.in_features % quantized.BLOCK:
            torch.testing.assert_close(got, module.weight)
            continue
        # scales are rounded to 8 bits, which double quantisation allows itself
        bound = 0.02 * module.weight.abs().max()
        torch.testing.assert_close(got, nf4_codes(module.weight), atol=float(bound), rtol=0)
        assert ours[name].weight.numel() == module.weight.numel() / 2  # bytes
    assert packed.llm.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("stage", ["dense", "long"])
def test_loss_stays_close_and_falls(trained, tmp_path, stage) -> None:
    settings = {"max_steps": 12, "lora_dropout": 0}
    argv = flags(trained, stage, output_dir=tmp_path / "plain", **settings)
    assert main(argv) == 0
    assert main(flags(trained, stage, output_dir=tmp_path / "nf4", **settings, **NF4)) == 0
    plain, packed = losses(tmp_path / "plain"), losses(tmp_path / "nf4")
    assert packed[-1] < packed[0]
    assert packed == pytest.approx(plain, rel=0.05)
    model = load_model(tmp_path / "nf4", device="cpu")  # a run as any: onto whole weights
    assert model.config.stage == stage


def test_eight_bits_of_optimizer(trained, tmp_path, monkeypatch) -> None:
    """Close to AdamW's run; killed and continued it is the same run."""
    # states of less than 4096 values stay in 32 bits
    settings = {"max_steps": 6, "save_steps": 2, "lora_rank": 64, "lora_dropout": 0}
    settings |= {"learning_rate": 1e-3}
    for name in ("adamw", "adamw_8bit"):
        argv = flags(trained, "dense", output_dir=tmp_path / name, optimizer=name, **settings)
        assert main(argv) == 0
    assert losses(tmp_path / "adamw_8bit") == pytest.approx(losses(tmp_path / "adamw"), rel=0.02)
    ours, theirs = weights(tmp_path / "adamw_8bit"), weights(tmp_path / "adamw")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    argv = flags(trained, "dense", output_dir=tmp_path / "run", optimizer="adamw_8bit", **settings)
    with monkeypatch.context() as patched:
        die_at(patched, 5)
        with pytest.raises(Killed):
            main(argv)
    assert main(argv) == 0
    assert_same_run(tmp_path / "run", tmp_path / "adamw_8bit")


def test_refusals(trained, tmp_path, capsys, monkeypatch) -> None:
    zero3 = {"deepspeed": "scripts/zero3.json"}
    assert main(flags(trained, "dense", output_dir=tmp_path / "run", **NF4, **zero3)) == 2
    assert "4-bit weights are not spread over devices" in capsys.readouterr().err
    monkeypatch.setattr("revisionllm.train.arguments.is_there", lambda: False)
    assert main(flags(trained, "dense", output_dir=tmp_path / "run", **NF4)) == 2
    assert "need bitsandbytes; `pip install 'revisionllm[nf4]'`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*flags(trained, "dense", output_dir=tmp_path / "run", **NF4), "--estimate"]) == 0


def test_estimate_counts_four_bits() -> None:
    """7B: 6.48 G weights of the blocks in 4.127 bits, the rest in 16."""
    text = estimate(parse(["--dataset", "mad", "--base_dtype", "nf4", "--optimizer", "adamw_8bit"]))
    blocks, rest = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 32000 * 4096
    size = (blocks * 4.127 / 8 + 2 * rest) / 2**30
    told = float(re.search(r"weights: ([\d.]+) GiB frozen", text)[1])
    assert told == pytest.approx(size, rel=0.01)  # norms and projector besides
    assert "RTX 4090: none" in text
