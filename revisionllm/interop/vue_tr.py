"""VUE-TR (Vidi): a JSON list, with `gt` in the annotations and `answer` in the predictions.

`{"query_id", "video_id", "duration", "query", "gt" | "answer": [[s, e], ...],
"task": "temporal_retrieval", "duration_category", "query_format", "query_modality"}`.
https://github.com/bytedance/vidi
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revisionllm.eval.jsonl import number_field, span_rows, text_field
from revisionllm.eval.rankings import Query, Ranking
from revisionllm.interop.common import (
    Found,
    duration_of,
    field,
    film_of,
    parse_records,
    query_id,
    the_rest,
    write_document,
)

KNOWN = ("query_id", "video_id", "duration", "query", "gt", "answer", "task")


def read_queries(path: Path) -> Found[Query]:
    """Read annotations."""
    return parse_records(path, _query)


def _query(record: Any) -> Query:
    return Query(
        qid=text_field(record, "query_id"),
        vid=text_field(record, "video_id"),
        query=field(record, "query", str),
        duration_s=number_field(record, "duration"),
        spans=span_rows(record.get("gt"), "gt"),
        extra=the_rest(record, *KNOWN),
    )


def write_queries(path: Path, queries: Sequence[Query]) -> None:
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
                "gt": query.spans.tolist(),
                "task": "temporal_retrieval",
            }
            | {name: query.extra[name] for name in kept if name in query.extra}
            for query in queries
        ],
    )


def read_predictions(path: Path) -> Found[Ranking]:
    """Read predictions; `gt` is read too where it is there."""
    return parse_records(path, _ranking)


def _ranking(record: Any) -> Ranking:
    return Ranking(
        qid=text_field(record, "query_id"),
        spans=span_rows(record.get("answer"), "answer"),
        vid=text_field(record, "video_id"),
        query=field(record, "query", str),
        duration_s=number_field(record, "duration"),
        gt=span_rows(record["gt"], "gt") if "gt" in record else None,
    )


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
