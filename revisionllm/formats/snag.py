"""SnAG's JSON, which HieraMamba, DeCafNet and UniversalVTG read too.

`{split: {video: {"fps", "num_frames", "duration", "num_clips"?, "annotations":
[{"sentence", "sentence_id"?, "segment": [s, e]}]}}}`. https://github.com/fmu2/snag_release
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
    one_span,
    parse_items,
    query_id,
    read_object,
    single,
    write_document,
)
from revisionllm.records.jsonl import number_field, text_field
from revisionllm.records.rankings import LabelledQuery

VIDEO_FIELDS = ("fps", "num_frames", "num_clips")


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read annotations of all splits; the split is kept in `extra`."""
    return parse_items(path, _videos(path), _video)


def _videos(path: Path) -> Iterator[tuple[str, Any]]:
    for split, videos in read_object(path).items():
        if not isinstance(videos, dict):
            raise UserError(f"{path}: split {split!r} must be an object of videos")
        for vid, record in videos.items():
            yield f"video {vid}", (split, vid, record)


def _video(item: tuple[str, str, Any]) -> list[LabelledQuery]:
    split, vid, record = item
    duration_s = number_field(record, "duration")
    for name in VIDEO_FIELDS:
        if name in record:
            number_field(record, name)  # checks; the value is kept as it is written
    extra = {"split": split} | {name: record[name] for name in VIDEO_FIELDS if name in record}
    return [
        _sentence(row, f"{vid}_{index}", vid, duration_s, extra)
        for index, row in enumerate(field(record, "annotations", list))
    ]


def _sentence(
    row: Any, own_id: str, vid: str, duration_s: float, extra: dict[str, Any]
) -> LabelledQuery:
    sentence = field(row, "sentence", str)
    return LabelledQuery(
        qid=text_field(row, "sentence_id") if "sentence_id" in row else own_id,
        vid=vid,
        query=sentence,
        duration_s=duration_s,
        spans=one_span(row.get("segment"), "segment"),
        extra=dict(extra),
    )


def write_queries(
    path: Path, queries: Sequence[LabelledQuery], *, fps: float | None = None
) -> None:
    """Write annotations.

    Args:
        fps: frames per second of the features, for sources that do not say it.

    Raises:
        UserError: the rate is not known, or a query has not exactly one span.
    """
    document: dict[str, dict[str, Any]] = {}
    for query in queries:
        split = document.setdefault(str(query.extra.get("split", "test")), {})
        video = split.setdefault(query.vid, {})
        if not video:
            video |= _video_fields(query, fps)
        row = {"sentence": query.query, "segment": single(query, "snag")}
        video["annotations"].append(row | {"sentence_id": query_id(query.qid)})
    write_document(path, document)


def _video_fields(query: LabelledQuery, fps: float | None) -> dict[str, Any]:
    duration_s = duration_of(query, "snag")
    rate = query.extra.get("fps", fps)
    if rate is None:
        raise UserError("snag needs the features' frames per second: --fps N")
    num_frames = query.extra.get("num_frames", round(duration_s * rate))
    fields = {"fps": rate, "num_frames": num_frames, "duration": duration_s}
    if "num_clips" in query.extra:
        fields["num_clips"] = query.extra["num_clips"]
    return fields | {"annotations": []}
