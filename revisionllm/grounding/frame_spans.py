"""Spans of a sentence from frame similarity alone, without an LLM.

A cosine means little by itself: it differs between sentences and between films. So it is held
against the film's own background (median and spread), averaged over pieces in which the picture
hardly changes, and grown from the highest pieces as far as it stays near their height. Where a
span ends is thereby decided by the picture's changes and not by the noise of single frames.

All of it is computed from the means of the pieces: a film is searched without reading its frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from revisionllm.grounding.scores import unit_rows

CUT_SHARE = 0.4  # of the local maxima of the picture's change, the smaller ones end no piece
STILL = 1e-5  # rounding of float16; smaller changes are none
KEPT_HEIGHT = 0.65  # a span goes on while it gains against this share of its peak
LONGEST_S = 60.0  # to either side of the peak
NORMAL_SPREAD = 1.4826  # standard deviations per median absolute deviation of a normal variable
BACKGROUND_TIMES = 512  # spread evenly over the film; its background is taken at these
LEAST_SPREAD = 1e-6


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


@dataclass(frozen=True)
class Pieces:
    """A film as stretches in which the picture hardly changes.

    Attributes:
        means: mean of each piece's rows of unit length [P, D] float32.
        ends: row numbers between pieces [P + 1], from 0 to the film's T.
    """

    means: np.ndarray
    ends: np.ndarray

    @cached_property
    def background(self) -> np.ndarray:
        """Numbers of the pieces at `BACKGROUND_TIMES` times spread evenly over the film."""
        times = (np.arange(BACKGROUND_TIMES) + 0.5) * (self.ends[-1] / BACKGROUND_TIMES)
        return np.searchsorted(self.ends, times, side="right") - 1


def pieces_of(rows: np.ndarray) -> Pieces:
    """Cut a film where its picture changes.

    Args:
        rows: frames' features [T, D].
    """
    rows = unit_rows(rows)
    ends = piece_ends(rows)
    sums = np.add.reduceat(rows, ends[:-1], axis=0, dtype=np.float64)
    return Pieces((sums / np.diff(ends)[:, None]).astype(np.float32), ends)


def piece_ends(rows: np.ndarray) -> np.ndarray:
    """Where the picture changes: row numbers from 0 to T, at least these two.

    Args:
        rows: frames' features [T, D] of unit length.
    """
    changes = 1 - np.einsum("td,td->t", rows[:-1], rows[1:])
    if len(changes) < 3:
        return np.array([0, len(rows)])
    rises = np.r_[True, changes[1:] > changes[:-1]]
    falls = np.r_[changes[:-1] >= changes[1:], True]
    peaks = np.flatnonzero(rises & falls)
    cuts = peaks[changes[peaks] >= max(STILL, np.quantile(changes[peaks], CUT_SHARE))]
    return np.unique(np.r_[0, 1 + cuts, len(rows)])


def backgrounds(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust standard deviation along the first axis.

    Args:
        cosines: at a film's times [N, ...].
    """
    median = np.median(cosines, axis=0)
    spread = NORMAL_SPREAD * np.median(np.abs(cosines - median), axis=0)
    return median, np.maximum(spread, LEAST_SPREAD)


def frame_spans(
    cosines: np.ndarray, pieces: Pieces, feature_fps: float, background: tuple[float, float]
) -> Iterator[FrameSpan]:
    """The spans of a sentence in a film, highest first; they do not overlap.

    Args:
        cosines: of the sentence with each piece [P].
        feature_fps: frames per second.
        background: median and spread of the sentence's cosines in this film.
    """
    median, spread = background
    sizes = np.diff(pieces.ends)
    level = np.repeat((cosines.astype(np.float64) - median) / spread, sizes)
    sums = np.r_[0.0, np.cumsum(level)]
    free, longest = level.copy(), max(1, round(LONGEST_S * feature_fps))
    while True:
        peak = int(free.argmax())
        if free[peak] <= 0:
            return
        first, end = _grown(level, peak, KEPT_HEIGHT * level[peak], longest)
        taken = ~np.isfinite(free[first:end])
        first, end = _untaken(taken, first, peak)
        yield FrameSpan(
            first / feature_fps,
            end / feature_fps,
            float(level[peak]),
            float(median + spread * (sums[end] - sums[first]) / (end - first)),
        )
        free[first:end] = -np.inf


def _untaken(taken: np.ndarray, first: int, peak: int) -> tuple[int, int]:
    """What is left of a stretch around its peak: first row, end.

    Args:
        taken: of the stretch's rows, is each part of an earlier span?
        first: row number of the stretch's first.
    """
    before = np.flatnonzero(taken[: peak - first + 1])
    after = np.flatnonzero(taken[peak - first :])
    end = peak + int(after[0]) if len(after) else first + len(taken)
    return first + (int(before[-1]) + 1 if len(before) else 0), end


def _grown(level: np.ndarray, peak: int, bar: float, longest: int) -> tuple[int, int]:
    """The stretch around the peak with the largest sum of what is above the bar: first row, end."""
    above = level - bar
    after = np.cumsum(above[peak + 1 : peak + 1 + longest])
    before = np.cumsum(above[max(0, peak - longest) : peak][::-1])
    right = int(after.argmax()) + 1 if len(after) and after.max() > 0 else 0
    left = int(before.argmax()) + 1 if len(before) and before.max() > 0 else 0
    return peak - left, peak + 1 + right
