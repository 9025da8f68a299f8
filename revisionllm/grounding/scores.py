"""Scores of answers and spans: entropy, presence, text-frame cosine, merging, suppression.

Ours: probabilities and entropies are of the grammar-masked softmax at temperature 1; cosines use
features normalised to unit length. Functions named `released_*` reproduce the published evaluation
and its logs, for comparison only. Confidence out of several scores: `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TOP_FRAMES = 3  # frames of a span that its cosine is taken over


def log_softmax(logits: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Log-probabilities over the last axis, float64.

    Args:
        logits: `[..., V]`, -inf allowed.
        allowed: token ids `[A]` the grammar allows (result `[..., A]`, same order); None: all.

    Raises:
        ValueError: a row has no finite logit among the allowed ones.
    """
    chosen = np.asarray(logits if allowed is None else logits[..., allowed], dtype=np.float64)
    top = chosen.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("a row of logits has no finite value among the allowed tokens")
    shifted = chosen - top
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def token_entropy(logits: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Entropy in nats of the (masked) softmax of each row: logits `[..., V]` -> float64 `[...]`."""
    log_probs = log_softmax(logits, allowed)
    probs = np.exp(log_probs)
    return -(probs * np.where(probs > 0, log_probs, 0.0)).sum(axis=-1)


def presence(logits: np.ndarray, allowed: np.ndarray, absent_token: int) -> float:
    """1 - P(first token of "Not Present") where the grammar decides, 0..1.

    Args:
        logits: `[V]` at the grammar's `decision` state.
        allowed: `grammar.allowed(grammar.decision)`, sorted.
        absent_token: `grammar.absent_token`.
    """
    log_probs = log_softmax(logits, allowed)
    at = int(np.searchsorted(allowed, absent_token))
    return float(-np.expm1(log_probs[at]))


def mean_entropy(entropies: Sequence[float]) -> float:
    """Of an answer's open tokens, nats (forced tokens are not in the list); 0 if there is none."""
    return float(np.mean(entropies)) if len(entropies) else 0.0


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows `[..., D]` scaled to unit length over features, float32; rows of zeros stay zeros."""
    features = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms > 0, norms, 1.0)


def frame_cosines(frames: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """Cosine of every sentence with every frame: `[T, D]`, `[Q, D]` -> float32 `[Q, T]`."""
    return unit_rows(sentences) @ unit_rows(frames).T


def top_mean(values: np.ndarray, count: int = TOP_FRAMES) -> np.ndarray:
    """Mean of the `count` largest values of the last axis (of all, if there are fewer)."""
    count = min(count, values.shape[-1])
    return np.partition(values, -count, axis=-1)[..., -count:].mean(axis=-1)


def span_iou(
    first: np.ndarray, second: np.ndarray, *, dtype: type = np.float64, added: float = 0.0
) -> np.ndarray:
    """Intersection over union of spans, broadcast over leading axes.

    Args:
        first, second: [..., 2] seconds, start <= end.
        dtype: precision of the arithmetic; some peers' is single.
        added: added to the union, as some peers do.

    Returns:
        `dtype` [...], 0..1; 0 where both spans are empty.
    """
    first, second = np.asarray(first, dtype), np.asarray(second, dtype)
    start = np.maximum(first[..., 0], second[..., 0])
    end = np.minimum(first[..., 1], second[..., 1])
    overlap = np.maximum(end - start, dtype(0))
    # of spans that overlap the hull is the union; a sum of lengths misses it in the last digit
    union = np.maximum(first[..., 1], second[..., 1]) - np.minimum(first[..., 0], second[..., 0])
    return np.divide(overlap, union + dtype(added), out=np.zeros_like(union), where=union > 0)


def suppress(
    spans: np.ndarray, scores: np.ndarray, *, iou_threshold: float, top_k: int | None = None
) -> np.ndarray:
    """Greedy non-maximum suppression of spans.

    Args:
        spans: `[N, 2]` start and end.
        scores: `[N]`; ties keep the earlier one.
        iou_threshold: a span that overlaps a better kept one by more than this is dropped.
        top_k: stop after so many.

    Returns:
        int64 indices of what is kept, best first.
    """
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    kept: list[int] = []
    while order.size and (top_k is None or len(kept) < top_k):
        kept.append(int(order[0]))
        near = span_iou(spans[order[0]], spans[order]) > iou_threshold
        near[0] = True  # a span of no length does not overlap itself, and must still leave the list
        order = order[~near]
    return np.array(kept, dtype=np.int64)


SpanCosine = Callable[[int, np.ndarray], np.ndarray]


def span_cosine_of(cosines: np.ndarray, feature_fps: float) -> SpanCosine:
    """The search's `cosine` callable out of precomputed frame cosines.

    Args:
        cosines: `frame_cosines`, `[Q, T]`; feature i is at `i / feature_fps` seconds.

    Returns:
        `cosine(query, spans_s [N, 2]) -> float64 [N]`, the mean over the 3 best frames of each
        span; a span between two frames takes the nearest one before it.
    """
    num_features = cosines.shape[1]

    def cosine(query: int, spans_s: np.ndarray) -> np.ndarray:
        spans_s = np.asarray(spans_s, dtype=np.float64).reshape(-1, 2)
        first = np.clip(np.ceil(spans_s[:, 0] * feature_fps - 1e-6), 0, num_features - 1)
        last = np.clip(np.ceil(spans_s[:, 1] * feature_fps - 1e-6), 1, num_features)
        first = np.minimum(first, last - 1).astype(np.int64)
        lengths = last.astype(np.int64) - first
        means = np.empty(len(spans_s))
        for length in np.unique(lengths):  # spans of one grid share a length: one gather for all
            same = lengths == length
            means[same] = top_mean(cosines[query][first[same, None] + np.arange(length)])
        return means

    return cosine
