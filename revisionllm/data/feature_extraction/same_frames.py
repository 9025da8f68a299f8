"""Which frames differ from the one before, for encoding what stands still once.

For searching alone: slides, screen recordings, fixed cameras. Training features are never made so.
"""

from __future__ import annotations

import numpy as np

BLOCK = 16  # pixels; a pointer that moves changes one block alone
SAME_LEVELS = 2.0  # mean difference of a block, of 255, that compression makes where nothing moves


def changed(frames: np.ndarray) -> np.ndarray:
    """Frames that are to be encoded: the first, and each that differs from the last one of these.

    Args:
        frames: uint8 [N, height, width, 3], in order.

    Returns:
        bool [N].
    """
    found = np.zeros(len(frames), dtype=bool)
    shown = None
    for number, frame in enumerate(frames):
        if shown is None or _differ(shown, frame):
            found[number], shown = True, frame
    return found


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    apart = np.abs(one.astype(np.int16) - other).sum(axis=2, dtype=np.int32)
    rows, columns = (np.arange(0, side, BLOCK) for side in apart.shape)
    sums = np.add.reduceat(np.add.reduceat(apart, rows, axis=0), columns, axis=1)
    heights = np.diff([*rows, apart.shape[0]])
    widths = np.diff([*columns, apart.shape[1]])
    return bool((sums > 3 * SAME_LEVELS * np.outer(heights, widths)).any())
