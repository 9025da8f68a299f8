"""Training only: teaches the demo's frame adapter by itself to say what frames show.

Through the LLM an adapter sees a few windows a second, and a question says little about what moves.
Here linear read-outs are asked of the adapter's own tokens: dozens of windows a second, and every
frame says what everybody in it does. The LLM then finds it in its tokens.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW, TrainingFilm, random_window
from revisionllm.demo.training.dense_readout import FrameReadout
from revisionllm.demo.training.loop import Loop

log = logging.getLogger("train_dense")


def draw_windows(films: list[TrainingFilm], count: int, rng) -> tuple[Tensor, Tensor]:
    """Features [N, F, D] and tables [N, F, C, S] of `count` random windows."""
    drawn = [random_window(films, rng) for _ in range(count)]
    size = FRAMES_PER_WINDOW
    features = np.stack([film.features[first : first + size] for film, first in drawn])
    tables = np.stack([film.table[first : first + size] for film, first in drawn])
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(tables)


def teach_frames(
    projector: nn.Module,
    readout: FrameReadout,
    films: list[TrainingFilm],
    *,
    steps: int,
    windows: int,
    lr: float,
    seed: int,
    state_path: Path,
    save_every: int,
) -> None:
    """Train the adapter with a read-out of its tokens; both in place.

    Args:
        windows: per step.
        state_path: written every `save_every` steps; resumes from it if present.
    """
    loop = Loop(
        "frames",
        {"projector": projector, "tokens": readout},
        steps=steps,
        lr=lr,
        warmup=steps // 20,
        state_path=state_path,
        save_every=save_every,
    )
    for step in loop:
        rng = np.random.default_rng([seed, 103, step])
        features, table = (part.to(loop.device) for part in draw_windows(films, windows, rng))
        loop.take(*readout.frame_loss(projector(features), table))
