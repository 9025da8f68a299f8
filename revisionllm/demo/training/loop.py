"""Training only: the one loop of the demo's trainings, and what it keeps between its pieces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from revisionllm.files import replacing

log = logging.getLogger("training")
Batch = TypeVar("Batch")
Hits = Mapping[str, tuple[int, int]]


class Loop:
    """AdamW with warm-up and cosine, clipped gradients, a log line, a state that resumes.

        for step in loop:  # from where it was
            with loop.autocast():
                loss, hits = ...
            loop.take(loss, hits)

    Args:
        name: of the log lines.
        modules: what is trained, by its name in the state; on its device already.
        parameters: those of `modules` to train; None: all.
        state_path: resumed from if it is there; None: nothing is kept.
        save_every: steps between states.
        on_save: called behind each of them, and at the end.

    Attributes:
        first_step: steps that were done before.
        spent_s: seconds so far, those of earlier pieces too.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        parameters: list[nn.Parameter] | None = None,
        *,
        steps: int,
        lr: float,
        warmup: int,
        state_path: Path | None = None,
        save_every: int = 0,
        on_save: Callable[[], None] = lambda: None,
        bf16: bool = False,
    ) -> None:
        from transformers import get_cosine_schedule_with_warmup

        self.name, self.steps, self.bf16 = name, steps, bf16
        self.state_path, self.save_every, self.on_save = state_path, save_every, on_save
        every = [p for module in modules.values() for p in module.parameters()]
        self.parameters = every if parameters is None else parameters
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05
        )
        self._parts = {**modules, "optimizer": self.optimizer}
        self.first_step, self._before_s = 0, 0.0
        if state_path is not None and state_path.exists():
            self._resume()
        self._done, self._started = self.first_step, time.time()
        # made anew, so that a longer training goes on along its own curve
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, warmup, steps, last_epoch=self.first_step - 1
        )
        self._hits: list[Hits] = []
        self._losses: list[list[float]] = []

    @property
    def resumed(self) -> bool:
        """There was a state to go on from."""
        return self.state_path is not None and self.state_path.exists()

    @property
    def spent_s(self) -> float:
        return self._before_s + time.time() - self._started

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_step, self.steps))

    def autocast(self) -> Any:
        """bfloat16 where it was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def take(self, loss: Tensor, hits: Hits | None = None, /, **shown: Tensor) -> None:
        """One step down a loss; `shown` losses are logged in its place."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self._done += 1
        shown = shown or {"loss": loss}
        self._losses.append([value.item() for value in shown.values()])
        self._hits.append(hits or {})
        if self._done % 50 == 0 or self._done == self.steps:
            self._log(list(shown))
        if self.save_every and (self._done % self.save_every == 0 or self._done == self.steps):
            self.save()
            self.on_save()

    def save(self) -> None:
        """Everything that a resumed training needs, written atomically."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.state_path) as temporary:
            torch.save(state | {"step": self._done, "seconds": self.spent_s}, temporary)

    def _resume(self) -> None:
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.first_step, self._before_s = state["step"], state["seconds"]
        log.info("%s: resuming at step %d", self.state_path, self.first_step)

    def _log(self, names: list[str]) -> None:
        spent_s = (time.time() - self._started) / (self._done - self.first_step)
        means = zip(names, np.mean(self._losses, axis=0), strict=True)
        log.info(
            "%s, step %d/%d %s %s, %.2f s/step, eta %.1f min",
            *(self.name, self._done, self.steps),
            " ".join(f"{name} {mean:.3f}" for name, mean in means),
            *(share(self._hits), spent_s, spent_s * (self.steps - self._done) / 60),
        )
        self._hits, self._losses = [], []


def share(hits: list[Hits]) -> str:
    """Hits of several steps, (right, all) by name, as text."""
    parts = []
    for name in hits[0]:
        right, total = (sum(h[name][i] for h in hits) for i in (0, 1))
        parts.append(f"{name} {right / max(1, total):.3f}")
    return " ".join(parts)


def moved(batch: Batch, device: torch.device) -> Batch:
    """A dataclass of tensors with all of them on `device`."""
    return replace(batch, **{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})
