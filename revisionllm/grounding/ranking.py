"""From answers of a level to surviving ranges, and to ranked moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.grounding.calibration import Calibration
from revisionllm.grounding.levels import Level, Moment, WindowAnswer
from revisionllm.grounding.scores import SpanCosine, span_iou, suppress
from revisionllm.grounding.windows import dense_windows, merge_ranges, touching_indices

Range = tuple[float, float]

VETO_FACTOR = 0.1  # a moment that the coarse levels contradict ranks behind those they support
_LEAST_CHANCE = 1e-5  # keeps log odds finite
BLOCK_ROWS = 1024
_CHANCE_FLOOR = 1e-4  # of a stretch that no answer names: the LLM may be wrong
_ROUNDING = 1e-5  # how far a probability in half or single precision may leave 0..1
REPEATED_IOU = 0.3  # ranges that overlap by more are about the same event
WHOLE_WINDOW_WEIGHT = 0.1  # a window offered as a moment because nothing was answered


@dataclass
class Candidates:
    """Spans before ranking, arrays of one length N: seconds `[N, 2]` and `[N]` each; `answer` is
    the number of the answer that proposed the span."""

    spans_s: np.ndarray
    presence: np.ndarray
    entropy: np.ndarray
    weight: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.spans_s)


def candidates_of(answers: Sequence[WindowAnswer], duration_s: float) -> Candidates:
    """All spans of the answers, clipped to the film; spans that are empty or reversed are left out.

    Raises:
        ValueError: a number is not finite, or a presence or weight is outside 0..1.
    """
    rows = [
        (span.start_s, span.end_s, *_known(answer), span.score, number)
        for number, answer in enumerate(answers)
        for span in answer.spans
    ]
    return _table(rows, duration_s)


def take(found: Candidates, indices: np.ndarray) -> Candidates:
    """The candidates at `indices`, in that order."""
    return Candidates(
        found.spans_s[indices],
        found.presence[indices],
        found.entropy[indices],
        found.weight[indices],
        found.answer[indices],
    )


def whole_windows(answers: Sequence[WindowAnswer], duration_s: float) -> Candidates:
    """Each answer's window as a candidate of little weight."""
    rows = [
        (a.start_s, a.end_s, *_known(a), WHOLE_WINDOW_WEIGHT, number)
        for number, a in enumerate(answers)
    ]
    return _table(rows, duration_s)


def surviving_ranges(
    level: Level, answers: Sequence[WindowAnswer], duration_s: float
) -> tuple[list[Range], list[float]]:
    """Ranges that one zoom of a level keeps, best first, and scores (presence times weight).

    What nearly repeats a better range does not count against the level's budget.
    """
    if level.min_score is None:
        answers = [answer for answer in answers if answer.is_positive]
    found = candidates_of(answers, duration_s)
    scores = found.presence * found.weight
    order = np.argsort(-scores, kind="stable")
    if level.min_score is not None:
        order = order[scores[order] >= level.min_score]
    if level.keep_top is not None:
        order = order[suppress(found.spans_s[order], scores[order], iou_threshold=REPEATED_IOU)]
    order = order[: level.budget(len(order))]
    return [tuple(span) for span in found.spans_s[order].tolist()], scores[order].tolist()


def joint_ranges(
    level: Level,
    answers: Sequence[WindowAnswer],
    seen: Sequence[Range],
    duration_s: float,
    cosine: Callable[[np.ndarray], np.ndarray],
) -> tuple[list[Range], list[float]]:
    """Ranges that a level's answers and text-frame cosine believe in together, best first.

    The film is cut into stretches of one stride, each half over the next. A stretch ranks by
    `ln(chance + floor) + cosine_weight * cosine`, as by two witnesses who do not know of each
    other. Its chance is what the answers give its middle: the presence of each, shared out among
    its spans by their weights, zooms averaged. So what the LLM overlooks can still survive.

    Args:
        seen: disjoint sorted ranges of the film that were asked about; only they compete.
        cosine: `cosine(spans_s [N, 2]) -> [N]`.

    Returns:
        The ranges of the level's budget, and their chances, 0..1.
    """
    grid = dense_windows(duration_s, window_s=level.stride_s, stride_s=level.stride_s / 2)
    spans = np.array([(w.start_s, min(w.end_s, duration_s)) for w in grid])
    spans = spans[touching_indices(spans[:, 0], spans[:, 1], seen)]
    chances = _chances(candidates_of(answers, duration_s), spans.mean(axis=1))
    chances = np.minimum(chances / len(level.zooms), 1.0)
    scores = np.log(chances + _CHANCE_FLOOR) + level.cosine_weight * cosine(spans)
    order = np.argsort(-scores, kind="stable")
    if level.min_score is not None:
        order = order[chances[order] >= level.min_score]
    order = order[: level.budget(len(order))]
    return [tuple(span) for span in spans[order].tolist()], chances[order].tolist()


def _chances(found: Candidates, times_s: np.ndarray) -> np.ndarray:
    """How probable it is by the answers that they name each time, summed over answers: `[N]`."""
    totals = np.bincount(found.answer, weights=found.weight)
    masses = found.presence * found.weight / np.maximum(totals[found.answer], _LEAST_CHANCE)
    held = (found.spans_s[:, :1] <= times_s) & (times_s < found.spans_s[:, 1:])
    return masses @ held


def voted_ranges(ranges_by_zoom: Sequence[Sequence[Range]], min_votes: int) -> list[Range]:
    """Time that at least `min_votes` zooms name; if none gets so many, what gets the most.

    Args:
        ranges_by_zoom: per zoom, disjoint sorted ranges.

    Returns:
        Disjoint sorted ranges; empty only if no zoom names anything.
    """
    edges = np.unique([edge for ranges in ranges_by_zoom for span in ranges for edge in span])
    middles = (edges[1:] + edges[:-1]) / 2
    votes = np.zeros(len(middles), dtype=np.int64)
    for ranges in ranges_by_zoom:
        bounds = np.array(ranges).reshape(-1, 2)
        started = np.searchsorted(bounds[:, 0], middles)  # ranges are disjoint: one more has begun
        votes += started - np.searchsorted(bounds[:, 1], middles)  # than ended where one covers
    kept = votes >= max(1, min(min_votes, votes.max(initial=0)))
    cells = np.stack([edges[:-1], edges[1:]], axis=1)[kept] if len(middles) else []
    return merge_ranges([tuple(cell) for cell in np.array(cells).tolist()])


def best_scores(
    ranges_s: Sequence[Range], spans: Sequence[Range], scores: Sequence[float]
) -> list[float]:
    """For each range, the best score of the spans that overlap it (0 if none does)."""
    if not ranges_s or not spans:
        return [0.0] * len(ranges_s)
    return _best_overlap(np.array(ranges_s), spans, scores)[1].tolist()


def support_factors(
    spans_s: np.ndarray, retrieved: Sequence[tuple[list[Range], list[float]]], *, rescale: bool
) -> np.ndarray:
    """Factor `[N]` by which the coarse levels scale each span's score.

    Args:
        retrieved: per level the ranges it names and their scores; a level that names nothing is
            silent.
        rescale: fine_to_coarse, each level multiplies by the score of its best range that overlaps
            the span, or by the veto. False: exhaustive, 1 if any level names the span, else the
            veto.
    """
    by_level = [_best_overlap(spans_s, *level) for level in retrieved if level[0]]
    if not by_level:
        return np.ones(len(spans_s))
    if rescale:
        scaled = [np.where(named, best, VETO_FACTOR) for named, best in by_level]
        return np.prod(scaled, axis=0)
    return np.where(np.any([named for named, _ in by_level], axis=0), 1.0, VETO_FACTOR)


def rank(
    found: Candidates,
    answers: Sequence[WindowAnswer],
    *,
    query: int,
    level: Level,
    factor: np.ndarray,
    cosine: SpanCosine | None,
    calibration: Calibration | None,
    nms_iou: float,
    top_k: int,
) -> list[Moment]:
    """Ranked moments: score = confidence x the span's weight x `factor`, overlaps suppressed.

    The confidence is `calibration` of the parts (presence and its log odds, entropy, support, what
    another window says, and cosine when it can be had); without a calibration it is the presence.
    Of equal scores (models that say yes or no alone) the better supported goes first, then the
    better cosine.
    `answers`: all that the level gave, those that name nothing among them.
    """
    if not len(found):
        return []
    parts = {"presence": found.presence, "entropy": found.entropy}
    parts["log_odds"] = log_odds(found.presence)
    parts["support"] = support(found.spans_s, found.presence)
    asked = answers if level.kind == "dense" else ()  # segments' answers are about many windows
    parts["second_look"], parts["seen_twice"] = second_looks(found, asked)
    if cosine is not None:
        parts["cosine"] = np.asarray(cosine(query, found.spans_s), dtype=np.float64)
        _require_finite(parts["cosine"], "cosine")
    confidence = found.presence if calibration is None else calibration.confidence(parts)
    scores = confidence * found.weight * factor
    spans = found.spans_s
    order = np.lexsort((-parts.get("cosine", scores), -parts["support"], -scores))
    kept = order[suppress(spans[order], scores[order], iou_threshold=nms_iou, top_k=top_k)]
    return [
        Moment(
            start_s=float(spans[i, 0]),
            end_s=float(spans[i, 1]),
            score=float(scores[i]),
            parts={name: float(values[i]) for name, values in parts.items()},
            level=level.name,
        )
        for i in kept.tolist()
    ]


def support(spans_s: np.ndarray, presence: np.ndarray) -> np.ndarray:
    """How far another window agrees: the largest IoU x presence of any other candidate, 0..1.

    Windows overlap, so an event is mostly seen twice; a false alarm seldom recurs at its place.
    """
    agreement = np.zeros(len(spans_s))
    for i, span in enumerate(spans_s):
        weighted = span_iou(span, spans_s) * presence
        weighted[i] = 0.0
        agreement[i] = weighted.max()
    return agreement


def log_odds(presence: np.ndarray) -> np.ndarray:
    """Log odds of probabilities, within 11.5 of 0: tells 0.99 from 0.9999, as `presence` cannot."""
    return np.log(presence + _LEAST_CHANCE) - np.log(1 - presence + _LEAST_CHANCE)


def second_looks(
    found: Candidates, answers: Sequence[WindowAnswer]
) -> tuple[np.ndarray, np.ndarray]:
    """What the window says that shows most of a span, apart from the one that proposed it.

    Returns:
        `[N]` log odds of that window's presence times the share of the span that it shows; and
        `[N]` that share, 0..1. Both are 0 where no other window was asked.
    """
    if not answers:
        return np.zeros(len(found)), np.zeros(len(found))
    bounds = np.array([(a.start_s, a.end_s) for a in answers])
    other, share = np.zeros(len(found), dtype=np.int64), np.zeros(len(found))
    for rows in _blocks(len(found)):
        starts_s, ends_s = found.spans_s[rows, :1], found.spans_s[rows, 1:]
        shared_s = np.minimum(ends_s, bounds[:, 1]) - np.maximum(starts_s, bounds[:, 0])
        shares = np.clip(shared_s / (ends_s - starts_s), 0.0, 1.0)
        places = np.arange(len(shares))
        shares[places, found.answer[rows]] = 0.0
        other[rows] = shares.argmax(axis=1)
        share[rows] = shares[places, other[rows]]
    says = log_odds(np.clip([a.presence or 0.0 for a in answers], 0.0, 1.0))
    return says[other] * share, share


def _best_overlap(
    spans_s: np.ndarray, ranges: Sequence[Range], scores: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.array(ranges)
    touched, best = np.zeros(len(spans_s), dtype=bool), np.zeros(len(spans_s))
    for rows in _blocks(len(spans_s)):
        starts_s, ends_s = spans_s[rows, :1], spans_s[rows, 1:]
        touching = (starts_s < bounds[None, :, 1]) & (bounds[None, :, 0] < ends_s)
        touched[rows] = touching.any(axis=1)
        best[rows] = np.where(touching, np.array(scores), 0.0).max(axis=1)
    return touched, best


def _blocks(count: int) -> Iterator[slice]:
    """0..count-1 in pieces, so that tables of all pairs stay small in films of many hours."""
    for first in range(0, count, BLOCK_ROWS):
        yield slice(first, first + BLOCK_ROWS)


def _known(answer: WindowAnswer) -> tuple[float, float]:
    """Presence and entropy; 0 where an answer comes without."""
    return answer.presence or 0.0, answer.entropy or 0.0


def _table(rows: list[tuple], duration_s: float) -> Candidates:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    _require_finite(table, "answer")
    chances = table[:, [2, 4]]
    if (chances < -_ROUNDING).any() or (chances > 1 + _ROUNDING).any():
        raise ValueError("presence and span scores must be in 0..1")
    table[:, [2, 4]] = np.clip(chances, 0.0, 1.0)
    table[:, :2] = np.clip(table[:, :2], 0.0, duration_s)
    table = table[table[:, 0] < table[:, 1]]
    return Candidates(table[:, :2], *table[:, 2:5].T, table[:, 5].astype(np.int64))


def _require_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"the model gave a {what} that is not finite")
