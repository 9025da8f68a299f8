"""QVHighlights / moment-DETR JSONL, and VidChapters VMR, which has the same shape.

Annotations: `{"qid", "query", "duration", "vid", "relevant_windows": [[s, e], ...]}` (the test file
has no windows); predictions:
`{"qid", "query", "vid", "pred_relevant_windows": [[s, e, score], ...]}`. The training file of
VidChapters VMR has one line per video, with a list of queries.
https://github.com/jayleicn/moment_detr
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.formats.common import (
    Found,
    duration_of,
    field,
    film_of,
    parse_lines,
    query_id,
    ranked_times,
    scored_rows,
    the_rest,
)
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    number_field,
    optional_text,
    span_rows,
    text_field,
    write_json_lines,
)
from revisionllm.records.rankings import NO_SPANS, LabelledQuery, Ranking

QUERY_FIELDS = ("qid", "query", "duration", "vid", "relevant_windows")


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read annotations, one query or (VidChapters training) one video per line."""
    queries, problems = parse_lines(path, _queries)
    if any(query.labelled for query in queries):  # then one without windows lacks them
        lacking = [query for query in queries if not query.labelled]
        problems += [
            Problem(str(path), 0, f"query {query.qid}: no relevant_windows") for query in lacking
        ]
        queries = [query for query in queries if query.labelled]
    return queries, problems


def _queries(record: Any) -> LabelledQuery | list[LabelledQuery]:
    if isinstance(record, dict) and isinstance(record.get("query"), list):
        return _video(record)
    return LabelledQuery(
        qid=text_field(record, "qid"),
        vid=text_field(record, "vid"),
        query=field(record, "query", str),
        duration_s=number_field(record, "duration"),
        spans=_true_spans(record),
        labelled="relevant_windows" in record,
        extra=the_rest(record, *QUERY_FIELDS),
    )


def _true_spans(record: dict[str, Any]) -> np.ndarray:
    """The true spans; none in the test file, which keeps them back."""
    if "relevant_windows" not in record:
        return NO_SPANS
    return span_rows(record["relevant_windows"], "relevant_windows")


def _video(record: dict[str, Any]) -> list[LabelledQuery]:
    vid, duration_s = text_field(record, "vid"), number_field(record, "duration")
    sentences, windows = record["query"], field(record, "relevant_windows", list)
    if len(sentences) != len(windows) or not all(isinstance(text, str) for text in sentences):
        raise BadRecord(f"{len(sentences)} queries but {len(windows)} relevant_windows")
    return [
        LabelledQuery(
            f"{vid}_{index}", vid, sentence, duration_s, span_rows(spans, "relevant_windows")
        )
        for index, (sentence, spans) in enumerate(zip(sentences, windows, strict=True))
    ]


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write annotations, one query per line."""
    write_json_lines(
        path,
        (
            {
                "qid": query_id(query.qid),
                "query": query.query,
                "duration": duration_of(query, "qvhighlights"),
                "vid": query.vid,
            }
            | ({"relevant_windows": query.spans.tolist()} if query.labelled else {})
            | {k: v for k, v in query.extra.items() if k in KEPT_FIELDS}
            for query in queries
        ),
    )


KEPT_FIELDS = ("relevant_clip_ids", "saliency_scores", "split")


def read_predictions(path: Path) -> Found[Ranking]:
    """Read moment-DETR predictions."""
    return parse_lines(path, _ranking)


def _ranking(record: Any) -> Ranking:
    qid = text_field(record, "qid")
    return Ranking(
        qid=qid,
        **ranked_times(record.get("pred_relevant_windows"), "pred_relevant_windows"),
        vid=text_field(record, "vid") if "vid" in record else None,
        query=optional_text(record, "query"),
        extra=the_rest(record, "qid", "query", "vid", "pred_relevant_windows"),
    )


def write_predictions(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write moment-DETR predictions."""
    write_json_lines(
        path,
        (
            {
                "qid": query_id(ranking.qid),
                "query": ranking.query or "",
                "vid": film_of(ranking, "moment-detr"),
                "pred_relevant_windows": scored_rows(ranking),
            }
            | {k: v for k, v in ranking.extra.items() if k == "pred_saliency_scores"}
            for ranking in rankings
        ),
    )
