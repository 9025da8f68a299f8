"""Published-format checkpoints and measured numbers that the model and parity tests share.

The files in tests/assets/model were measured by running the released code (commit 358491f) on tiny
weights; the rules that hold for them (fp16 merge, fp32 RoPE, greedy) are those of `load_model`'s
defaults for published checkpoints.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.model.loading import load_model

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "model"
BASE = ASSETS / "ckpt_base"
PROJECTOR = ASSETS / "ckpt_mm_projector" / "mm_projector.bin"
QUESTION = "During which frames can we see a man opens a door?"


@cache
def numbers(name: str) -> dict[str, torch.Tensor]:
    """The arrays of `<name>.npz`; numeric ones as tensors, half precision as float32."""
    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in arrays.files}
    return {
        key: torch.from_numpy(np.asarray(a, np.float32 if a.dtype == np.float16 else a.dtype))
        for key, a in found.items()
        if a.dtype.kind in "fib"
    }


def texts(name: str, key: str) -> list[str]:
    """An array of strings of `<name>.npz`."""
    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as arrays:
        return [str(text) for text in arrays[key]]


def manifest(name: str) -> dict[str, dict[str, dict]]:
    """File -> tensor name -> shape, dtype of a checkpoint, of the ones without files here too."""
    return json.loads((ASSETS / "ckpt_manifest.json").read_text())[name]


@cache
def dense_images() -> torch.Tensor:
    """[3, 250, 768]."""
    return numbers("parity_inputs")["dense_images"]


@cache
def segment_images(num_segments: int) -> torch.Tensor:
    """[1, S, 250, 768]; images[0, v, t, d] = hier_base[(v * 250 + t) * 7 + d]."""
    flat = numbers("parity_inputs")["hier_base"]
    v, t, d = np.ogrid[:num_segments, :250, :768]
    index = torch.from_numpy((v * 250 + t) * 7 + d)
    return flat[index % len(flat)][None]


def query(batch: int) -> dict[str, torch.Tensor]:
    """Word features and mask of one or three queries, as keyword arguments of the model."""
    found = numbers("parity_inputs")
    return {
        "query_features": found[f"query_feats_b{batch}"],
        "query_mask": found[f"query_mask_b{batch}"],
    }


def released(name: str, **overrides):
    """Load a published-format checkpoint on the CPU in float32; dense ones get the projector."""
    settings = {"device": "cpu", "dtype": "float32", "base": str(BASE)} | overrides
    if name == "ckpt_base":
        return load_model(PROJECTOR, **settings)
    if name == "ckpt_dense":
        settings.setdefault("adapter_file", PROJECTOR)
    return load_model(ASSETS / name, **settings)


def tiny_llm(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random LLaMA with the vocabulary of the base's tokenizer."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def save_base(llm: LlamaForCausalLM, folder: Path) -> Path:
    """A local Hugging Face folder with this LLM and the base's tokenizer."""
    llm.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(BASE / name, folder / name)
    return folder
