"""Seconds <-> frames <-> windows <-> segments: the only place with hop arithmetic.

Three time mappings exist and a run's config says which one it was trained with:

- ``centered`` (ours): frame k of a window stands for the middle of its 1/F share of the window,
  and an answer `From a to b.` covers `[start + a*window_s/F, start + (b+1)*window_s/F)`. Labels are
  the frames that the event touches: the span of a perfect answer is never shorter than the event.
- ``rounded`` (ours): the same frames and spans; labels are the nearest frame borders, at least one
  frame: the span of a perfect answer is as often shorter as longer.
- ``released``: what published weights were trained with; frames are sampled with both ends in,
  label x is `round(time / window_s * F)`. The released evaluation's own window table is at the end
  of the file.

Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from revisionllm.grounding.released import released_indices, released_widen

TIME_MAPPINGS = ("centered", "rounded", "released")
_TOLERANCE = 1e-6  # in frames or strides: forgives float noise, far below any real frame


@dataclass(frozen=True)
class Window:
    """The `index`-th window (or segment) of a film: seconds `[start_s, end_s)`."""

    index: int
    start_s: float
    end_s: float


def dense_windows(duration_s: float, *, window_s: float, stride_s: float) -> list[Window]:
    """Cut a film into overlapping windows of equal length.

    The i-th window starts at `i * stride_s`; the last one is shifted back so that it ends with the
    film. A film shorter than a window gives the single window `[0, window_s)`.

    Raises:
        ValueError: a length is not a positive number, or `stride_s > window_s` (seconds would be
            skipped).
    """
    if not (0 < duration_s < math.inf and 0 < stride_s <= window_s < math.inf):
        raise ValueError(
            f"need duration_s > 0 and 0 < stride_s <= window_s, got duration_s={duration_s}, "
            f"stride_s={stride_s}, window_s={window_s}"
        )
    if duration_s <= window_s:
        return [Window(0, 0.0, float(window_s))]
    last_start_s = duration_s - window_s
    num_regular = max(1, math.ceil(last_start_s / stride_s - _TOLERANCE))
    starts_s = [i * stride_s for i in range(num_regular)] + [last_start_s]
    return [Window(i, float(s), float(s + window_s)) for i, s in enumerate(starts_s)]


def segments(duration_s: float, *, window_s: float, segment_stride_s: float) -> list[Window]:
    """The film's segments, every `segment_stride_s` seconds, by the rule of `dense_windows`."""
    return dense_windows(duration_s, window_s=window_s, stride_s=segment_stride_s)


@dataclass(frozen=True)
class WindowClock:
    """How a window's frames, the film's features and seconds map to each other.

    Attributes:
        window_s: length of a window.
        frames_per_window: F, frames that the model sees of it.
        feature_fps: stored features per second; feature i is at `i / feature_fps` seconds.
        time_mapping: see the top of this file.

    Raises:
        ValueError: there are no frames, or the mapping is unknown.
    """

    window_s: float
    frames_per_window: int
    feature_fps: float = 1.0
    time_mapping: str = "centered"

    def __post_init__(self) -> None:
        if self.time_mapping not in TIME_MAPPINGS:
            raise ValueError(
                f"time_mapping must be one of {TIME_MAPPINGS}, got {self.time_mapping!r}"
            )
        if self.frames_per_window < 1:
            raise ValueError(f"need frames, got frames_per_window={self.frames_per_window}")

    def feature_indices(self, start_s: float, num_features: int) -> np.ndarray:
        """Which stored features are the frames of the window that starts at `start_s`.

        "centered" and "rounded" take the feature nearest to the middle of each frame's share (half
        up); "released" takes evenly spaced ones, both ends in, truncated.

        Returns:
            int64 `[frames_per_window]`, non-decreasing, clipped to `0..num_features-1`.

        Raises:
            ValueError: the film has no features.
        """
        if num_features < 1:
            raise ValueError("the film has no features")
        if self.time_mapping == "released":
            first = math.floor(start_s * self.feature_fps + _TOLERANCE)
            last = min(first + round(self.window_s * self.feature_fps), num_features - 1)
            return released_indices(first, last, self.frames_per_window, num_features)
        step = self.window_s * self.feature_fps / self.frames_per_window
        middles = np.arange(self.frames_per_window) + 0.5
        positions = start_s * self.feature_fps + middles * step
        nearest = np.floor(positions + 0.5 + _TOLERANCE).astype(np.int64)
        return np.clip(nearest, 0, num_features - 1)

    def labels(self, span_s: tuple[float, float], start_s: float) -> tuple[int, int]:
        """First and last frame of the event `[start, end)` in the window that starts at `start_s`,
        clipped to the window."""
        frames_per_s = self.frames_per_window / self.window_s
        first_at, last_at = ((time_s - start_s) * frames_per_s for time_s in span_s)
        if self.time_mapping == "released":
            first, last = round(first_at), round(last_at)
        elif self.time_mapping == "rounded":
            first = math.floor(first_at + 0.5)  # half up: Python's own rounding takes the even one
            last = max(first, math.floor(last_at + 0.5) - 1)
        else:
            first = math.floor(first_at + _TOLERANCE)
            last = max(first, math.ceil(last_at - _TOLERANCE) - 1)
        top = self.frames_per_window - 1
        return min(max(first, 0), top), min(max(last, 0), top)

    def span(self, first: float, last: float, start_s: float) -> tuple[float, float]:
        """Seconds that the answer `From first to last.` means in the window that starts at
        `start_s`; the inverse of `labels`."""
        if self.time_mapping == "released":
            first, last = released_widen(first, last)
        else:
            last = last + 1
        frame_s = self.window_s / self.frames_per_window
        return start_s + first * frame_s, start_s + last * frame_s


def film_window_s(window_s: float, duration_s: float, *, double_rate_short: bool) -> float:
    """Length of a film's dense windows: films shorter than two are read with halves (chapters)."""
    return window_s / 2 if double_rate_short and duration_s < 2 * window_s else window_s


def touching_indices(
    starts_s: np.ndarray, ends_s: np.ndarray, ranges_s: Iterable[tuple[float, float]]
) -> np.ndarray:
    """Windows that share time with at least one range (a range of no length is a point).

    Args:
        starts_s, ends_s: of the windows, `[N]`.

    Returns:
        Sorted int64 indices.
    """
    touched = np.zeros(len(starts_s), dtype=bool)
    for start_s, end_s in ranges_s:
        if end_s > start_s:
            touched |= (starts_s < end_s) & (start_s < ends_s)
        else:
            touched |= (starts_s <= start_s) & (start_s < ends_s)
    return np.flatnonzero(touched)


def merge_ranges(
    ranges_s: Iterable[tuple[float, float]], *, gap_s: float = 0.0
) -> list[tuple[float, float]]:
    """Sorted union of time ranges; those that touch or are at most `gap_s` apart become one."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(ranges_s):
        if merged and start_s <= merged[-1][1] + gap_s:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def pad_ranges(
    ranges_s: Iterable[tuple[float, float]], margin_s: float, duration_s: float
) -> list[tuple[float, float]]:
    """Widen each range by `margin_s` on both sides, clip to the film, merge."""
    return merge_ranges(
        (max(0.0, start - margin_s), min(duration_s, end + margin_s))
        for start, end in ranges_s
        if start < duration_s and end > 0
    )
