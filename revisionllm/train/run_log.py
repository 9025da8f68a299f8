"""Training logs: a line with ETA on stderr and in log.txt, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from revisionllm.files import write_text

log = logging.getLogger("revisionllm.train")

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"
LIBRARIES = r"(torch|transformers|accelerate|peft|deepspeed)(\.|$)"


def set_up_logging(run: Path, *, is_main: bool) -> None:
    """Log lines to stderr and `<run>/log.txt`; the other processes log errors alone."""
    root = logging.getLogger()
    root.setLevel(logging.INFO if is_main else logging.ERROR)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_main:
        run.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(run / "log.txt", encoding="utf-8"))
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root.addHandler(handler)
    for name in ("DeepSpeed", "transformers", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # what these warn of is between them and us: their tests and ours see it
    warnings.filterwarnings("ignore", module=LIBRARIES)
    if not (is_main and sys.stderr.isatty()):
        transformers.utils.logging.disable_progress_bar()


def drop_lines_after(path: Path, step: int) -> None:
    """Forget what a killed run measured after the checkpoint it is resumed from."""
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL log; [] if there is none."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # torn by a kill; it can only be the last line
            continue
    return found


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a JSONL log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


class RunLog(TrainerCallback):
    """Main process only: writes what the Trainer logs.

    Args:
        run: the run folder.
        first_step: optimizer steps done before.
        steps_per_epoch: to tell the epoch.
        questions_per_step: to tell the speed.
        work: FLOPs of a token, and of all devices at their peak per second; None: not known.
    """

    def __init__(
        self,
        run: Path,
        *,
        first_step: int,
        steps_per_epoch: int,
        questions_per_step: int,
        work: tuple[float, float] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        drop_lines_after(run / METRICS, first_step)
        self.path = run / METRICS
        self.board = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        self.steps_per_epoch = steps_per_epoch
        self.questions_per_step = questions_per_step
        self.work = work
        self.last = (first_step, time.monotonic())
        self.look_s, self.look_every = 0.0, 1
        self.peak_gib = 0.0

    def pauses(self) -> None:
        """Something else than training begins, whose memory is not training's."""
        self.peak_gib = max(self.peak_gib, peak_memory_gib())

    def paused(self, seconds: float, every: int) -> None:
        """Something else than training took so long, and will again, every so many steps."""
        self.last = (self.last[0], self.last[1] + seconds)
        self.look_s, self.look_every = seconds, every
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        step, now = state.global_step, time.monotonic()
        seconds = now - self.last[1]
        step_s = seconds / max(1, step - self.last[0])
        self.last = (step, now)
        record = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "loss": logs["loss"],
            "loss_present": logs.get("loss_present"),  # None: no such question was asked
            "loss_not_present": logs.get("loss_not_present"),
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "questions_per_s": round(self.questions_per_step / step_s, 3),
            "share_of_peak": self._share(logs.get("tokens", 0), seconds),
        }
        append_line(self.path, record)
        for name, value in record.items():
            if name != "step" and value is not None:
                self.board.add_scalar(name, value, step)
        self.board.flush()
        share, left = record["share_of_peak"], state.max_steps - step
        log.info(
            "step %d/%d epoch %.2f loss %.4f%s lr %.2e, %.1f questions/s%s, eta %s",
            *(step, state.max_steps, record["epoch"], record["loss"], _kinds(record)),
            *(record["learning_rate"], record["questions_per_s"]),
            "" if share is None else f" ({share:.0%} of peak)",
            _duration(left * (step_s + self.look_s / self.look_every)),
        )

    def _share(self, tokens: float, seconds: float) -> float | None:
        """Of the devices' peak, 0..1, without what is recomputed; None: not known."""
        if self.work is None:
            return None
        flops_per_token, peak = self.work
        return round(tokens * flops_per_token / seconds / peak, 4)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pauses()
        log.info("trained to step %d; peak memory %.1f GiB", state.global_step, self.peak_gib)
        self.board.close()


def peak_memory_gib() -> float:
    """Of this process: on its GPU if it has one, else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes on Linux


def _kinds(record: dict[str, Any]) -> str:
    """The losses of both kinds of questions, if both were asked."""
    kinds = (record["loss_present"], record["loss_not_present"])
    return "" if None in kinds else " (present {:.4f}, not present {:.4f})".format(*kinds)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
