"""TimeLens results: an object keyed `video>>>query>>>[start, end]`, as JSON or JSONL.

A value is `{"timestamps": [[s, e]], "answers": "text"}` (either is enough) or the text alone. The
key carries the ground truth, so that these files can be scored without annotations.
https://github.com/TencentARC/TimeLens
"""

from __future__ import annotations

import json
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
from revisionllm.grounding.span_texts import ranges_in
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
        rows = [list(span) for span in ranges_in(text)]
        if not rows:
            raise BadRecord("no span in the answer")
    spans, num_reversed = predicted_rows(rows, "timestamps")
    if len(rows) and not len(spans):
        return no_answer(BadRecord("every span ends before it starts")) | {
            "num_reversed": num_reversed
        }
    return {"spans": spans, "num_reversed": num_reversed}


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
