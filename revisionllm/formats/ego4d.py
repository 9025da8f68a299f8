"""Ego4D natural-language queries: annotations and challenge predictions.

A query is `annotations[].language_queries[i]` of a clip; its id here is `<annotation_uid>_<i>`, its
film is the clip. Queries without text or times (the release has some) are named, not guessed.
https://ego4d-data.org/docs/benchmarks/episodic-memory/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.formats.common import (
    Found,
    duration_of,
    field,
    film_of,
    one_span,
    parse_items,
    ranked_times,
    read_object,
    single,
    the_rest,
    write_document,
)
from revisionllm.records.jsonl import BadRecord, number_field, text_field
from revisionllm.records.rankings import LabelledQuery, Ranking

TIMES = ("clip_start_sec", "clip_end_sec")


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read NLQ annotations."""
    return parse_items(path, _language_queries(read_object(path)), _query)


def _language_queries(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every language query with the clip it belongs to."""
    for video in _objects(document, "videos"):
        for clip in _objects(video, "clips"):
            for annotation in _objects(clip, "annotations"):
                uid = annotation.get("annotation_uid")
                for index, query in enumerate(_objects(annotation, "language_queries")):
                    yield f"query {uid}_{index}", (video, clip, uid, index, query)


def _objects(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = record.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"not Ego4D NLQ annotations: {name!r} must be a list of objects")
    return rows


def _query(item: tuple[dict, dict, Any, int, dict]) -> LabelledQuery:
    video, clip, uid, index, record = item
    if not isinstance(uid, str):
        raise BadRecord("field 'annotation_uid' is missing")
    duration_s = number_field(clip, "video_end_sec") - number_field(clip, "video_start_sec")
    times = [number_field(record, name) for name in TIMES]
    extra = {"video_uid": video.get("video_uid"), "annotation_uid": uid, "query_idx": index}
    extra["video_start_s"] = number_field(clip, "video_start_sec")
    return LabelledQuery(
        qid=f"{uid}_{index}",
        vid=text_field(clip, "clip_uid"),
        query=field(record, "query", str),
        duration_s=duration_s,
        spans=one_span(times, "clip_start_sec, clip_end_sec"),
        extra=extra | {"fields": the_rest(record, "query", *TIMES)},
    )


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write NLQ annotations (one annotation per `<annotation_uid>`)."""
    videos: dict[str, dict[str, dict[str, list]]] = {}
    clips: dict[str, dict[str, Any]] = {}
    for query in queries:
        uid, _ = split_id(query.qid)
        video_uid = query.extra.get("video_uid") or query.vid
        start_s = query.extra.get("video_start_s", 0.0)
        end_s = start_s + duration_of(query, "ego4d-nlq")
        clips[query.vid] = {"video_start_sec": start_s, "video_end_sec": end_s}
        rows = videos.setdefault(video_uid, {}).setdefault(query.vid, {}).setdefault(uid, [])
        times = dict(zip(TIMES, single(query, "ego4d-nlq"), strict=True))
        rows.append(times | {"query": query.query} | query.extra.get("fields", {}))
    document = [
        {
            "video_uid": video_uid,
            "clips": [_clip(vid, rows, clips[vid]) for vid, rows in held.items()],
        }
        for video_uid, held in videos.items()
    ]
    write_document(path, {"version": "v2", "videos": document})


def _clip(clip_uid: str, annotations: dict[str, list], times: dict[str, Any]) -> dict[str, Any]:
    rows = [{"annotation_uid": uid, "language_queries": q} for uid, q in annotations.items()]
    return {"clip_uid": clip_uid} | times | {"annotations": rows}


def split_id(qid: str) -> tuple[str, int]:
    """`<annotation_uid>_<query_idx>` -> its parts (raises UserError)."""
    uid, separator, index = qid.rpartition("_")
    if not separator or not index.isdecimal():
        raise UserError(f"ego4d-nlq needs ids like <annotation_uid>_<query_idx>, got {qid!r}")
    return uid, int(index)


def read_predictions(path: Path) -> Found[Ranking]:
    """Read challenge predictions."""
    results = read_object(path).get("results")
    if not isinstance(results, list):
        raise UserError(f"{path}: field 'results' must be a list")
    items = ((f"result {index}", record) for index, record in enumerate(results))
    return parse_items(path, items, _ranking)


def _ranking(record: Any) -> Ranking:
    uid, index = text_field(record, "annotation_uid"), field(record, "query_idx", int)
    times = ranked_times(record.get("predicted_times"), "predicted_times")
    return Ranking(f"{uid}_{index}", vid=text_field(record, "clip_uid"), **times)


def write_predictions(path: Path, rankings: Sequence[Ranking]) -> None:
    """Write a challenge submission (rank order, no scores)."""
    results = []
    for ranking in rankings:
        uid, index = split_id(ranking.qid)
        results.append(
            {
                "clip_uid": film_of(ranking, "ego4d-nlq-predictions"),
                "annotation_uid": uid,
                "query_idx": index,
                "predicted_times": ranking.spans.tolist(),
            }
        )
    head = {"version": "1.0", "challenge": "ego4d_nlq_challenge"}
    write_document(path, head | {"results": results})
