"""The metric definitions of temporal grounding, in one place (NumPy only).

Field convention: IoU is not rounded, a hit is `IoU >= threshold`, a query without predictions is a
miss and counts in the denominator. Shapes: Q queries, K ranked predictions, T thresholds,
M measures. Spans are [start_s, end_s]; empty ranks of a table hold -1, below any threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.grounding.scores import span_iou

RECALL_RANKS = (1, 5, 10, 50)
IOU_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
EMPTY_RANK = -1.0


def iou_table(
    predicted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    *,
    max_rank: int = 50,
    iou: Callable[[np.ndarray, np.ndarray], np.ndarray] = span_iou,
) -> np.ndarray:
    """IoU of each ranked prediction with the true span it fits best.

    Args:
        predicted: per query [n, 2], best first; n may be 0.
        truth: per query [m, 2], m >= 1.
        max_rank: how many predictions of a query count.
        iou: of spans [..., 2], in a peer's own arithmetic.

    Returns:
        float64 [Q, max_rank]; -1 where a query has fewer predictions.
    """
    table = np.full((len(predicted), max_rank), EMPTY_RANK)
    padded = np.zeros((len(predicted), max_rank, 2))
    for row, spans in enumerate(predicted):
        count = min(len(spans), max_rank)
        padded[row, :count] = np.asarray(spans, np.float64).reshape(-1, 2)[:count]
        table[row, :count] = 0.0
    most_spans = max((len(spans) for spans in truth), default=0)
    for column in range(most_spans):  # nearly always one
        rows = [row for row, spans in enumerate(truth) if len(spans) > column]
        targets = np.array([truth[row][column] for row in rows], np.float64).reshape(-1, 1, 2)
        best = np.maximum(table[rows], iou(padded[rows], targets))
        table[rows] = np.where(table[rows] < 0, EMPTY_RANK, best)
    return table


def hit_table(
    ious: np.ndarray, *, ranks: Sequence[int], thresholds: Sequence[float], strict: bool = False
) -> np.ndarray:
    """Whether a query has a hit among its first k predictions.

    Args:
        ious: [Q, K], -1 for empty ranks.
        strict: `IoU > threshold` (the released scripts) instead of `>=`.

    Returns:
        bool [Q, T, len(ranks)].
    """
    best_so_far = np.maximum.accumulate(ious, axis=1)
    columns = np.minimum(np.asarray(ranks), ious.shape[1]) - 1
    best = best_so_far[:, None, columns]
    limits = np.asarray(thresholds, np.float64)[None, :, None]
    return best > limits if strict else best >= limits


def recall_at_k(
    ious: np.ndarray,
    *,
    ranks: Sequence[int] = RECALL_RANKS,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    strict: bool = False,
) -> dict[str, float]:
    """R{k}@{threshold} in percent, threshold by threshold, as the field prints it.

    Args:
        ious: [Q, K] from `iou_table`.

    Returns:
        {"R1@0.1": 52.5, "R5@0.1": ..., ...}; NaN when there is no query.
    """
    hits = hit_table(ious, ranks=ranks, thresholds=thresholds, strict=strict)
    shares = 100.0 * hits.mean(axis=0) if len(hits) else np.full(hits.shape[1:], np.nan)
    return {
        f"R{rank}@{threshold:g}": float(shares[row, column])
        for row, threshold in enumerate(thresholds)
        for column, rank in enumerate(ranks)
    }


def mean_iou(ious: np.ndarray) -> float:
    """Mean IoU of the top prediction in percent; a query without one counts 0."""
    return float(100.0 * np.maximum(ious[:, 0], 0.0).mean()) if len(ious) else float("nan")


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(
    values: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Means of bootstrap resamples.

    Args:
        values: [Q] or [Q, M], one row per query.
        groups: the film of each query: whole films are then drawn, since queries on one film are
            not independent. None: queries are drawn.

    Returns:
        [num_resamples, M] (M = 1 for a vector).
    """
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    if groups is not None:
        _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    else:
        group_of = np.arange(len(values))
    num_groups = int(group_of.max(initial=-1)) + 1
    sums = np.stack([np.bincount(group_of, column, num_groups) for column in values.T], axis=1)
    sizes = np.bincount(group_of, minlength=num_groups).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, values.shape[1]))
    for index in range(num_resamples):
        draws = rng.integers(0, num_groups, num_groups)
        times_drawn = np.bincount(draws, minlength=num_groups).astype(np.float64)
        means[index] = (times_drawn @ sums) / (times_drawn @ sizes)
    return means


def bootstrap_interval(
    values: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` [Q] with its percentile bootstrap interval (NaN when there is no value)."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    means = bootstrap_means(values, groups=groups, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of mean(first - second) over the same queries: two runs are compared query by query.

    Raises:
        ValueError: the two have different lengths.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values differ in shape: {first.shape} and {second.shape}")
    return bootstrap_interval(
        first - second, groups=groups, level=level, num_resamples=num_resamples, seed=seed
    )
