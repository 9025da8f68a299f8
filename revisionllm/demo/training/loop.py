"""Training only: what the demo's trainings keep between their pieces, and where they run."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch

from revisionllm.files import replacing

log = logging.getLogger("training_state")
Batch = TypeVar("Batch")


def save_state(path: Path, parts: dict, step: int, seconds: float = 0.0) -> None:
    """Everything a resumed run needs, written atomically; `seconds`: spent so far."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as temporary:
        torch.save(state | {"step": step, "seconds": seconds}, temporary)


def load_state(path: Path, parts: dict) -> tuple[int, float]:
    """Fill the parts from what `save_state` wrote; returns the steps done and the seconds spent."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    log.info("%s: resuming at step %d", path, state["step"])
    return state["step"], state.get("seconds", 0.0)  # older states of dense runs have no seconds


def moved(batch: Batch, device: torch.device) -> Batch:
    """A dataclass of tensors with all of them on `device`."""
    return replace(batch, **{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})
