"""The released evaluation's arithmetic, kept for comparison with published numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from revisionllm.grounding.scores import TOP_FRAMES, token_entropy


def released_window_table(
    num_features: int,
    *,
    window_s: float,
    feature_fps: float,
    hops_per_window: int = 2,
    shift_tail: bool = False,
) -> np.ndarray:
    """First and last feature of each window as the released evaluation counts them.

    Dense evaluation: 2 hops per window, a cut last window. Retrieval: 5 hops, the tail shifted
    back to full length (`shift_tail`), which gives duplicates and, in films shorter than a window,
    negative starts.

    Returns:
        int64 `[num_windows, 2]`; empty for films shorter than a hop or two.
    """
    length = round(window_s * feature_fps)
    num_windows = max(0, math.ceil(num_features / (length // hops_per_window)) - 1)
    first = np.arange(num_windows, dtype=np.int64) * length // hops_per_window
    last = np.minimum(first + length, num_features - 1)
    if shift_tail:
        first = np.where(first + length > num_features - 1, last - length, first)
    return np.stack([first, last], axis=1)


def released_indices(
    first: int, last: int, frames_per_window: int, num_features: int
) -> np.ndarray:
    """Evenly spaced features from `first` to `last`, both in, truncated: int64
    `[frames_per_window]`.

    The released code fails or wraps round where a window leaves the film; here indices are clipped.
    """
    indices = np.linspace(first, last, frames_per_window).astype(np.int64)
    return np.clip(indices, 0, num_features - 1)


def released_widen(first: int, last: int) -> tuple[int, int]:
    """An answer of one frame gets a frame on each side (its start stays at least 0)."""
    return (max(0, first - 1), last + 1) if first == last else (first, last)


def released_film_span(
    first: int, last: int, window_index: int, *, frames_per_window: int, num_film_frames: int
) -> tuple[float, float] | None:
    """A dense answer as fractions of the film, or None if the released evaluation skips it.

    Args:
        num_film_frames: `int(duration_s * frames_per_window / window_s)`.
    """
    if first == last == frames_per_window - 1:
        return None
    first, last = released_widen(first, last)
    offset = window_index * frames_per_window // 2
    return (offset + first) / num_film_frames, (offset + last) / num_film_frames


def released_retrieved_segments(
    answer: int | None,
    *,
    zoom: int,
    shuffle: Sequence[int],
    batch_start: int,
    segment_ids: Sequence[int],
    batch_size: int,
) -> tuple[int, int] | None:
    """The segments [n-1, n+1] that a retrieval answer names, in the released evaluation.

    Args:
        answer: the first integer of the answer, None if there is none.
        zoom: how often each segment stood in the question.
        shuffle: position in the question -> position in the batch.
        batch_start: position of the batch in `segment_ids`.
        segment_ids: the segments asked about.
        batch_size: clamps the end (a bug of the released code: nothing is found past it).
    """
    if answer is None:
        return None
    position = answer // zoom
    if position < len(shuffle):
        position = shuffle[position]
    segment = segment_ids[min(max(position + batch_start, 0), len(segment_ids) - 1)]
    return max(0, segment - 1), min(segment + 1, batch_size)


def released_truth_segments(start_s: float, end_s: float, num_segments: int) -> list[int]:
    """Segments that hold an event by the released logs: 90-second units, whatever the stride."""
    return list(range(math.floor(start_s / 90), min(math.ceil(end_s / 90) + 1, num_segments)))


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
