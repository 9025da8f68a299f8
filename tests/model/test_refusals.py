"""Bases, CLIPs and LoRAs that cannot be used: one line, at once, and none of their code is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_assets import ASSETS
from safetensors.torch import load_file, save_file

from revisionllm.errors import UserError
from revisionllm.model.base import llm_config, load_base, load_tokenizer
from revisionllm.model.clip import load_clip
from revisionllm.model.devices import checked_device, choose_device
from revisionllm.model.lora import load_lora

DEMO_CLIP = Path(__file__).resolve().parents[2] / "checkpoints" / "demo" / "clip"
RUNS = 'open("{place}", "w").write("was run")\nclass Config: pass\n'


@pytest.fixture
def base(tmp_path):
    shutil.copytree(ASSETS / "ckpt_base", tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_a_base_is_never_run(base, tmp_path, monkeypatch, name):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    place = tmp_path / "was_run"
    (base / "own.py").write_text(RUNS.format(place=place))
    document = json.loads((base / name).read_text())
    classes = {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Config", None]}
    (base / name).write_text(json.dumps(document | {"model_type": "own", "auto_map": classes}))
    with pytest.raises(UserError, match="code of its own"):
        llm_config(str(base))
    with pytest.raises(UserError, match="code of its own"):
        load_tokenizer(str(base))
    assert not place.exists()


def test_code_of_a_clip_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    shutil.copytree(DEMO_CLIP, tmp_path / "clip")
    path = tmp_path / "clip" / "tokenizer_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"auto_map": {"AutoTokenizer": ["own.T", None]}}))
    with pytest.raises(UserError, match="code of its own"):
        load_clip(str(tmp_path / "clip"), device="cpu")


def test_a_base_without_its_tokenizer_is_refused(base):
    """transformers makes up a tokenizer of three tokens, which trains on empty prompts."""
    (base / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"no fitting tokenizer|no tokenizer in base"):
        load_tokenizer(str(base))


def test_a_tokenizer_of_another_base_is_refused(base):
    document = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(document | {"vocab_size": 300}))
    with pytest.raises(UserError, match="512 tokens for 300 embedding rows"):
        load_tokenizer(str(base))
    (base / "config.json").write_text(json.dumps(document | {"bos_token_id": 7}))
    with pytest.raises(UserError, match="BOS is token 1, the config says 7"):
        load_tokenizer(str(base))


def test_the_tokenizers_that_ship_fit():
    for folder in (ASSETS / "ckpt_base", DEMO_CLIP.parent / "base"):
        assert load_tokenizer(str(folder)).pad_token_id is not None


@pytest.mark.parametrize("name", ["cuda:9", "xyz", "cuda:-1", ""])
def test_devices_that_are_not_here(name):
    with pytest.raises(UserError, match="device"):
        choose_device(name)
    with pytest.raises(UserError, match="device"):
        load_clip(str(DEMO_CLIP), device=name)
    assert checked_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        (lambda name: name.replace("lora_A.", "lora_A.default."), "save_pretrained"),
        (lambda name: f"module.{name}", "'module.'"),
    ],
)
def test_names_of_a_training_wrapper_are_explained(base, tmp_path, change, cure):
    lora = tmp_path / "lora"
    shutil.copytree(ASSETS / "ckpt_dense", lora)
    path = lora / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)
    llm = load_base(str(base), dtype=torch.float32)
    with pytest.raises(UserError) as caught:
        load_lora(llm, lora)
    assert cure in str(caught.value)
