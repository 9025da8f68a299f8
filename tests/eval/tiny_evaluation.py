"""A tiny evaluation on disk: two random runs, three films, their features and annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.data.stores.feature_writers import write_features, write_lmdb
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.loading import save_run

BASE = Path(__file__).resolve().parents[1] / "assets" / "model" / "ckpt_base"
D, FPS = 16, 2.0
FILMS = {"film_a": 61.0, "film_b": 30.0, "film_c": 8.0}
SENTENCES = ["a man opens a door", "the dog runs.", "She sees a car", "it walks", "a tall hat"]


def tiny_llm() -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def write_run(folder: Path, base: Path, *, long: bool) -> Path:
    """A random run: dense, or long with a small clip adapter."""
    options = {"num_heads": 2, "ffn_dim": 24} if long else {}
    kind = ("clip", D, 32, "segment") if long else ("linear", D, 32, "frames")
    adapter = AdapterConfig(*kind, options)
    config = RunConfig(
        base=str(base),
        adapter=adapter,
        stage="long" if long else "dense",
        question="video" if long else "frames",
        window_s=12.0,
        stride_s=6.0,
        segment_stride_s=3.0,
        frames_per_window=8,
        feature_fps=FPS,
    )
    torch.manual_seed(6 + long)
    module = build_adapter(adapter).eval()
    if long:
        torch.nn.init.normal_(module.mm_projector.weight, std=1.0)
    save_run(GroundingModel(tiny_llm(), module, load_tokenizer(str(BASE)), config), folder)
    return folder


def write_evaluation(folder: Path) -> dict[str, str]:
    """Everything the predicting commands read, as their flags' values."""
    import shutil

    base = folder / "base"
    tiny_llm().save_pretrained(base)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(BASE / name, base / name)
    rng = np.random.default_rng(0)
    rows = {
        vid: rng.standard_normal((round(seconds * FPS), D)).astype(np.float32)
        for vid, seconds in FILMS.items()
    }
    write_features(
        folder / "features",
        ((vid, array, {"feature_fps": FPS}) for vid, array in rows.items()),
        store_format="npy",
    )
    annotations, texts = {}, []
    for number in range(10):
        vid = list(FILMS)[number % 3]
        qid, sentence = f"q{number}", SENTENCES[number % len(SENTENCES)]
        annotations[qid] = {"movie": vid, "sentence": sentence, "timestamps": [1.0, 5.0]}
        annotations[qid]["movie_duration"] = FILMS[vid]
        words = rng.standard_normal((4, D)).astype(np.float32)
        texts.append((qid, {"token_features": words, "cls_features": words.mean(0)}))
    (folder / "test.json").write_text(json.dumps(annotations))
    write_lmdb(folder / "texts", texts)
    return {
        "dense": str(write_run(folder / "dense", base, long=False)),
        "long": str(write_run(folder / "long", base, long=True)),
        "data_path": str(folder / "test.json"),
        "features": str(folder / "features"),
        "text_features": str(folder / "texts"),
    }
