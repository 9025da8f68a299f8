"""Scores of answers and spans: entropy, presence, text-frame cosine, merging, suppression.

Ours: probabilities and entropies are of the grammar-masked softmax at temperature 1; cosines use
features normalised to unit length. Functions named `released_*` reproduce the published evaluation
and its logs, for comparison only. Confidence out of several scores: `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.grounding.windows import released_widen

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


@dataclass(frozen=True)
class AnswerEntropy:
    """Entropy of one answer in nats, over the tokens that the grammar left open."""

    mean: float
    max: float


def answer_entropy(entropies: Sequence[float]) -> AnswerEntropy:
    """Mean and max of the open tokens' entropies (forced tokens are not in the list); 0 if none."""
    if len(entropies) == 0:
        return AnswerEntropy(0.0, 0.0)
    return AnswerEntropy(float(np.mean(entropies)), float(np.max(entropies)))


def released_entropy_stats(logits: np.ndarray) -> np.ndarray:
    """Max, min, mean and (unbiased) deviation of the raw entropies of a row's steps.

    Args:
        logits: `[B, steps, V]`, padding after the end included, as the released code had it.

    Returns:
        float64 `[B, 4]`; the deviation of a single step is nan.
    """
    entropies = token_entropy(logits)
    steps = entropies.shape[1]
    centred = ((entropies - entropies.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    deviation = np.sqrt(centred / (steps - 1)) if steps > 1 else np.full(len(entropies), np.nan)
    return np.stack(
        [entropies.max(axis=1), entropies.min(axis=1), entropies.mean(axis=1), deviation], axis=1
    )


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


def released_cosine(frames: np.ndarray, sentence: np.ndarray, count: int = TOP_FRAMES) -> float:
    """The released score of a span: values around 10.

    Frames `[T, D]` are divided by their norm over the *frame* axis, the sentence `[D]` is left as
    it is, the `count` largest products are summed.
    """
    frames = np.asarray(frames, dtype=np.float32)
    scaled = frames / np.linalg.norm(frames, axis=0, keepdims=True)
    return float(np.sort(scaled @ sentence)[-count:].sum())


def released_span_cosine(
    window_frames: np.ndarray,
    first: int,
    last: int,
    sentence: np.ndarray,
    count: int = TOP_FRAMES,
) -> float:
    """`released_cosine` of an answer in its window's frames `[F, D]`, both ends in; reversed: 0."""
    first, last = released_widen(first, last)
    frames = window_frames[first : last + 1]
    return released_cosine(frames, sentence, count) if len(frames) else 0.0


def released_top_k_pool(text: np.ndarray, video: np.ndarray, count: int) -> np.ndarray:
    """Sum of the `count` frames most similar to each text: `[Q, D]`, `[B, T, D]` -> `[B, Q, D]`."""
    similarity = np.einsum("btd,qd->bqt", video, text)
    best = np.argsort(-similarity, axis=-1)[..., :count]
    return np.take_along_axis(video[:, None], best[..., None], axis=2).sum(axis=2)


def normalise_by_max(scores: np.ndarray) -> np.ndarray:
    """Scores divided by their maximum; unchanged if that is not positive (released: fails)."""
    scores = np.asarray(scores, dtype=np.float64)
    top = scores.max(initial=0.0)
    return scores / top if top > 0 else scores


def merge_scores(cosine: np.ndarray, entropy: np.ndarray, how: str) -> np.ndarray:
    """The released merge: "add" is `cosine - entropy`, "multiply" is `cosine / entropy`.

    Entropies of 0 count as the smallest positive float, so that the result is finite and ordered.

    Raises:
        ValueError: `how` is neither.
    """
    cosine, entropy = np.asarray(cosine, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if how == "add":
        return cosine - entropy
    if how == "multiply":
        return cosine / np.maximum(entropy, np.finfo(np.float32).tiny)
    raise ValueError(f"how must be 'add' or 'multiply', got {how!r}")


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
    kept = [members[0] for members in _clusters(spans, scores, iou_threshold, top_k)]
    return np.array(kept, dtype=np.int64)


def merge_duplicates(
    spans: np.ndarray, scores: np.ndarray, *, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merge near-duplicates, as overlapping windows give them, into their score-weighted mean span.

    Returns:
        Spans `[M, 2]` and the index `[M]` of the best member of each, best first; the merged span
        keeps the score of its best member. Scores must not be negative.
    """
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    weights = np.asarray(scores, dtype=np.float64)
    clusters = _clusters(spans, weights, iou_threshold, None)
    merged = [
        np.average(spans[m], axis=0, weights=weights[m] if weights[m].sum() > 0 else None)
        for m in clusters
    ]
    best = np.array([members[0] for members in clusters], dtype=np.int64)
    return np.array(merged).reshape(-1, 2), best


def _clusters(
    spans: np.ndarray, scores: np.ndarray, iou_threshold: float, top_k: int | None
) -> list[np.ndarray]:
    """Indices grouped around the best remaining span, each group best first."""
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    clusters: list[np.ndarray] = []
    while order.size and (top_k is None or len(clusters) < top_k):
        near = span_iou(spans[order[0]], spans[order]) > iou_threshold
        near[0] = True  # a span of no length does not overlap itself, and must still leave the list
        clusters.append(order[near])
        order = order[~near]
    return clusters


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
