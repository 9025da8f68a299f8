"""ExtremeWhenBench: the data set's records, and the per-sample records of its evaluation.

Data set: `{"qid", "video_id", "source_corpus", "question", "correct_interval": [s, e],
"duration_s", "video_duration_s", "category"}`; results: `{"qid", "video_id", "source_corpus",
"pred_raw", "pred_interval": [s, e] | null, "gt", "iou", "parsed"}`; an answer that did not parse is
a failure.
https://github.com/naver-ai/ExtremeWhenbench
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.formats.common import (
    Found,
    duration_of,
    field,
    film_of,
    no_answer,
    one_span,
    parse_lines,
    single,
    the_rest,
)
from revisionllm.metrics.recall import span_iou
from revisionllm.records.jsonl import (
    BadRecord,
    number_field,
    predicted_rows,
    text_field,
    write_json_lines,
)
from revisionllm.records.rankings import LabelledQuery, Ranking

QUERY_FIELDS = ("qid", "video_id", "question", "correct_interval", "video_duration_s", "duration_s")


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read the data set's records (JSON list or JSONL)."""
    return parse_lines(path, _query)


def _query(record: Any) -> LabelledQuery:
    return LabelledQuery(
        qid=text_field(record, "qid"),
        vid=text_field(record, "video_id"),
        query=field(record, "question", str),
        duration_s=number_field(record, "video_duration_s"),
        spans=one_span(record.get("correct_interval"), "correct_interval"),
        extra=the_rest(record, *QUERY_FIELDS),
    )


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write the data set's records as JSONL (`duration_s` is the event's length)."""
    rows = []
    for query in queries:
        span = single(query, "extremewhen")
        row = {
            "qid": query.qid,
            "video_id": query.vid,
            "source_corpus": query.extra.get("source_corpus"),
            "question": query.query,
            "correct_interval": span,
            "duration_s": span[1] - span[0],
            "video_duration_s": duration_of(query, "extremewhen"),
        }
        kept = ("category", "event_summary", "youtube_url")
        rows.append(row | {name: query.extra[name] for name in kept if name in query.extra})
    write_json_lines(path, rows)


def read_predictions(path: Path) -> Found[Ranking]:
    """Read per-sample results."""
    return parse_lines(path, _ranking)


def _ranking(record: Any) -> Ranking:
    return Ranking(
        qid=text_field(record, "qid"),
        **_answer(record.get("pred_interval")),
        vid=text_field(record, "video_id"),
        gt=one_span(record["gt"], "gt") if record.get("gt") is not None else None,
        extra=the_rest(record, "qid", "video_id", "pred_interval", "gt", "iou", "parsed"),
    )


def _answer(interval: Any) -> dict[str, Any]:
    if interval is None:
        return no_answer(BadRecord("the answer did not parse"))
    try:
        spans, num_reversed = predicted_rows([interval], "pred_interval")
    except BadRecord as error:
        return no_answer(error)
    return {"spans": spans, "num_reversed": num_reversed}


def write_predictions(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write per-sample results: the best span of each answer; needs the ground truth."""
    write_json_lines(path, (_record(ranking) for ranking in rankings))


def _record(ranking: Ranking) -> dict[str, Any]:
    if ranking.gt is None or len(ranking.gt) != 1:
        raise UserError(
            f"extremewhen-predictions needs one true span per query; query {ranking.qid} has "
            f"{'none' if ranking.gt is None else len(ranking.gt)} (--annotations FILE)"
        )
    best = None if ranking.failed or not len(ranking.spans) else ranking.spans[0]
    raw = f"The event happens in {best[0]:.1f} - {best[1]:.1f} seconds" if best is not None else ""
    return {
        "qid": ranking.qid,
        "video_id": film_of(ranking, "extremewhen-predictions"),
        "source_corpus": ranking.extra.get("source_corpus"),
        "pred_raw": ranking.extra.get("pred_raw", raw),
        "pred_interval": None if best is None else best.tolist(),
        "gt": ranking.gt[0].tolist(),
        "iou": 0.0 if best is None else float(span_iou(best, ranking.gt[0])),
        "parsed": best is not None,
    }
