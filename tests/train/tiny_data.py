"""A small data set whose features tell their own time: row t of a film holds t in every column."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from revisionllm.data.stores.feature_writers import write_lmdb
from revisionllm.train.dataset import GroundingDataset, build_dataset
from revisionllm.train.samples import SampleSpec

FPS, WIDTH, WINDOW_S, FRAMES = 5.0, 4, 60.0, 100
FILMS_S = {"long_film": 1800.0, "film": 600.0, "short": 45.0}


def spec(stage: str = "dense", **changes) -> SampleSpec:
    values = {
        "stage": stage,
        "question": {"dense": "frames", "sparse": "yes_no", "long": "video"}[stage],
        "window_s": WINDOW_S,
        "frames_per_window": FRAMES,
        "feature_fps": FPS,
        "adapter_output": "frames" if stage == "dense" else "segment",
        "needs_text": stage != "dense",
        "num_segments": 20,
        "segment_stride_s": 12.0,
    }
    return SampleSpec(**(values | changes))


def events(seed: int = 0, per_film: int = 60) -> dict[str, dict]:
    """MAD-format annotations; some events are longer than a window, some sentences repeat."""
    rng = np.random.default_rng(seed)
    records = {}
    for film, duration_s in FILMS_S.items():
        for number in range(per_film):
            length_s = float(rng.choice([2.0, 5.0, 20.0, 90.0], p=[0.4, 0.4, 0.15, 0.05]))
            length_s = min(length_s, duration_s / 2)
            start_s = float(rng.uniform(0, duration_s - length_s))
            records[f"{film}_{number}"] = {
                "movie": film,
                "sentence": f"Event number {number % 50} happens.",
                "timestamps": [round(start_s, 2), round(start_s + length_s, 2)],
                "movie_duration": duration_s,
            }
    return records


def write_world(folder: Path, records: dict[str, dict] | None = None) -> Path:
    """Features, text features and annotations."""
    records = events() if records is None else records
    (folder / "features").mkdir(parents=True)
    for film, duration_s in FILMS_S.items():
        rows = np.arange(round(duration_s * FPS), dtype=np.float32)
        np.save(folder / "features" / f"{film}.npy", np.repeat(rows[:, None], WIDTH, 1))
    (folder / "annotations.json").write_text(json.dumps(records))
    write_lmdb(folder / "text", ((key, query_arrays(key)) for key in records))
    return folder


def query_arrays(query_id: str) -> dict[str, np.ndarray]:
    """Word features that tell the query: 2 to 4 rows of a number made from its id."""
    value = sum(map(ord, query_id))
    tokens = np.full((2 + value % 3, WIDTH), value, np.float32)
    return {"token_features": tokens, "cls_features": tokens[0]}


def open_world(folder: Path, spec: SampleSpec, **arguments) -> GroundingDataset:
    return build_dataset(
        spec,
        annotations=folder / "annotations.json",
        features=folder / "features",
        text_features=folder / "text" if spec.needs_text else None,
        **arguments,
    )
