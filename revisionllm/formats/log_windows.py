"""The windows of released logs, which the logs do not say, and the flags that state them.

Apart from the reader, so that a command line is declared without NumPy.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from revisionllm.errors import UserError

RELEASED_FRAMES = 250  # frames per window


@dataclass(frozen=True)
class LogArithmetic:
    """What released logs do not say. Dense windows start every half window, segments each fifth."""

    window_s: float = 125.0
    frames_per_window: int = RELEASED_FRAMES


MAD_LOGS = LogArithmetic()


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """The windows of released logs, for commands that read any predictions."""
    parser.add_argument("--window_s", type=float, help="of released logs: MAD 125, chapters 500")
    parser.add_argument(
        "--frames_per_window", type=int, help="of released logs: MAD 250, chapters 100"
    )


def log_arithmetic(args: argparse.Namespace) -> LogArithmetic | None:
    """The windows that the flags state; None if they do not.

    Raises:
        UserError: one of the two is missing.
    """
    given = args.window_s, args.frames_per_window
    if None in given and given != (None, None):
        raise UserError("--window_s and --frames_per_window belong together; give both")
    return None if None in given else LogArithmetic(*given)
