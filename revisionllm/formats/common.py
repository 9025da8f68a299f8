"""What the readers and writers of the field's formats share.

A reader returns `(items, problems)`: what it could use and, named with file and line, what it could
not. A writer refuses what its format cannot hold instead of dropping it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import write_text
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    iter_records,
    predicted_rows,
    read_json,
    span_rows,
)
from revisionllm.records.rankings import NO_SPANS, LabelledQuery, Ranking, problem_at

Item = TypeVar("Item")
Found = tuple[list[Item], list[Problem]]


def parse_lines(path: Path, parse: Callable[[Any], Item | list[Item]]) -> Found:
    """Parse each line of a JSONL file (or item of a JSON list).

    Args:
        parse: raises BadRecord for a record that it cannot use.
    """
    return _collect(path, iter_records(path), parse)


def parse_items(path: Path, items: Iterable[tuple[Any, Any]], parse: Callable[..., Any]) -> Found:
    """Parse the (label, record) pairs of a JSON file; a problem names the label."""
    return _collect(path, items, parse)


def _collect(
    path: Path, items: Iterable[tuple[int | str, Any]], parse: Callable[..., Any]
) -> Found:
    found: list[Any] = []
    problems: list[Problem] = []
    for label, record in items:
        if isinstance(record, Problem):
            problems.append(record)
            continue
        try:
            made = parse(record)
        except BadRecord as error:
            problems.append(problem_at(path, label, error))
            continue
        found.extend(made if isinstance(made, list) else [made])
    return found, problems


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object (raises UserError otherwise)."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def field(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of the given type (raises BadRecord)."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRecord(f"field {name!r} is missing or of the wrong type")
    return value


def the_rest(record: dict[str, Any], *known: str) -> dict[str, Any]:
    """The fields a reader does not interpret; kept, so that writing the format gives them back."""
    return {name: value for name, value in record.items() if name not in known}


def one_span(span: Any, what: str) -> np.ndarray:
    """[1, 2] from `[start, end]` (raises BadRecord)."""
    return span_rows([span], what)


def ranked_times(rows: Any, what: str) -> dict[str, Any]:
    """Fields of a `Ranking` from rows `[start, end]` or `[start, end, score]`, best first."""
    if isinstance(rows, list) and rows and isinstance(rows[0], list) and len(rows[0]) == 3:
        array, num_reversed = predicted_rows(rows, what, width=3)
        return {"spans": array[:, :2], "scores": array[:, 2], "num_reversed": num_reversed}
    array, num_reversed = predicted_rows(rows, what)
    return {"spans": array, "num_reversed": num_reversed}


def no_answer(error: BadRecord) -> dict[str, Any]:
    """Fields of a `Ranking` whose query is known and whose answer cannot be used: it counts."""
    return {"spans": NO_SPANS, "failed": True, "reason": str(error)}


def true_spans(spans: Any, what: str) -> np.ndarray:
    """[m, 2] from `[start, end]`, or [0, 2] from `[]`: true of nothing (raises BadRecord)."""
    return NO_SPANS if spans == [] else one_span(spans, what)


def single(query: LabelledQuery, format_name: str) -> list[float]:
    """The one true span of a query, for formats that hold exactly one (raises UserError)."""
    spans = all_spans(query, format_name)
    if len(spans) != 1:
        raise UserError(
            f"{format_name} holds one span per query; query {query.qid} has {len(spans)}"
        )
    return spans[0]


def at_most_one(query: LabelledQuery, format_name: str) -> list[float]:
    """The one true span of a query; [] where it is true of nothing (raises UserError)."""
    return single(query, format_name) if all_spans(query, format_name) else []


def all_spans(query: LabelledQuery, format_name: str) -> list[list[float]]:
    """The true spans of a query (raises UserError where the source does not say them)."""
    if not query.labelled:
        raise UserError(f"{format_name} needs the true spans; query {query.qid} comes without")
    return query.spans.tolist()


def duration_of(item: LabelledQuery | Ranking, format_name: str) -> float:
    """The film's length, for formats that must say it (raises UserError)."""
    if item.duration_s is None:
        raise UserError(
            f"{format_name} needs the film's length; query {item.qid} comes without one "
            "(--annotations FILE can supply it)"
        )
    return item.duration_s


def film_of(item: Ranking, format_name: str) -> str:
    """The film's id, for formats that must say it (raises UserError)."""
    if item.vid is None:
        raise UserError(
            f"{format_name} needs the film of each query; query {item.qid} comes without one "
            "(--annotations FILE can supply it)"
        )
    return item.vid


def query_id(qid: str) -> str | int:
    """An id as the formats with integer ids write it; ids that are not plain integers stay text."""
    return int(qid) if qid.isdecimal() and str(int(qid)) == qid else qid


def scored_rows(ranking: Ranking) -> list[list[float]]:
    """`[start, end, score]` rows; without scores 1/rank stands in (it only keeps the order)."""
    scores = ranking.scores
    if scores is None:
        scores = 1.0 / np.arange(1, len(ranking.spans) + 1)
    return np.column_stack([ranking.spans, scores]).tolist()


def write_document(path: Path, document: Any) -> None:
    """Write one JSON document, atomically."""
    write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
