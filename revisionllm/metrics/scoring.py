"""Score ranked answers against ground truth: one report for every format and every command.

Field convention (metrics.py). Every query of the ground truth counts: one that failed or was never
answered is a miss. What was not used (bad lines, duplicates, unknown ids) is counted and named.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from revisionllm.errors import UserError
from revisionllm.metrics import detection
from revisionllm.metrics.conventions import CONVENTIONS, Convention
from revisionllm.metrics.recall import (
    IOU_THRESHOLDS,
    RECALL_RANKS,
    bootstrap_means,
    hit_table,
    iou_table,
    mean_iou,
    recall_at_k,
)
from revisionllm.records.jsonl import Problem
from revisionllm.records.rankings import NO_SPANS, LabelledQuery, Ranking

FIELD = CONVENTIONS["field"]
DURATION_EDGES_S = (180.0, 1800.0, 3600.0, 7200.0)
LENGTH_EDGES_S = (5.0, 10.0, 30.0, 120.0)
CALIBRATION_THRESHOLDS = (0.1, 0.3, 0.5)  # the paper's supplement, table S1
SET_SCORE = 0.5  # answers with several spans: those at least this confident are the answered set
INTERVAL_LEVEL = 0.95


@dataclass
class Accounting:
    """What became of every line and every query; nothing is dropped in silence."""

    missing: list[str] = field(default_factory=list)  # in the ground truth, never answered
    failed: list[str] = field(default_factory=list)  # answered with status "failed"
    duplicates: list[str] = field(default_factory=list)  # answered again; the first answer counts
    unknown: list[str] = field(default_factory=list)  # answered, but not in the ground truth
    reordered: list[str] = field(default_factory=list)  # were not sorted by score
    problems: list[Problem] = field(default_factory=list)  # lines that could not be used
    notes: list[str] = field(default_factory=list)

    def lines(self, *, most_named: int = 5) -> list[str]:
        """One line per kind of thing that happened, the first few named."""
        kinds = {
            "missing queries (counted as misses)": self.missing,
            "failed queries (counted as misses)": self.failed,
            "duplicate answers (the first one counts)": self.duplicates,
            "unknown query ids (not scored)": self.unknown,
            "answers not sorted by score (sorted here)": self.reordered,
        }
        lines = [
            f"{len(names)} {kind}: {_some(names, most_named)}"
            for kind, names in kinds.items()
            if names
        ]
        lines += [f"not used: {problem}" for problem in self.problems[:most_named]]
        if len(self.problems) > most_named:
            lines.append(f"not used: {len(self.problems) - most_named} more lines")
        return lines + self.notes

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        kinds = ("missing", "failed", "duplicates", "unknown", "reordered", "problems")
        return {kind: len(getattr(self, kind)) for kind in kinds}


@dataclass
class Scored:
    """Queries with their answers and their IoU, row by row, and the report made of them."""

    queries: list[LabelledQuery]  # present in their film, in the order of the ground truth
    rankings: list[Ranking | None]
    ious: np.ndarray  # [Q, K]
    report: dict[str, Any]
    accounting: Accounting
    convention: Convention = FIELD


def queries_from(rankings: Sequence[Ranking]) -> list[LabelledQuery]:
    """The ground truth that the predictions themselves carry.

    Raises:
        UserError: none of them carries any.
    """
    queries = [
        LabelledQuery(r.qid, r.vid or "", r.query or "", r.duration_s, r.gt)
        for r in rankings
        if r.gt is not None
    ]
    if not queries:
        raise UserError("the predictions carry no ground truth; give the annotation file as well")
    return list({query.qid: query for query in reversed(queries)}.values())[::-1]


def join(
    queries: Sequence[LabelledQuery],
    rankings: Sequence[Ranking],
    accounting: Accounting,
    *,
    in_file_order: bool = False,
) -> list[Ranking | None]:
    """The answer of each query, by query id; fills in `accounting`.

    Args:
        in_file_order: leave answers as they stand, whatever their scores.

    Raises:
        UserError: no id is in both, or the ground truth names a query twice.
    """
    answers: dict[str, Ranking] = {}
    known = {query.qid for query in queries}
    if len(known) < len(queries):
        raise UserError(f"the ground truth names query {_first_twice(queries)} twice")
    for ranking in rankings:
        if ranking.qid not in known:
            accounting.unknown.append(ranking.qid)
        elif ranking.qid in answers:
            accounting.duplicates.append(ranking.qid)
        else:
            answers[ranking.qid] = ranking
    if rankings and not answers:
        raise UserError(
            f"no query id is in both files: predictions have {rankings[0].qid!r}, "
            f"the ground truth has {queries[0].qid!r}"
        )
    for qid, ranking in answers.items():
        if ranking.failed:
            accounting.failed.append(qid)
        if not in_file_order and ranking.sort():
            accounting.reordered.append(qid)
    accounting.missing += [query.qid for query in queries if query.qid not in answers]
    return [answers.get(query.qid) for query in queries]


def score(
    queries: Sequence[LabelledQuery],
    rankings: Sequence[Ranking],
    *,
    accounting: Accounting | None = None,
    ranks: Sequence[int] = RECALL_RANKS,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    num_resamples: int = 1000,
    seed: int = 0,
    convention: Convention = FIELD,
) -> Scored:
    """Score answers against the ground truth.

    Args:
        convention: whose way of counting; of a peer's, `report["headline"]` has its own numbers.

    Raises:
        UserError: the two do not belong together, or there is nothing to score.
    """
    accounting = Accounting() if accounting is None else accounting
    if not queries:
        raise UserError("the ground truth holds no query")
    if not all(query.labelled for query in queries):
        raise UserError("the ground truth does not say where its queries are true (a test file?)")
    answers = join(queries, rankings, accounting, in_file_order=convention.in_file_order)
    if convention.of_answered:
        asked = [row for row, answer in enumerate(answers) if answer is not None]
        if len(asked) < len(queries):
            accounting.notes.append(
                f"{convention.name} leaves the {len(queries) - len(asked)} missing queries out"
            )
        queries, answers = [queries[row] for row in asked], [answers[row] for row in asked]
    headline = _headline(convention, queries, answers)
    present = [row for row, query in enumerate(queries) if len(query.spans)]
    said_absent = np.array([answer is not None and answer.says_absent for answer in answers])
    scored = Scored(
        queries=[queries[row] for row in present],
        rankings=[answers[row] for row in present],
        ious=np.zeros((0, max(ranks))),
        report={"num_queries": len(queries), "num_present": len(present)},
        accounting=accounting,
    )
    predicted = [_usable_spans(ranking) for ranking in scored.rankings]
    truth = [query.spans for query in scored.queries]
    scored.ious = iou_table(predicted, truth, max_rank=max(ranks), iou=convention.iou)
    scored.convention = convention
    thresholds = convention.limits(thresholds).tolist()
    report = scored.report
    report["convention"] = convention.name
    report["headline"] = headline
    report["counts"] = accounting.counts()
    report["mIoU"] = mean_iou(scored.ious)
    report["recall"] = recall_at_k(
        scored.ious, ranks=ranks, thresholds=thresholds, strict=convention.strict
    )
    report |= _intervals(scored, ranks, thresholds, num_resamples, seed)
    report["mAP"] = _map_report(predicted, truth)
    report["set_iou"] = _set_iou_report(scored)
    report["sets"] = _sets_report(scored)
    report["calibration"] = _calibration_report(scored)
    absent = np.array([not len(query.spans) for query in queries])
    report["not_present"] = detection.not_present(absent, said_absent) if absent.any() else None
    report["by_duration"] = _breakdown(
        scored, [query.duration_s for query in scored.queries], DURATION_EDGES_S, thresholds
    )
    report["by_length"] = _breakdown(
        scored, [float(np.ptp(spans, axis=1).max()) for spans in truth], LENGTH_EDGES_S, thresholds
    )
    report["cost"] = _cost_report(scored)
    return scored


def _headline(
    convention: Convention, queries: Sequence[LabelledQuery], answers: Sequence[Ranking | None]
) -> dict[str, float] | None:
    """The peer's own numbers."""
    if convention.headline is None:
        return None
    pairs = []
    for query, answer in zip(queries, answers, strict=True):
        if answer is None or answer.failed:
            answer = Ranking(query.qid, NO_SPANS)
        if len(query.spans) or convention.name == "vue-tr":  # which asks about nothing, too
            pairs.append((query, answer))
    return convention.headline(pairs) if pairs else None


def _usable_spans(ranking: Ranking | None) -> np.ndarray:
    return NO_SPANS if ranking is None or ranking.failed else ranking.spans


def per_query_measures(
    ious: np.ndarray, ranks: Sequence[int], thresholds: Sequence[float], *, strict: bool = False
) -> np.ndarray:
    """[Q, 1 + T*R] in percent: IoU of the top answer, then hits in the order of `recall_at_k`."""
    hits = hit_table(ious, ranks=ranks, thresholds=thresholds, strict=strict)
    hits = hits.reshape(len(ious), -1)
    return 100.0 * np.concatenate([np.maximum(ious[:, :1], 0.0), hits], axis=1)


def film_groups(queries: Sequence[LabelledQuery]) -> list[str] | None:
    """The film of each query if there are several, for resampling whole films; None otherwise."""
    films = [query.vid for query in queries]
    return films if len(set(films)) > 1 else None


def _intervals(
    scored: Scored, ranks: Sequence[int], thresholds: Sequence[float], resamples: int, seed: int
) -> dict[str, Any]:
    groups = film_groups(scored.queries)
    if not len(scored.ious) or not resamples:
        return {"intervals": {}, "resampled": None}
    strict = scored.convention.strict
    values = per_query_measures(scored.ious, ranks, thresholds, strict=strict)
    means = bootstrap_means(values, groups=groups, num_resamples=resamples, seed=seed)
    edges = [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2]
    low_high = np.quantile(means, edges, axis=0).T.tolist()
    names = ["mIoU", *scored.report["recall"]]
    return {
        "intervals": dict(zip(names, low_high, strict=True)),
        "resampled": "queries" if groups is None else "films",
    }


def _map_report(predicted: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, float]:
    values = detection.mean_average_precision(predicted, truth)
    by_threshold = dict(zip(detection.MAP_THRESHOLDS, values.tolist(), strict=True))
    first_five = detection.mean_average_precision(predicted, truth, num_predictions=5)
    return {
        "avg": float(values.mean()),
        "0.5": by_threshold[0.5],
        "0.75": by_threshold[0.75],
        "@5": float(first_five.mean()),
    }


def answered_set(ranking: Ranking | None) -> np.ndarray:
    """The spans an answer claims together: confident ones (at least the best); all if unscored."""
    spans = _usable_spans(ranking)
    if ranking is None or ranking.scores is None or not len(spans):
        return spans
    return spans[: max(1, int((ranking.scores >= SET_SCORE).sum()))]


def _set_iou_report(scored: Scored) -> dict[str, float] | None:
    several = [row for row, query in enumerate(scored.queries) if len(query.spans) > 1]
    if not several:
        return None
    values = [
        detection.set_iou(answered_set(scored.rankings[row]), scored.queries[row].spans)
        for row in several
    ]
    return {"mean": 100.0 * float(np.mean(values)), "num_queries": len(several)}


def _sets_report(scored: Scored) -> dict[str, float] | None:
    """Answered sets against true sets, over all queries: mean IoU, share with as many spans."""
    if not scored.queries:
        return None
    sets = [answered_set(ranking) for ranking in scored.rankings]
    truth = [query.spans for query in scored.queries]
    pairs = list(zip(sets, truth, strict=True))
    ious = [detection.set_iou(found, spans) for found, spans in pairs]
    alike = [len(found) == len(spans) for found, spans in pairs]
    return {"IoU": 100.0 * float(np.mean(ious)), "count_accuracy": 100.0 * float(np.mean(alike))}


def _calibration_report(scored: Scored) -> dict[str, Any] | None:
    """Calibration of the top answer; None when the answers claim no probability."""
    rows = [
        row
        for row, ranking in enumerate(scored.rankings)
        if ranking is not None and ranking.scores is not None and len(_usable_spans(ranking))
    ]
    confidence = np.array([scored.rankings[row].scores[0] for row in rows])
    if not rows or confidence.min() < 0 or confidence.max() > 1:
        return None
    top = scored.ious[rows, 0]
    return {
        f"{threshold:g}": vars(detection.calibration(confidence, top >= threshold))
        for threshold in CALIBRATION_THRESHOLDS
    }


def _breakdown(
    scored: Scored,
    values_s: list[float | None],
    edges_s: Sequence[float],
    thresholds: Sequence[float],
) -> list[dict[str, Any]]:
    """Recall at rank 1 and mIoU of the queries whose value lies in (lower edge, upper edge]."""
    known = np.array([np.nan if value is None else value for value in values_s], np.float64)
    limits = [0.0, *edges_s, np.inf]
    rows = []
    for low_s, high_s in itertools.pairwise(limits):
        inside = (known > low_s) & (known <= high_s)
        if low_s == 0:
            inside |= known == 0
        if inside.any():
            ious = scored.ious[inside]
            strict = scored.convention.strict
            recall = recall_at_k(ious, ranks=(1,), thresholds=thresholds, strict=strict)
            row = {"over_s": low_s, "up_to_s": high_s if np.isfinite(high_s) else None}
            rows.append(row | {"num_queries": len(ious), "mIoU": mean_iou(ious)} | recall)
    return rows


def _cost_report(scored: Scored) -> dict[str, float] | None:
    """Mean cost per query over the answers that report one."""
    costs = [r.cost for r in scored.rankings if r is not None and r.cost]
    names = ("dense_windows", "segments", "llm_tokens", "seconds")
    table = [[cost.get(name, 0.0) for name in names] for cost in costs]
    if not table or not np.any(table):
        return None
    return dict(zip(names, np.mean(table, axis=0).tolist(), strict=True))


def _some(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first_twice(queries: Sequence[LabelledQuery]) -> str:
    seen: set[str] = set()
    for query in queries:
        if query.qid in seen:
            return query.qid
        seen.add(query.qid)
    raise AssertionError("no query is named twice")
