"""VUE-TR (Vidi): a JSON list, with `gt` in the annotations and `answer` in the predictions.

`{"query_id", "video_id", "duration", "query", "gt" | "answer": [[s, e], ...],
"task": "temporal_retrieval", "duration_category", "query_format", "query_modality"}`.
https://github.com/bytedance/vidi
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revisionllm.formats.common import (
    Found,
    all_spans,
    duration_of,
    field,
    film_of,
    no_answer,
    parse_lines,
    query_id,
    the_rest,
    write_document,
)
from revisionllm.records.jsonl import (
    BadRecord,
    number_field,
    number_rows,
    optional_text,
    span_rows,
    text_field,
)
from revisionllm.records.rankings import LabelledQuery, Ranking

KNOWN = ("query_id", "id", "video_id", "duration", "query", "gt", "answer", "task")


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read annotations."""
    return parse_lines(path, _query)


def _query(record: Any) -> LabelledQuery:
    return LabelledQuery(
        qid=_id(record),
        vid=text_field(record, "video_id"),
        query=field(record, "query", str),
        duration_s=number_field(record, "duration"),
        spans=span_rows(_rows(record.get("gt")), "gt"),
        extra=the_rest(record, *KNOWN),
    )


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write annotations; the categories are kept where the source has them."""
    kept = ("duration_category", "query_format", "query_modality")
    write_document(
        path,
        [
            {
                "query_id": query_id(query.qid),
                "video_id": query.vid,
                "duration": duration_of(query, "vue-tr"),
                "query": query.query,
                "gt": all_spans(query, "vue-tr"),
                "task": "temporal_retrieval",
            }
            | {name: query.extra[name] for name in kept if name in query.extra}
            for query in queries
        ],
    )


def read_predictions(path: Path) -> Found[Ranking]:
    """Read predictions; `gt` is read too where it is there."""
    return parse_lines(path, _ranking)


def _ranking(record: Any) -> Ranking:
    return Ranking(
        qid=_id(record),
        **_answer(record.get("answer"), has_truth="gt" in record),
        vid=text_field(record, "video_id") if "video_id" in record else None,
        query=optional_text(record, "query"),
        duration_s=number_field(record, "duration") if "duration" in record else None,
        gt=span_rows(_rows(record["gt"]), "gt") if "gt" in record else None,
    )


def _answer(answer: Any, *, has_truth: bool) -> dict[str, Any]:
    """The answered spans; `rows` keeps them as written, for the benchmark's own arithmetic."""
    try:
        rows = number_rows(_rows(answer), 2, "answer")
    except BadRecord as error:
        if has_truth:
            return no_answer(error)
        raise
    good = rows[:, 0] <= rows[:, 1]
    return {"spans": rows[good], "num_reversed": int((~good).sum()), "extra": {"rows": rows}}


def _id(record: Any) -> str:
    """The query's id; results on record write `id` for `query_id`."""
    has_name = isinstance(record, dict) and "query_id" not in record and "id" in record
    return text_field(record, "id" if has_name else "query_id")


def _rows(rows: Any) -> Any:
    """`[[]]`, how some results write "nowhere", is the empty list."""
    return [] if rows == [[]] else rows


def write_predictions(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write predictions; a set of spans, in rank order, without scores."""
    write_document(
        path,
        [
            {
                "query_id": query_id(ranking.qid),
                "video_id": film_of(ranking, "vue-tr-predictions"),
                "duration": duration_of(ranking, "vue-tr-predictions"),
                "query": ranking.query or "",
                "answer": ranking.spans.tolist(),
                "task": "temporal_retrieval",
            }
            for ranking in rankings
        ],
    )
