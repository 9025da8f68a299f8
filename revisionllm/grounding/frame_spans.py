"""Spans of a sentence from frame similarity alone, without an LLM.

A cosine means little by itself: it differs between sentences and between films. So it is held
against the film's own background (median and spread), averaged over pieces in which the picture
hardly changes, and grown from the highest pieces as far as it stays near their height. Where a
span ends is thereby decided by the picture's changes and not by the noise of single frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CUT_SHARE = 0.5  # of the pictures' changes (local maxima), the smaller ones are no ends of pieces
KEPT_HEIGHT = 0.65  # a span goes on while it gains against this share of its peak
LONGEST_S = 60.0  # to either side of the peak
NORMAL_SPREAD = 1.4826  # standard deviations per median absolute deviation of a normal variable


@dataclass(frozen=True)
class FrameSpan:
    """A stretch of the film, in seconds.

    Attributes:
        height: of its highest piece above the film's background, in its standard deviations.
        cosine: mean of its frames.
    """

    start_s: float
    end_s: float
    height: float
    cosine: float


def piece_ends(rows: np.ndarray) -> np.ndarray:
    """Where the picture changes: row numbers from 0 to T, at least these two.

    Args:
        rows: frames' features [T, D] of unit length.
    """
    changes = 1 - (rows[:-1] * rows[1:]).sum(1)
    if len(changes) < 3:
        return np.array([0, len(rows)])
    left = np.r_[True, changes[1:] >= changes[:-1]]
    right = np.r_[changes[:-1] >= changes[1:], True]
    cuts = 1 + np.flatnonzero(left & right & (changes >= np.quantile(changes, CUT_SHARE)))
    return np.unique(np.r_[0, cuts, len(rows)])


def above_background(cosines: np.ndarray) -> np.ndarray:
    """Cosines [T] as heights above the film's median, in its robust standard deviations."""
    centred = cosines - np.median(cosines)
    spread = NORMAL_SPREAD * np.median(np.abs(centred))
    return centred / max(float(spread), 1e-6)


def frame_spans(
    cosines: np.ndarray, ends: np.ndarray, feature_fps: float, *, top_k: int = 5
) -> list[FrameSpan]:
    """The best spans of a sentence in a film, highest first; they do not overlap.

    Args:
        cosines: of the sentence with each frame [T].
        ends: of `piece_ends`.
        feature_fps: frames per second.
        top_k: most spans.
    """
    heights = above_background(np.asarray(cosines, np.float64))
    sizes = np.diff(ends)
    level = np.repeat(np.add.reduceat(heights, ends[:-1]) / sizes, sizes)
    free, longest = level.copy(), max(1, round(LONGEST_S * feature_fps))
    found = []
    for _ in range(top_k):
        peak = int(free.argmax())
        if free[peak] <= 0:
            break
        first, end = _grown(level, peak, KEPT_HEIGHT * level[peak], longest)
        taken = ~np.isfinite(free)
        first += int(np.flatnonzero(taken[first : peak + 1]).max(initial=-1)) + 1
        end = peak + int(np.flatnonzero(taken[peak:end]).min(initial=end - peak))
        found.append(
            FrameSpan(
                first / feature_fps,
                end / feature_fps,
                float(level[peak]),
                float(np.mean(cosines[first:end])),
            )
        )
        free[first:end] = -np.inf
    return found


def _grown(level: np.ndarray, peak: int, bar: float, longest: int) -> tuple[int, int]:
    """The stretch around the peak with the largest sum of what is above the bar: first row, end."""
    above = level - bar
    after = np.cumsum(above[peak + 1 : peak + 1 + longest])
    before = np.cumsum(above[max(0, peak - longest) : peak][::-1])
    right = int(after.argmax()) + 1 if len(after) and after.max() > 0 else 0
    left = int(before.argmax()) + 1 if len(before) and before.max() > 0 else 0
    return peak - left, peak + 1 + right
