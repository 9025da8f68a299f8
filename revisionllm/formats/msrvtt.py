"""MSR-VTT: sentences about whole videos of 10 to 30 s, as JSON or as the table of a test split.

`{"videos": [{"video_id", "start time", "end time", "split"}], "sentences": [{"sen_id", "video_id",
"caption"}]}`, and `key,vid_key,video_id,sentence` of the 1k-A split of JSFusion. A sentence's true
span is its whole video; the table says no lengths.
https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/
https://github.com/yj-yu/lsmdc
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.errors import UserError
from revisionllm.formats.common import Found, field, parse_items, read_object
from revisionllm.records.jsonl import BadRecord, Problem, number_field, optional_text, text_field
from revisionllm.records.rankings import NO_SPANS, LabelledQuery

COLUMNS = ("key", "vid_key", "video_id", "sentence")


def is_table(first_line: str) -> bool:
    """Whether a file's first line is the head of a test split's table."""
    cells = [cell.strip() for cell in first_line.removeprefix("\ufeff").split(",")]
    return set(COLUMNS) <= set(cells)


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read either file; the query ids are `sen_id` and `key`.

    Raises:
        UserError: neither JSON nor UTF-8 text.
    """
    with path.open("rb") as file:
        is_json = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return _read_json(path) if is_json else _read_table(path)


def read_videos(path: Path) -> tuple[dict[str, tuple[float, str]], list[Problem]]:
    """Length in seconds and split of every video of the JSON."""
    found, problems = parse_items(path, _items(path, "videos"), _video)
    return {vid: (duration_s, split) for vid, duration_s, split in found}, problems


def _items(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    try:
        items = field(read_object(path), name, list)
    except BadRecord as error:
        raise UserError(f"{path}: {error}") from error
    return ((f"{name} {number}", item) for number, item in enumerate(items))


def _video(item: Any) -> list[tuple[str, float, str]]:
    start_s, end_s = number_field(item, "start time"), number_field(item, "end time")
    if not end_s > start_s:
        raise BadRecord(f"ends at {end_s:g} s, and starts at {start_s:g} s")
    split = optional_text(item, "split") or ""
    return [(text_field(item, "video_id"), end_s - start_s, split)]


def _read_json(path: Path) -> Found[LabelledQuery]:
    videos, problems = read_videos(path)

    def parse(item: Any) -> list[LabelledQuery]:
        vid = text_field(item, "video_id")
        if vid not in videos:
            raise BadRecord(f"no video {vid!r} with times")
        duration_s = videos[vid][0]
        whole = np.array([[0.0, duration_s]])
        qid = text_field(item, "sen_id")
        return [LabelledQuery(qid, vid, field(item, "caption", str), duration_s, whole)]

    queries, bad = parse_items(path, _items(path, "sentences"), parse)
    return queries, [*problems, *bad]


def _read_table(path: Path) -> Found[LabelledQuery]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    queries, problems = [], []
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for row in reader:
            if any(not row.get(name) for name in COLUMNS):
                problems.append(Problem(str(path), reader.line_num, "an empty or missing cell"))
                continue
            query = LabelledQuery(row["key"], row["video_id"], row["sentence"], None, NO_SPANS)
            query.labelled = False
            queries.append(query)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    return queries, problems
