"""CLIP features of rendered films, straight from the renderer, kept in a cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from revisionllm.data.stores.feature_writers import save_npy
from revisionllm.demo.training.dense_data import FEATURE_FPS, FEATURE_STEP, TrainingFilm, load_film
from revisionllm.demo.world.plans import WORLD_VERSION, plan_film
from revisionllm.demo.world.render import frames

CHUNK = 256
# Windows of a film with all five features a second look at its frames 2, 5, 8, ... (the nearest to
# the middle of each of their shares, half up). Where only every third is kept, these are the ones.
FIRST_FRAME = 2


def film_features(
    seed: int,
    duration_s: float,
    split: str,
    clip,
    *,
    first: int | None = None,
    step: int = FEATURE_STEP,
) -> np.ndarray:
    """Features [T, D] float16 of every third frame of a film (`step`), from frame `first` on (None:
    number `seed % 3`, so that training meets all three)."""
    plan = plan_film(seed, duration_s, split)
    first = seed % FEATURE_STEP if first is None else first
    return encode_frames(frames(plan, first=first, step=step), clip)


def rows_of_windows(features: np.ndarray, duration_s: float) -> np.ndarray:
    """Of `film_features` from `FIRST_FRAME` on, rows for windows to look at: [T, D], 5/3 a second.

    Windows take row i + 1 for their frame i (half up again), so that has to be film frame 3 i + 2.
    """
    rows = np.concatenate([features[:1], features])
    return rows[: round(duration_s * FEATURE_FPS / FEATURE_STEP)]


def encode_frames(images: Iterable[np.ndarray], clip) -> np.ndarray:
    """CLIP features [T, D] float16 of a film's frames, in order; repeated ones are encoded once."""
    chunk: list[np.ndarray] = []
    parts, row_of, last = [], [], None
    for image in images:
        if last is None or not np.array_equal(image, last):  # actors rest: a quarter repeats
            chunk.append(image)
            last = image
        row_of.append(CHUNK * len(parts) + len(chunk) - 1)
        if len(chunk) == CHUNK:
            parts.append(clip.encode_images(np.stack(chunk)))
            chunk = []
    if chunk:
        parts.append(clip.encode_images(np.stack(chunk)))
    return np.concatenate(parts)[row_of].astype(np.float16)


def num_workers() -> int:
    """How many processes render or draw: one per core, eight at most. No result depends on it."""
    return max(1, min(8, os.cpu_count() or 1))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _make_one(job: tuple[int, float, str, str, str]) -> str:
    from revisionllm.model.clip import load_clip

    seed, duration_s, split, clip_folder, path = job
    features = film_features(seed, duration_s, split, load_clip(clip_folder))
    save_npy(path, features)
    return path


def cached_features(
    seeds: Sequence[int],
    duration_s: float,
    split: str,
    clip_folder: Path,
    cache: Path,
    workers: int | None = None,
) -> list[Path]:
    """Files with the `film_features` of each seed; those that the cache folder lacks are computed.

    The cache is named after the CLIP's fingerprint and the world's version, so that another CLIP or
    renderer never meets its features.
    """
    from tqdm import tqdm

    from revisionllm.model.clip import load_clip

    clip = load_clip(str(clip_folder), device="cpu")
    folder = cache / f"{clip.fingerprint()}-w{WORLD_VERSION}-{duration_s:g}s-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:05d}.npy" for seed in seeds]
    jobs = [
        (seed, duration_s, split, str(clip_folder), str(path))
        for seed, path in zip(seeds, paths, strict=True)
        if not path.exists()
    ]
    if jobs and workers == 0:  # in this process
        list(map(_make_one, tqdm(jobs, desc=f"features of {split} films")))
    elif jobs:
        # neither CUDA nor threads of torch or FFmpeg survive a fork
        with ProcessPoolExecutor(
            workers or num_workers(), get_context("spawn"), initializer=_one_thread
        ) as pool:
            list(
                tqdm(pool.map(_make_one, jobs), total=len(jobs), desc=f"features of {split} films")
            )
    return paths


def training_films(
    num_films: int,
    duration_s: float,
    split: str,
    clip_folder: Path,
    cache: Path,
    workers: int | None = None,
) -> list[TrainingFilm]:
    """Films number 0 to num_films - 1 with their features (`cached_features`)."""
    paths = cached_features(range(num_films), duration_s, split, clip_folder, cache, workers)
    return [
        load_film(seed, duration_s, split, np.load(path, allow_pickle=False))
        for seed, path in enumerate(paths)
    ]
