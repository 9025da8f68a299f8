"""Command lines: the parser that every command uses, and the range of every number it takes.

A number outside its range, NaN or infinity, or a device that is none, is refused in one line with
exit code 2 before anything is loaded. No heavy imports.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# what torch knows and somebody may have; whether it is here, the loader checks
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|npu|hpu|meta)(:\d{1,3})?")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` leaves out `low` itself, `below` leaves out `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with a number, None if nothing is."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number, is {value}"
        outside = value < self.low or value > self.high
        if outside or (self.above and value == self.low) or (self.below and value == self.high):
            return f"must be {self}, is {_short(value)}"
        return None

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}" + ("" if self.high >= 1e6 else f", up to {self.high:g}")
        if self.high >= 1e6:
            return f"{self.low:g} or more" if self.low == 0 else f"at least {self.low:g}"
        return f"in {self.low:g}..{self.high:g}" + (" without the end" if self.below else "")


def _short(value: float) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


COUNT = Range(1, 10**9)
COUNT_OR_NONE = Range(0, 10**9)
SHARE = Range(0, 1)
POSITIVE = Range(0, 1e9, above=True)
SECONDS = Range(0, 1e6, above=True)
SEED = Range(0, 2**32 - 1)

# argument -> range; what stands here holds for every command
RANGES: dict[str, Range] = {
    # search
    **dict.fromkeys(("top_k", "num_candidates", "queries_per_batch", "limit", "budget_mb"), COUNT),
    **dict.fromkeys(("threshold", "nms_iou", "explore", "iou"), SHARE),
    **dict.fromkeys(("keep", "long_keep"), POSITIVE),
    **dict.fromkeys(("refine", "examples"), COUNT_OR_NONE),
    "cosine_weight": Range(0, 1e6),
    "moments": COUNT,
    "resamples": Range(0, 10**6),
    # windows
    **dict.fromkeys(("window_s", "stride_s", "segment_stride_s"), SECONDS),
    "feature_fps": Range(0, 1000, above=True),
    "fps": Range(0, 1000, above=True),
    "frames_per_window": Range(1, 10**6),
    "num_segments": Range(1, 10**5),
    **dict.fromkeys(("zooms", "segment_repeats", "min_votes"), Range(1, 10**4)),
    "min_duration_s": Range(0, 1e9),
    "padding": Range(0, 3600),
    "port": Range(1, 65535),
    # processes
    "num_shards": Range(1, 10**4),
    "shard": Range(0, 10**4),
    **dict.fromkeys(("distributed_grounding", "distributed_retrieval"), Range(0, 10**4)),
    **dict.fromkeys(("num_workers", "workers"), Range(0, 1024)),
    "threads": Range(1, 1024),
    # training
    **dict.fromkeys(("global_batch_size", "per_device_batch_size", "batch_size"), COUNT),
    **dict.fromkeys(("questions_per_window", "save_steps", "logging_steps", "save_every"), COUNT),
    **dict.fromkeys(("val_steps", "val_queries"), COUNT),
    **dict.fromkeys(("lora_rank", "lora_alpha", "adapter_ffn_dim"), Range(1, 10**6)),
    **dict.fromkeys(("max_steps", "negatives_per_positive", "warmup"), COUNT_OR_NONE),
    "digit_position_segments": Range(0, 10**5),
    **dict.fromkeys(("learning_rate", "lr", "frame_lr", "max_grad_norm"), POSITIVE),
    **dict.fromkeys(("lora_dropout", "warmup_ratio"), Range(0, 1, below=True)),
    "epochs": Range(0, 1e6, above=True),
    "weight_decay": Range(0, 1e6),
    # demo and benchmarks
    "minutes": Range(0, 1440, above=True),
    "film_minutes": Range(0, 1440, above=True),
    **dict.fromkeys(("present", "absent"), Range(0, 10**6)),
    **dict.fromkeys(("films", "steps", "rounds", "repeats", "windows", "questions"), COUNT),
    **dict.fromkeys(("seed", "shuffle_seed", "first_seed"), SEED),
}


class OutOfRange(SystemExit):
    """A number outside its range was given; exit code 2."""


# `lr 0` and the like have a use in one command; its parser says so itself
Overrides = Mapping[str, Range]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that knows `RANGES` and answers bad input in one line.

    Args:
        ranges: ranges of this command alone, over those of `RANGES`; {}: the command itself checks
            its numbers, together with the rest.
    """

    _words: Sequence[str] = ()  # of the running command; sub-parsers do not get theirs

    def __init__(self, *args: Any, ranges: Overrides | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranges = {} if ranges == {} else {**RANGES, **(ranges or {})}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As in argparse; then numbers and devices are checked, all problems in one line."""
        Parser._words = list(sys.argv[1:] if args is None else args)
        parsed = super().parse_args(args, namespace)
        found = problems(vars(parsed), self._ranges) if self._ranges else []
        if found:
            self._say("; ".join(found))
            raise OutOfRange(2)
        return parsed

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        files = [w for w in Parser._words if w.startswith("-") and os.path.exists(w)]
        if files and "--" not in Parser._words:
            message += f"; put -- before file names that start with a dash: -- {files[0]}"
        self._say(f"{message} (--help shows all flags)")
        raise SystemExit(2)

    def _say(self, message: str) -> None:
        text = f"{self.prog}: error: {' '.join(message.split())}"
        print(text.encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr)


def problems(values: Mapping[str, Any], ranges: Overrides = RANGES) -> list[str]:
    """What is wrong with the numbers and devices of a command, one phrase each."""
    found = []
    for name, value in values.items():
        if name == "device" and isinstance(value, str) and not DEVICE.fullmatch(value):
            found.append(f"--device {value!r} is none of auto, cpu, cuda, cuda:N")
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            allowed = ranges.get(name, Range(-math.inf))
            trouble = allowed.problem(number)
            if trouble:
                found.append(f"--{name} {trouble}")
    return found
