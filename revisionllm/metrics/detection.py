"""Measures beyond recall: mAP, set-valued IoU, calibration, and "not present" (NumPy only).

mAP follows the QVHighlights evaluation (https://arxiv.org/abs/2107.09609): per query, the 10 best
predictions, greedy one-to-one matching in score order, interpolated precision, IoU 0.50:0.05:0.95.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.grounding.windows import merge_ranges
from revisionllm.metrics.recall import iou_table, span_iou

MAP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MAP_MAX_PREDICTIONS = 10
CALIBRATION_BINS = 10


def average_precision(
    predicted: np.ndarray, truth: np.ndarray, thresholds: Sequence[float] = MAP_THRESHOLDS
) -> np.ndarray:
    """Average precision of one query at each IoU threshold.

    Args:
        predicted: [n, 2], best first (the caller cuts to the 10 best).
        truth: [m, 2], m >= 1.

    Returns:
        [T], 0..1.
    """
    if not len(predicted):
        return np.zeros(len(thresholds))
    ious = span_iou(predicted[:, None], truth[None])
    return np.array([area_under(matches(ious, limit), len(truth)) for limit in thresholds])


def matches(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Which predictions take a true span that no better-ranked one took; bool [n].

    Args:
        ious: [n, m], best prediction first; of equally overlapped true spans the first is taken.
    """
    taken = np.zeros(ious.shape[1], bool)
    matched = np.zeros(len(ious), bool)
    for rank, row in enumerate(ious):
        free = np.where(taken, -1.0, row)
        best = int(np.argmax(free))
        if free[best] >= threshold:
            taken[best] = matched[rank] = True
    return matched


def area_under(matched: np.ndarray, num_true: int) -> float:
    """Area under the interpolated precision-recall curve.

    Args:
        matched: bool [n], whether each prediction, best first, takes a true span.
    """
    hits = np.cumsum(matched)
    precision = hits / np.arange(1, len(matched) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[matched].sum() / num_true)


def mean_average_precision(
    predicted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    thresholds: Sequence[float] = MAP_THRESHOLDS,
    *,
    num_predictions: int = MAP_MAX_PREDICTIONS,
) -> np.ndarray:
    """mAP in percent at each threshold, [T]; a query without predictions counts 0."""
    predicted = [spans[:num_predictions] for spans in predicted]
    if not len(predicted):
        return np.full(len(thresholds), np.nan)
    ones = [row for row, spans in enumerate(truth) if len(spans) == 1]
    total = _sum_of_ones([predicted[row] for row in ones], [truth[row] for row in ones], thresholds)
    for spans, true_spans in zip(predicted, truth, strict=True):
        if len(true_spans) > 1:
            total += average_precision(spans, true_spans, thresholds)
    return 100.0 * total / len(predicted)


def _sum_of_ones(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], thresholds: Sequence[float]
) -> np.ndarray:
    """Sum of `average_precision` where one span is true: 1 / rank of the first hit. [T]"""
    table = iou_table(predicted, truth, max_rank=MAP_MAX_PREDICTIONS)
    hits = table[:, :, None] >= np.asarray(thresholds)
    return np.where(hits.any(axis=1), 1.0 / (np.argmax(hits, axis=1) + 1), 0.0).sum(axis=0)


def merge_spans(spans: np.ndarray) -> np.ndarray:
    """Disjoint spans [k, 2] that cover the same seconds as `spans` [n, 2], in film order."""
    return np.array(merge_ranges(map(tuple, spans.tolist()))).reshape(-1, 2)


def shared_seconds(first: np.ndarray, second: np.ndarray) -> float:
    """Seconds shared by each span of [n, 2] with each of [m, 2], added up."""
    starts = np.maximum(first[:, None, 0], second[None, :, 0])
    ends = np.minimum(first[:, None, 1], second[None, :, 1])
    return np.maximum(ends - starts, starts.dtype.type(0)).sum()


def set_iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of the seconds covered by two sets of spans ([n, 2], [m, 2]); 0 if both are empty."""
    first, second = merge_spans(first), merge_spans(second)
    overlap = shared_seconds(first, second)
    union = (first[:, 1] - first[:, 0]).sum() + (second[:, 1] - second[:, 0]).sum() - overlap
    return float(overlap / union) if union > 0 else 0.0


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and its reliability diagram (bins of equal width over 0..1)."""

    ece: float
    bin_counts: list[int]
    bin_confidence: list[float | None]  # mean confidence of a bin; None: empty
    bin_accuracy: list[float | None]


def calibration(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> Calibration:
    """Expected calibration error (https://arxiv.org/abs/1706.04599).

    Args:
        confidence: [Q], 0..1.
        correct: [Q], bool.

    Raises:
        ValueError: a confidence outside 0..1.
    """
    if len(confidence) and (confidence.min() < 0 or confidence.max() > 1):
        raise ValueError("confidence must lie in 0..1")
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = np.bincount(bins, confidence, num_bins)
    hits = np.bincount(bins, correct.astype(np.float64), num_bins)
    ece = float(np.abs(sums - hits).sum() / len(confidence)) if len(confidence) else float("nan")
    means = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    shares = [float(h / n) if n else None for h, n in zip(hits, counts, strict=True)]
    return Calibration(ece, counts.tolist(), means, shares)


def not_present(absent: np.ndarray, said_absent: np.ndarray) -> dict[str, float | int | None]:
    """Precision and recall (percent) of the answer "not present".

    Args:
        absent: [Q] bool, the event is not in the film.
        said_absent: [Q] bool, the answer says so.

    Returns:
        precision (None: never said), recall (None: nothing absent) and the counts.
    """
    right = int((absent & said_absent).sum())
    num_absent, num_said = int(absent.sum()), int(said_absent.sum())
    return {
        "precision": 100.0 * right / num_said if num_said else None,
        "recall": 100.0 * right / num_absent if num_absent else None,
        "num_absent": num_absent,
        "num_said_absent": num_said,
    }
