"""`revisionllm run export`: the exported folder answers as the run does."""

from __future__ import annotations

import pytest
import torch
from model_assets import dense_images, released
from transformers import AutoModelForCausalLM, AutoTokenizer

from revisionllm.cli import main
from revisionllm.model.loading import load_model, save_run

IDS = torch.tensor([[1, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a LoRA on a base and a calibration."""
    folder = tmp_path_factory.mktemp("export") / "my_run"
    model = released("ckpt_dense", merge_dtype="float32")
    save_run(model, folder)
    (folder / "calibration.json").write_text('{"kind": "logistic", "parts": [], "weights": [0]}')
    return folder


@torch.no_grad()
def test_the_export_loads_everywhere_and_answers_alike(run, tmp_path, capsys):
    target = tmp_path / "shared"
    assert main(["run", "export", str(run), "--to", str(target), "--dtype", "float32"]) == 0
    assert "wrote" in capsys.readouterr().out
    ours = load_model(run, device="cpu", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(target).eval()
    torch.testing.assert_close(plain(IDS).logits, ours.llm(IDS).logits)
    tokens = AutoTokenizer.from_pretrained(target)("a man")["input_ids"]
    assert tokens == ours.tokenizer("a man")["input_ids"]
    again = load_model(target / "run", device="cpu", dtype="float32")
    assert again.config.lora == [] and again.config.base == str(target.resolve())
    frames = dense_images()[:1]
    torch.testing.assert_close(again.embed_frames(frames), ours.embed_frames(frames))
    torch.testing.assert_close(again.llm(IDS).logits, ours.llm(IDS).logits)
    assert (target / "run" / "calibration.json").is_file()
    card = (target / "README.md").read_text()
    assert "llama" in card and str(run.parent) not in card
    moved = target.rename(tmp_path / "elsewhere")  # paths inside are relative
    load_model(moved / "run", device="cpu", dtype="float32")


def test_nothing_is_replaced(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["run", "export", str(run), "--to", str(tmp_path / "there")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["run", "export", str(tmp_path / "none"), "--to", str(tmp_path / "x")]) == 2
    assert "no run " in capsys.readouterr().err and not (tmp_path / "x").exists()
