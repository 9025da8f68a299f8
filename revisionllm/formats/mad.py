"""MAD's official JSON, CONE's JSONL annotations, and the prediction JSONL of CONE and RGNet.

MAD: `{"<id>": {"movie", "sentence", "timestamps": [s, e], "ext_timestamps", "movie_duration"}}`;
CONE: `{"query_id", "query", "duration", "clip_id", "video_id", "timestamps": [s, e]}` (times of the
clip); predictions: `{"query_id", "predicted_times": [[s, e], ...]}` in rank order.
https://github.com/Soldelli/MAD, https://github.com/houzhijian/CONE
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revisionllm.formats.common import (
    Found,
    at_most_one,
    duration_of,
    field,
    parse_items,
    parse_lines,
    ranked_times,
    read_object,
    the_rest,
    true_spans,
    write_document,
)
from revisionllm.records.jsonl import number_field, text_field, write_json_lines
from revisionllm.records.rankings import LabelledQuery, Ranking


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read MAD's official annotations."""
    items = ((f"query {qid}", (qid, record)) for qid, record in read_object(path).items())
    return parse_items(path, items, _query)


def _query(item: tuple[str, Any]) -> LabelledQuery:
    qid, record = item
    return LabelledQuery(
        qid=qid,
        vid=text_field(record, "movie"),
        query=field(record, "sentence", str),
        duration_s=number_field(record, "movie_duration"),
        spans=true_spans(record.get("timestamps"), "timestamps"),
        extra=the_rest(record, "movie", "sentence", "movie_duration", "timestamps"),
    )


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write MAD's official annotations; unknown extended timestamps repeat the timestamps."""
    document = {}
    for query in queries:
        span = at_most_one(query, "mad")
        document[query.qid] = {
            "movie": query.vid,
            "sentence": query.query,
            "timestamps": span,
            "ext_timestamps": query.extra.get("ext_timestamps", span),
            "movie_duration": duration_of(query, "mad"),
        }
    write_document(path, document)


def read_cone_queries(path: Path) -> Found[LabelledQuery]:
    """Read CONE's annotations (MAD and Ego4D-NLQ)."""
    return parse_lines(path, _cone_query)


def _cone_query(record: Any) -> LabelledQuery:
    return LabelledQuery(
        qid=text_field(record, "query_id"),
        vid=text_field(record, "clip_id"),
        query=field(record, "query", str),
        duration_s=number_field(record, "duration"),
        spans=true_spans(record.get("timestamps"), "timestamps"),
        extra=the_rest(record, "query_id", "clip_id", "query", "duration", "timestamps"),
    )


def write_cone_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write CONE's annotations."""
    write_json_lines(
        path,
        (
            {
                "query_id": query.qid,
                "query": query.query,
                "duration": duration_of(query, "cone"),
                "clip_id": query.vid,
                "video_id": query.extra.get("video_id", query.vid),
                "timestamps": at_most_one(query, "cone"),
            }
            for query in queries
        ),
    )


def read_predictions(path: Path) -> Found[Ranking]:
    """Read CONE's predictions; a third number of a row is its score."""
    return parse_lines(path, _ranking)


def _ranking(record: Any) -> Ranking:
    qid = text_field(record, "query_id")
    return Ranking(qid=qid, **ranked_times(record.get("predicted_times"), "predicted_times"))


def write_predictions(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write predictions in rank order (the format carries no score)."""
    write_json_lines(
        path,
        ({"query_id": r.qid, "predicted_times": r.spans.tolist()} for r in rankings),
    )
