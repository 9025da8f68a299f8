"""Training on every family of bases: resumed equals undisturbed, DeepSpeed equals one process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from model_assets import save_base
from test_families import FAMILIES, llm_of
from tiny_tokenizers import tiny_tokenizer
from tiny_training import ROOT, flags, losses
from transformers import AutoModelForCausalLM

from revisionllm.model.loading import load_model
from revisionllm.train.losses import QuestionLosses
from revisionllm.train.train import main

ALWAYS = ("Llama 3", "Qwen 3")
PARAMS = [
    pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in FAMILIES
]


def base_of(family: str, folder):
    """A base with the kind of tokenizer that the family has."""
    if not family.startswith("Qwen"):
        return save_base(llm_of(family), folder)
    tokenizer = tiny_tokenizer("qwen")
    config = llm_of(family).config
    config.vocab_size, config.bos_token_id = len(tokenizer), None
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words_of(world, base, run, **changes) -> list[str]:
    settings = {"init_lora": "", "lora_init": "new", "base": base, "output_dir": run}
    settings |= {"max_steps": 4, "save_steps": 2, "lora_dropout": 0}
    return [*flags(world, "dense", **settings | changes), "--train_projector"]


def trained_state(run) -> dict:
    model = load_model(run, device="cpu", lora_mode="frozen")
    return {n: p for n, p in model.named_parameters() if ".lora_" in n or "projector" in n}


@pytest.mark.parametrize("family", PARAMS)
def test_a_killed_training_ends_as_an_undisturbed_one(world, tmp_path, monkeypatch, family):
    base = base_of(family, tmp_path / "base")
    assert main(words_of(world, base, tmp_path / "whole")) == 0
    calls, forward = [], QuestionLosses.forward

    def stopping(self, **batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, **batch)

    with monkeypatch.context() as patch:
        patch.setattr(QuestionLosses, "forward", stopping)
        assert main(words_of(world, base, tmp_path / "pieces")) == 130
    assert main(words_of(world, base, tmp_path / "pieces")) == 0
    whole, pieces = (trained_state(tmp_path / name) for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_deepspeed_steps_equal_one_process(world, tmp_path, family, zero):
    pytest.importorskip("deepspeed")
    base = base_of(family, tmp_path / "base")
    assert main(words_of(world, base, tmp_path / "plain")) == 0
    words = words_of(world, base, tmp_path / "zero", deepspeed=f"scripts/{zero}.json")
    words += ["--per_device_batch_size", "4"]
    done = subprocess.run(
        [
            *(sys.executable, "revisionllm/train/launch.py", "--nproc_per_node", "2"),
            *("revisionllm/train/train.py", *words),
        ],
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), abs=2e-3)
