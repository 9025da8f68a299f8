"""TimeLens results: an object keyed `video>>>query>>>[start, end]`, as JSON or JSONL.

A value is `{"timestamps": [[s, e]], "answers": "text"}` (either is enough) or the text alone. The
key carries the ground truth, so that these files can be scored without annotations.
https://github.com/TencentARC/TimeLens
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.formats.common import (
    Found,
    film_of,
    no_answer,
    parse_items,
    read_object,
    write_document,
)
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    iter_json_lines,
    parse_json,
    predicted_rows,
    span_rows,
)
from revisionllm.records.rankings import Ranking

SEPARATOR = ">>>"
# seconds, or [hours:]minutes:seconds
TIME = r"(?<![\d:.])((?:\d+:)?\d{1,2}:\d{2}(?:\.\d+)?|\d+(?:\.\d*)?)(?!:\d)"
UNIT = r"\s*(?:seconds?|secs?|s)?\b"
SPAN_TEXTS = (
    re.compile(rf"{TIME}(?:{UNIT})?\s*(?:-|\u2013|\u2014|~|to\b)\s*{TIME}", re.IGNORECASE),
    re.compile(rf"\bbetween\s+{TIME}(?:{UNIT})?\s+and\s+{TIME}", re.IGNORECASE),
    re.compile(
        rf"\bstarts?\b[^\d]{{0,20}}{TIME}(?:{UNIT})?[^\d]{{0,20}}\bends?\b[^\d]{{0,20}}{TIME}", re.I
    ),
)


def read_predictions(path: Path) -> Found[Ranking]:
    """Read results; the query id is the whole key."""
    return parse_items(path, _pairs(path), _ranking)


def _pairs(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix != ".jsonl":
        yield from ((f"key {key!r}", (key, value)) for key, value in read_object(path).items())
        return
    for line, record in iter_json_lines(path):
        if isinstance(record, Problem):
            yield "", record
        elif isinstance(record, dict):
            yield from ((f"line {line}", (key, value)) for key, value in record.items())
        else:
            yield "", Problem(str(path), line, "expected a JSON object")


def _ranking(item: tuple[str, Any]) -> Ranking:
    key, value = item
    parts = key.rsplit(SEPARATOR, 1)
    vid, separator, query = parts[0].partition(SEPARATOR)
    if len(parts) != 2 or not separator:
        raise BadRecord("the key must be video>>>query>>>span")
    gt = parse_json(parts[1].encode())
    if isinstance(gt, list) and len(gt) == 2 and not isinstance(gt[0], list):
        gt = [gt]  # lmms-eval writes a flat [start, end] for Charades-STA
    try:
        answer = _answered(value)
    except BadRecord as error:
        answer = no_answer(error)
    return Ranking(
        qid=key,
        **answer,
        vid=vid,
        query=query,
        gt=span_rows(gt, "the span in the key"),
        extra={"answers": value if isinstance(value, str) else _text(value)},
    )


def _text(value: Any) -> str | None:
    return value.get("answers") if isinstance(value, dict) else None


def _answered(value: Any) -> dict[str, Any]:
    """Fields of a `Ranking`. Raises BadRecord if the answer names no span."""
    if isinstance(value, dict) and value.get("timestamps") is not None:
        rows = value["timestamps"]
    else:
        text = value if isinstance(value, str) else _text(value)
        if not isinstance(text, str):
            raise BadRecord("neither timestamps nor an answer text")
        rows = spans_in(text)
        if not rows:
            raise BadRecord("no span in the answer")
    spans, num_reversed = predicted_rows(rows, "timestamps")
    if len(rows) and not len(spans):
        return no_answer(BadRecord("every span ends before it starts")) | {
            "num_reversed": num_reversed
        }
    return {"spans": spans, "num_reversed": num_reversed}


def spans_in(text: str) -> list[list[float]]:
    """`[start_s, end_s]` pairs that an answer in words names, in the order of the text.

    Seconds or clock times, joined by a dash, a tilde, "to", "between ... and ..." or
    "starts at ... and ends at ...".
    """
    matches = [match for pattern in SPAN_TEXTS for match in pattern.finditer(text)]
    matches.sort(key=lambda match: match.start())
    return [[_seconds(match[1]), _seconds(match[2])] for match in matches]


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def write_predictions(
    path: Path, rankings: Sequence[Ranking], *, nested_spans: bool = False
) -> None:
    """Write results; needs the ground truth, which is part of the key.

    Args:
        nested_spans: `[[s, e]]` in the key, as lmms-eval's task has it, instead of `[s, e]`, which
            is what the benchmark's own evaluation reads.
    """
    document = {}
    for ranking in rankings:
        if ranking.gt is None:
            raise UserError(
                f"timelens keys hold the true span; query {ranking.qid} has none "
                "(--annotations FILE can supply it)"
            )
        spans = ranking.gt.tolist()
        truth = json.dumps(spans if nested_spans or len(spans) != 1 else spans[0])
        start = SEPARATOR.join([film_of(ranking, "timelens"), ranking.query or "", ""])
        key = ranking.qid if ranking.qid.startswith(start) else start + truth
        if key in document:
            raise UserError(f"two queries share the timelens key {key!r}")
        document[key] = {"timestamps": ranking.spans.tolist()}
        if ranking.extra.get("answers") is not None:
            document[key]["answers"] = ranking.extra["answers"]
    write_document(path, document)
