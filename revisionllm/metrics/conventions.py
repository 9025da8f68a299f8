"""How each peer counts: conventions of `eval score`, each with the peer's own headline numbers.

What differs, and whose fault it is, stands in docs/evaluation.md ("Conventions"). All of this is
written from the evaluators' behaviour:
https://github.com/houzhijian/CONE (mad), https://github.com/EGO4D/episodic-memory (nlq),
https://github.com/line/lighthouse and https://github.com/jayleicn/moment_detr (qvhighlights),
https://github.com/bytedance/vidi (vue-tr), https://github.com/Lzq5/UniTime (unitime),
https://github.com/antoyang/VidChapters (vidchapters), https://github.com/TencentARC/TimeLens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.errors import UserError
from revisionllm.grounding.scores import span_iou
from revisionllm.metrics.detection import (
    MAP_MAX_PREDICTIONS,
    MAP_THRESHOLDS,
    area_under,
    matches,
    merge_spans,
    shared_seconds,
)
from revisionllm.records.rankings import LabelledQuery, Ranking

Pairs = Sequence[tuple[LabelledQuery, Ranking]]
LONGEST_TRUE_S = 1500.0  # lighthouse's one range of event lengths is (0, 1500]
CLIP_S = 2.0  # of QVHighlights' saliency
AUC_THRESHOLDS = np.linspace(0, 1, 101)
CATEGORIES = ("duration_category", "query_format", "query_modality")  # of VUE-TR


@dataclass(frozen=True)
class Convention:
    """How overlaps become hits.

    Attributes:
        strict: a hit is IoU > threshold, not >=.
        float32: IoU and thresholds are compared in single precision.
        decimals: IoU is rounded to so many; None: not at all.
        added_to_union: a small number below the fraction.
        of_answered: queries without an answer leave the denominator.
        in_file_order: answers are taken as they stand, whatever their scores.
        headline: the peer's own numbers, from queries with their answers.
    """

    name: str
    strict: bool = False
    float32: bool = False
    decimals: int | None = None
    added_to_union: float = 0.0
    of_answered: bool = False
    in_file_order: bool = False
    headline: Callable[[Pairs], dict[str, float]] | None = None

    def iou(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """IoU [...] of spans [..., 2] as the peer has it, float64."""
        dtype = np.float32 if self.float32 else np.float64
        found = span_iou(first, second, dtype=dtype, added=self.added_to_union)
        return np.float64(found if self.decimals is None else np.round(found, self.decimals))

    def limits(self, thresholds: Sequence[float]) -> np.ndarray:
        """The thresholds [T] that IoU is held against, float64."""
        limits = np.asarray(thresholds, np.float64)
        return np.float64(np.float32(limits)) if self.float32 else limits


def _sum_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over the sum of lengths less the intersection; NaN of two empty spans."""
    shared = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    shared = np.maximum(shared, 0.0)
    lengths = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (lengths - shared)


# --- Ego4D NLQ, TimeLens, VidChapters: recall of the first answers ---


def _first_spans(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """First answer and first true span of each query [Q, 2]; NaN where there is no answer."""
    nowhere = np.full(2, np.nan)
    answers = [answer.spans[0] if len(answer.spans) else nowhere for _, answer in pairs]
    return np.array(answers), np.array([query.spans[0] for query, _ in pairs])


def _timelens(pairs: Pairs) -> dict[str, float]:
    answers, truth = _first_spans(pairs)
    ious = span_iou(answers, truth)
    found = {f"R1@{limit}": _percent(ious >= limit) for limit in (0.3, 0.5, 0.7)}
    return found | {"mIoU": _percent(ious)}


def _nlq(pairs: Pairs) -> dict[str, float]:
    found = {}
    ious = [span_iou(answer.spans, query.spans[:1]) for query, answer in pairs]
    for rank in (1, 5):
        for limit in (0.3, 0.5):
            found[f"R{rank}@{limit}"] = _percent([(row[:rank] > limit).any() for row in ious])
    return found | {"mIoU": _percent([row[0] if len(row) else 0.0 for row in ious])}


def _vidchapters(pairs: Pairs) -> dict[str, float]:
    answers, truth = _first_spans(pairs)
    ious = span_iou(answers, truth, added=1e-8)
    found = {f"R1@{limit}": _percent(ious > limit) for limit in (0.3, 0.5, 0.7, 0.9)}
    apart_s = np.abs(answers[:, 0] - truth[:, 0])
    return found | {f"R@{limit}s": _percent(apart_s < limit) for limit in (1, 3, 5, 10)}


def _percent(values) -> float:
    return 100.0 * float(np.mean(values)) if len(values) else float("nan")


# --- UniTime: one IoU of the sets, overlapping answers counted as often as they are given ---


def _unitime(pairs: Pairs) -> dict[str, float]:
    ious = np.array([_unitime_iou(answer.spans, query.spans) for query, answer in pairs])
    found = {f"R1@{limit}": _percent(ious > np.float32(limit)) for limit in (0.3, 0.5, 0.7)}
    return found | {"mIoU": _percent(ious)}


def _unitime_iou(answer: np.ndarray, truth: np.ndarray) -> np.float32:
    answer, truth = answer.astype(np.float32), truth.astype(np.float32)
    shared = shared_seconds(answer, truth)
    lengths = (answer[:, 1] - answer[:, 0]).sum() + (truth[:, 1] - truth[:, 0]).sum()
    union = lengths - shared
    return np.float32(shared / union) if union != 0 else np.float32(0)


# --- QVHighlights: mAP and R1 of moments, mAP and Hit@1 of highlights ---


def _qvhighlights(pairs: Pairs) -> dict[str, float]:
    kept = []
    for query, answer in pairs:
        lengths = query.spans[:, 1] - query.spans[:, 0]
        truth = query.spans[(lengths > 0) & (lengths <= LONGEST_TRUE_S)]
        if len(truth):
            kept.append((truth, answer))
    aps = [_last_of_equals_ap(a, truth) for truth, a in kept if len(a.spans)]
    table = np.array(aps).reshape(-1, len(MAP_THRESHOLDS))
    by_limit = 100.0 * table.mean(axis=0) if len(table) else np.full(len(MAP_THRESHOLDS), np.nan)
    found = {"mAP": float(by_limit.mean())}
    found |= {"mAP@0.5": float(by_limit[0]), "mAP@0.75": float(by_limit[5])}
    best = np.array([_first_with_best(answer, truth) for truth, answer in kept])
    found |= {f"R1@{limit}": _percent(best >= limit) for limit in (0.5, 0.7)}
    return found | _highlights(pairs)


def _first_with_best(answer: Ranking, truth: np.ndarray) -> float:
    """IoU of the file's first answer with the true span that it overlaps most."""
    if not len(answer.spans):
        return 0.0
    first = answer.spans[:1]
    return float(span_iou(first, truth[[int(np.argmax(_sum_iou(first, truth)))]])[0])


def _last_of_equals_ap(answer: Ranking, truth: np.ndarray) -> np.ndarray:
    """Average precision at each threshold; of true spans that overlap alike the last one counts."""
    spans = answer.spans[:MAP_MAX_PREDICTIONS]
    if answer.scores is not None:
        spans = spans[np.argsort(-answer.scores[:MAP_MAX_PREDICTIONS], kind="stable")]
    # `matches` takes the first of equals; NaN, of two empty spans, is more than any limit
    ious = np.nan_to_num(_sum_iou(spans[:, None], truth[None]), nan=np.inf)[:, ::-1]
    return np.array([area_under(matches(ious, limit), len(truth)) for limit in MAP_THRESHOLDS])


def _highlights(pairs: Pairs) -> dict[str, float]:
    """HL-mAP and HL-Hit1 of clips that at least one annotator calls fair, good or very good."""
    rows = []
    for query, answer in pairs:
        scores = answer.extra.get("pred_saliency_scores")
        if not scores or "saliency_scores" not in query.extra:
            return {}
        try:
            rows.append((_clip_scores(query), np.asarray(scores, np.float64).reshape(-1)))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise UserError(
                f"query {query.qid}: its saliency scores cannot be used ({error}); convert the"
                " files to moment-detr and qvhighlights without them, or mend them"
            ) from error
    found = {}
    for level, name in ((2, "Fair"), (3, "Good"), (4, "VeryGood")) if rows else ():
        truth = [(clips >= level, scores) for clips, scores in rows]
        aps = [
            _interpolated_ap(clips[:, worker], scores)
            for clips, scores in truth
            for worker in range(3)
        ]
        hits = [
            clips[np.argmax(scores)].any() if np.argmax(scores) < len(clips) else False
            for clips, scores in truth
        ]
        found |= {f"HL-mAP {name}": _percent(aps), f"HL-Hit1 {name}": _percent(hits)}
    return found


def _clip_scores(query: LabelledQuery) -> np.ndarray:
    """Saliency [clips, 3] of the whole film; 0 outside the relevant clips."""
    clips = np.zeros((int((query.duration_s or 0) / CLIP_S), 3))
    clips[np.asarray(query.extra["relevant_clip_ids"], int)] = query.extra["saliency_scores"]
    return clips


def _interpolated_ap(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean of the interpolated precision over the steps of recall."""
    padded = np.zeros(len(truth))
    padded[: min(len(truth), len(scores))] = scores[: len(truth)]
    if truth.all() or not truth.any():
        return float(truth.any())
    order = np.argsort(-padded, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(padded[order])), len(truth) - 1)
    hits = np.cumsum(truth[order])[ends]
    precision = hits / (ends + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.diff(hits, prepend=0) > 0].mean())


# --- VUE-TR: areas under the curves of IoU, precision and recall ---


def _vue_tr(pairs: Pairs) -> dict[str, float]:
    found = _vue_scores(pairs)
    for category in CATEGORIES:
        values = [str(query.extra.get(category)) for query, _ in pairs]
        for value in dict.fromkeys(values):
            if value != "None":
                some = [pair for pair, own in zip(pairs, values, strict=True) if own == value]
                found |= {f"{name} {value}": score for name, score in _vue_scores(some).items()}
    return found


def _vue_scores(pairs: Pairs) -> dict[str, float]:
    ious, precisions, recalls = [], [], []
    for query, answer in pairs:
        rows = np.asarray(answer.extra.get("rows", answer.spans), np.float64).reshape(-1, 2)
        rows = np.column_stack([np.floor(rows[:, 0]), np.ceil(rows[:, 1])])  # whole seconds
        ious.append(_vue_iou(rows, query.spans))
        answered, truth = np.sort(rows, axis=1), query.spans
        shared = _walked_intersection(truth, answered)
        length, true_length = np.diff(answered).sum(), np.diff(truth).sum()
        if true_length:
            recalls.append(shared / true_length)
        if length or not true_length:  # an answer of no length has no precision
            precisions.append(shared / length if length else 1.0)
    return {
        "IoU-AUC": _area([np.mean(np.array(ious) > limit) for limit in AUC_THRESHOLDS]),
        "precision-AUC": _area([np.mean(np.array(precisions) >= t) for t in AUC_THRESHOLDS]),
        "recall-AUC": _area([np.mean(np.array(recalls) >= t) for t in AUC_THRESHOLDS]),
    }


def _vue_iou(rows: np.ndarray, truth: np.ndarray) -> float:
    if not len(truth):
        return float(not len(rows))
    merged = merge_spans(rows[rows[:, 0] <= rows[:, 1]])
    shared = shared_seconds(merged, truth)
    union = np.diff(merged).sum() + np.diff(truth).sum() - shared
    return float(np.clip(shared / (union + 1e-16), 0.0, 1.0))


def _walked_intersection(first: np.ndarray, second: np.ndarray) -> float:
    """Seconds in both lists, each walked once in its own order: overlaps out of order are lost."""
    one = two = 0
    shared = 0.0
    while one < len(first) and two < len(second):
        start_s = max(first[one, 0], second[two, 0])
        shared += max(0.0, min(first[one, 1], second[two, 1]) - start_s)
        one, two = (one + 1, two) if first[one, 1] < second[two, 1] else (one, two + 1)
    return shared


def _area(values: Sequence[float]) -> float:
    """Area in percent under a curve over `AUC_THRESHOLDS`, by trapezoids."""
    values = np.asarray(values)
    return 100.0 * float(((values[1:] + values[:-1]) / 2 * np.diff(AUC_THRESHOLDS)).sum())


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("field"),
        Convention("released", strict=True, decimals=2, of_answered=True),
        Convention("mad", strict=True, float32=True, of_answered=True, in_file_order=True),
        Convention("nlq", strict=True, of_answered=True, in_file_order=True, headline=_nlq),
        Convention("qvhighlights", of_answered=True, in_file_order=True, headline=_qvhighlights),
        Convention("vue-tr", of_answered=True, in_file_order=True, headline=_vue_tr),
        Convention("unitime", strict=True, float32=True, of_answered=True, headline=_unitime),
        Convention("vidchapters", strict=True, added_to_union=1e-8, headline=_vidchapters),
        Convention("timelens", in_file_order=True, headline=_timelens),
    )
}
CONVENTIONS["ours"] = CONVENTIONS["field"]  # its name in older commands
