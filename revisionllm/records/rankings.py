"""What scoring needs of a query and of its answer, whatever file they came from.

`LabelledQuery` is the ground truth, `Ranking` the answer; the readers of formats/ and the reader of
our own predictions produce them. Spans are float64 [n, 2] seconds; scores fall along a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.grounding.levels import Cost, Moment
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    iter_records,
    number_field,
    optional_text,
    predicted_rows,
    span_rows,
    text_field,
)
from revisionllm.records.predictions import Prediction, check_schema

NO_SPANS = np.zeros((0, 2))
MOMENT_FIELDS = itemgetter("start_s", "end_s", "score")
WINDOW_FIELDS = itemgetter("start_s", "end_s")


@dataclass(slots=True)
class LabelledQuery:
    """One sentence asked of one film.

    `spans` [m, 2]: where it is true; m = 0: known to be absent, or (not `labelled`) kept back.
    """

    qid: str
    vid: str
    query: str
    duration_s: float | None
    spans: np.ndarray
    extra: dict[str, Any] = field(default_factory=dict)  # what only one format carries
    labelled: bool = True


@dataclass(slots=True)
class Ranking:
    """The ranked answer to one query; None says that the format does not carry the field."""

    qid: str
    spans: np.ndarray  # [n, 2], best first
    scores: np.ndarray | None = None  # [n], falling; None: rank order only
    vid: str | None = None
    query: str | None = None
    duration_s: float | None = None
    found: bool | None = None
    failed: bool = False
    reason: str | None = None
    gt: np.ndarray | None = None  # [m, 2]
    cost: dict[str, float] | None = None
    windows: np.ndarray | None = None  # [W, 2]: the windows of the film that a stage asked
    num_reversed: int = 0  # spans of the file that end before they start: left out
    extra: dict[str, Any] = field(default_factory=dict)

    def sort(self) -> bool:
        """Put the best score first (stable); True if the order changed."""
        if self.scores is None or bool(np.all(self.scores[:-1] >= self.scores[1:])):
            return False
        order = np.argsort(-self.scores, kind="stable")
        self.spans, self.scores = self.spans[order], self.scores[order]
        return True

    @property
    def says_absent(self) -> bool:
        """Whether the answer is "not present": said so, or (where it cannot say) no span at all."""
        if self.failed:
            return False
        return not self.found if self.found is not None else len(self.spans) == 0


def ranking_from_record(record: Any) -> Ranking:
    """Read one line of our schema without building its moments one by one (raises BadRecord)."""
    check_schema(record)
    qid, gt = text_field(record, "qid"), record.get("gt")
    gt = None if gt is None else span_rows(gt, "gt")
    try:
        return _answered(record, qid, gt)
    except BadRecord as error:
        if gt is None:
            raise
        # the query is known, so it counts: as one that was not answered
        vid = text_field(record, "vid")
        return Ranking(qid, NO_SPANS, vid=vid, failed=True, reason=str(error), gt=gt)


def _answered(record: dict[str, Any], qid: str, gt: np.ndarray | None) -> Ranking:
    rows = _span_fields(record.get("moments"), "moments", MOMENT_FIELDS)
    array, num_reversed = predicted_rows(rows, "moments", width=3)
    windows, found = record.get("windows"), record.get("found")
    if not isinstance(found, bool):
        raise BadRecord("field 'found' must be true or false")
    return Ranking(
        qid=qid,
        spans=array[:, :2],
        scores=array[:, 2],
        vid=text_field(record, "vid"),
        query=optional_text(record, "query"),
        duration_s=number_field(record, "duration_s"),
        found=found,
        failed=record.get("status", "ok") == "failed",
        reason=optional_text(record, "reason"),
        gt=gt,
        cost=_cost_fields(record.get("cost")),
        windows=None if windows is None else _window_rows(windows),
        num_reversed=num_reversed,
    )


def problem_at(path: str | Path, place: int | str, error: object) -> Problem:
    """A problem at a line, or at an item of a list."""
    if isinstance(place, int):
        return Problem(str(path), place, str(error))
    return Problem(str(path), 0, f"{place}: {error}")


def _cost_fields(cost: Any) -> dict[str, float] | None:
    if cost is None:
        return None
    if not isinstance(cost, dict):
        raise BadRecord("field 'cost' must be an object")
    return {name: number_field(cost, name) for name in Cost.__slots__ if name in cost}


def _window_rows(windows: Any) -> np.ndarray:
    return span_rows(_span_fields(windows, "windows", WINDOW_FIELDS), "windows")


def _span_fields(
    objects: Any, what: str, fields: Callable[[Any], tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    if not isinstance(objects, list):
        raise BadRecord(f"field {what!r} must be a list")
    try:
        return list(map(fields, objects))
    except (KeyError, TypeError, IndexError) as error:
        raise BadRecord(f"one of the {what} lacks start_s, end_s or score") from error


def read_own_rankings(path: str | Path) -> tuple[list[Ranking], list[Problem]]:
    """Read our predictions JSONL; each line that cannot be used is a `Problem`."""
    rankings: list[Ranking] = []
    problems: list[Problem] = []
    for line, record in iter_records(path):
        if isinstance(record, Problem):
            problems.append(record)
            continue
        try:
            rankings.append(ranking_from_record(record))
        except BadRecord as error:
            problems.append(problem_at(path, line, error))
    return rankings, problems


def prediction_from_ranking(ranking: Ranking, *, run: str = "") -> Prediction:
    """Our record of somebody else's answer.

    Without scores the rank stands in as 1/rank, which keeps the order and claims no confidence.

    Raises:
        BadRecord: the format carries no film or no film length.
    """
    if ranking.vid is None or ranking.duration_s is None:
        raise BadRecord(f"query {ranking.qid}: the film or its length is not known")
    scores = ranking.scores
    if scores is None:
        scores = 1.0 / np.arange(1, len(ranking.spans) + 1)
    return Prediction(
        qid=ranking.qid,
        vid=ranking.vid,
        query=ranking.query or "",
        duration_s=ranking.duration_s,
        found=not ranking.says_absent and not ranking.failed,
        moments=[
            Moment(float(start_s), float(end_s), float(score))
            for (start_s, end_s), score in zip(ranking.spans, scores, strict=True)
        ],
        cost=Cost(),
        status="failed" if ranking.failed else "ok",
        reason=ranking.reason,
        run=run,
        gt=None if ranking.gt is None else [(float(s), float(e)) for s, e in ranking.gt],
    )
