"""What the grounder is held against: per-frame CLIP retrieval, and chance.

CLIP retrieval: the cosine of every frame with the sentence, smoothed over time; the best peaks grow
to their neighbours while these stay close to the peak. How much is smoothed and how far a span
grows is tuned on validation films, so that the baseline is as good as this CLIP allows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from revisionllm.metrics.recall import span_iou


@dataclass(frozen=True)
class Merging:
    """How frame scores become spans.

    smooth_s: length of the moving average; drop: how far below the peak a neighbour may be, in
    standard deviations of the film's scores; longest_s: a span grows no longer than this.
    """

    smooth_s: float
    drop: float
    longest_s: float = 20.0


def grid() -> list[Merging]:
    """The settings that validation films choose from."""
    smooths, drops, longests = (
        (0.6, 1.4, 3.0, 5.0),
        (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
        (5.0, 8.0, 20.0),
    )
    return [Merging(*values) for values in itertools.product(smooths, drops, longests)]


def smoothed(scores: np.ndarray, fps: float, smooth_s: float) -> np.ndarray:
    """Centred moving average over smooth_s seconds: [T] -> [T]."""
    width = max(1, round(smooth_s * fps) // 2 * 2 + 1)
    padded = np.pad(scores, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def retrieve(scores: np.ndarray, fps: float, merging: Merging, top_k: int = 5) -> np.ndarray:
    """The best spans, non-overlapping, best first.

    Args:
        scores: [T] cosine of each frame with the sentence, fps per second.

    Returns:
        [n, 3] start_s, end_s and the peak's height in standard deviations above the mean.
    """
    values = smoothed(scores, fps, merging.smooth_s)
    values = (values - values.mean()) / max(1e-9, float(values.std()))
    free, longest = values.copy(), max(1, round(merging.longest_s * fps))
    spans = []
    for _ in range(top_k):
        peak = int(free.argmax())
        if not np.isfinite(free[peak]):
            break
        floor = values[peak] - merging.drop
        first = last = peak
        while last - first + 1 < longest:
            left = free[first - 1] if first > 0 else -np.inf
            right = free[last + 1] if last + 1 < len(free) else -np.inf
            if max(left, right) < floor:
                break
            first, last = (first - 1, last) if left > right else (first, last + 1)
        spans.append((first / fps, (last + 1) / fps, float(values[peak])))
        free[first : last + 1] = -np.inf
    return np.array(spans)


def tune(cosines: list[np.ndarray], spans: list[tuple[float, float]], fps: float) -> Merging:
    """The merging with the best sum of R1@0.3 and R1@0.5 on validation films (ties: the first)."""

    def quality(merging: Merging) -> float:
        found = np.array([retrieve(row, fps, merging, 1)[0, :2] for row in cosines])
        ious = span_iou(found, np.array(spans))
        return float((ious >= 0.3).mean() + (ious >= 0.5).mean())

    return max(grid(), key=quality)


def best_threshold(present: np.ndarray, absent: np.ndarray) -> float:
    """The score that best tells present from absent sentences (mean of both accuracies)."""
    candidates = np.unique(np.concatenate([present, absent]))
    quality = [(present >= c).mean() + (absent < c).mean() for c in candidates]
    return float(candidates[int(np.argmax(quality))])


def chance_span(
    duration_s: float, length_s: float, rng: np.random.Generator
) -> tuple[float, float]:
    """A span of the usual length anywhere in the film."""
    start_s = float(rng.uniform(0, max(0.0, duration_s - length_s)))
    return start_s, start_s + length_s
