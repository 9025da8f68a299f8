"""Training only: teaches the demo's frame adapter by itself to say what frames show.

Through the LLM an adapter sees a few windows a second, and a question says little about what moves.
Here linear read-outs are asked of the adapter's own tokens: dozens of windows a second, and every
frame says what everybody in it does. The LLM then finds it in its tokens.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW, TrainingFilm, random_window
from revisionllm.demo.training.dense_readout import FrameReadout
from revisionllm.demo.training.loop import load_state, save_state

log = logging.getLogger("train_dense")
ANCHOR = 5.0  # weight of staying close to the tokens that the LLM knows


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
    anchored: bool,
    state_path: Path,
    save_every: int,
) -> None:
    """Train the adapter with a read-out of its tokens; both in place.

    Args:
        windows: per step.
        anchored: whether an LLM reads the tokens already, so that they may not change at will.
        state_path: written every `save_every` steps; what is there is gone on with.
    """
    before = copy.deepcopy(projector).requires_grad_(False)
    parameters = [*projector.parameters(), *readout.parameters()]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    parts = {"projector": projector, "tokens": readout, "optimizer": optimizer}
    first_step = load_state(state_path, parts)[0] if state_path.exists() else 0
    started, losses, recent = time.time(), [], []
    for step in range(first_step, steps):
        rng = np.random.default_rng([seed, 103, step])
        features, table = (part.to(device) for part in draw_windows(films, windows, rng))
        tokens = projector(features)
        loss, hits = readout.frame_loss(tokens, table)
        losses.append(loss.item())
        if anchored:
            known = before(features)
            loss = loss + ANCHOR * (tokens - known).square().mean() / known.var()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(optimizer, lr * rate(step, steps, steps // 20))
        optimizer.step()
        recent.append(hits)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            spent_s = time.time() - started
            eta_min = spent_s / (step + 1 - first_step) * (steps - step - 1) / 60
            log.info(
                "frames, step %d/%d loss %.3f %s, eta %.1f min",
                *(step + 1, steps, np.mean(losses), share(recent), eta_min),
            )
            losses, recent = [], []
        if (step + 1) % save_every == 0:
            save_state(state_path, parts, step + 1)


def rate(step: int, steps: int, warmup: int) -> float:
    """Part of the peak learning rate: linear warm-up, then cosine to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, done))) / 2


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def share(hits: list[dict[str, tuple[int, int]]]) -> str:
    """Hits of several steps as text."""
    parts = []
    for name in hits[0]:
        right, total = (sum(h[name][i] for h in hits) for i in (0, 1))
        parts.append(f"{name} {right / max(1, total):.3f}")
    return " ".join(parts)
