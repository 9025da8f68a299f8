"""A world, a base and a run so small that a stage trains in seconds on one core."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from model_assets import save_base, tiny_llm

from revisionllm.data.stores.feature_writers import write_lmdb
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.loading import save_run

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, FPS, FILM_S, NUM_FILMS, EVENTS = 16, 64, 5.0, 200.0, 2, 12
DATASETS = ("mad", "chapters")


def write_world(folder: Path) -> Path:
    """Random features, word features and MAD-format annotations; all stages can be asked."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    records = {}
    for film in range(NUM_FILMS):
        features = rng.normal(size=(round(FILM_S * FPS), WIDTH)).astype(np.float32)
        np.save(folder / "features" / f"film{film}.npy", features)
        for number in range(EVENTS):
            start_s = 2 + number * (FILM_S - 20) / EVENTS
            records[f"q{film}_{number}"] = {
                "movie": f"film{film}",
                "sentence": f"A {['red', 'blue', 'green'][number % 3]} thing {number} moves.",
                "timestamps": [start_s, start_s + 4.0],
                "movie_duration": FILM_S,
            }
    (folder / "annotations.json").write_text(json.dumps(records))
    words = rng.normal(size=(len(records), 4, WIDTH)).astype(np.float32)
    rows = zip(records, words, strict=True)
    write_lmdb(
        folder / "text", ((key, {"token_features": w, "cls_features": w[0]}) for key, w in rows)
    )
    return folder


def write_start(folder: Path) -> Path:
    """A run with a tiny random LLaMA and a linear projector, as a dense stage starts from."""
    torch.manual_seed(1)
    llm = tiny_llm(
        hidden_size=HIDDEN,
        intermediate_size=96,
        max_position_embeddings=1024,
        initializer_range=0.05,
    )
    base = save_base(llm, folder / "base")
    adapter = AdapterConfig(feature_dim=WIDTH, hidden_size=HIDDEN)
    config = RunConfig(base=str(base), adapter=adapter, feature_fps=FPS)
    save_run(
        GroundingModel(llm, build_adapter(adapter), load_tokenizer(str(base)), config),
        folder / "start",
    )
    return folder


def flags(world: Path, stage: str, dataset: str = "mad", **changes) -> list[str]:
    """Command line of one stage; later stages start from the earlier ones' default places."""
    values = {
        "dataset": dataset,
        "stage": stage,
        "data_path": world / "annotations.json",
        "features": world / "features",
        "window_s": 20.0,
        "frames_per_window": 20,
        "feature_fps": FPS,
        "lora_rank": 4,
        "lora_alpha": 8,
        "global_batch_size": 8,
        "per_device_batch_size": 8,
        "learning_rate": 1e-2,
        "max_steps": 2,
        "logging_steps": 1,
        "num_workers": 0,
        "deepspeed": "none",
        "device": "cpu",
        "output_dir": world / f"{stage}",
        "clip": "ViT-L-14",
        "min_duration_s": 0,
    }
    if stage == "align":
        values |= {"base": world / "base", "data_path": world / "captions.jsonl"}
    elif stage == "dense":
        values |= {"init_lora": world / "start", "lora_init": "new"}
        values |= {"base": "", "init_projector": ""}  # the start has both
    else:
        values |= {"init_lora": world / "dense", "text_features": world / "text"}
    if stage == "long":
        values |= {"init_adapter": world / "sparse", "num_segments": 8, "lora_init": "continue"}
    values |= changes
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return words


def metrics(run: Path) -> list[dict]:
    """What a run logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """Loss per step."""
    return [record["loss"] for record in metrics(run)]
