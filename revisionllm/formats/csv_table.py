"""A table of sentences with times, as a spreadsheet saves it: CSV with a head line.

Columns `video`, `start`, `end`, `sentence`, in any order; more are optional: `query_id` (rows with
the same one are several spans of one query) and `duration`. Without ids they are
`<video>_<number>`. Empty times: the sentence is true of nothing in its film. Times are seconds,
mm:ss or h:mm:ss; a video may be given with its suffix (film.mp4).
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import write_text
from revisionllm.formats.common import Found, all_spans
from revisionllm.records.jsonl import BadRecord, Problem, span_rows
from revisionllm.records.rankings import NO_SPANS, LabelledQuery

# column -> the names that it may have
COLUMNS = {
    "video": ("video", "vid", "video_id", "film", "movie"),
    "start": ("start", "start_s", "start_time"),
    "end": ("end", "end_s", "end_time"),
    "sentence": ("sentence", "query", "caption", "text"),
    "query_id": ("query_id", "qid", "id"),
    "duration": ("duration", "duration_s", "length"),
}
NEEDED = ("video", "start", "end", "sentence")
VIDEO_SUFFIX = re.compile(r"\.(mp4|mkv|webm|avi|mov|m4v|ts|mpg|mpeg|flv|wmv)$", re.IGNORECASE)


def is_table(first_line: str) -> bool:
    """Whether a file's first line is the head of such a table."""
    return set(NEEDED) <= _columns(first_line).keys()


def read_queries(path: Path) -> Found[LabelledQuery]:
    """Read a table, in the order in which its queries first occur.

    Raises:
        UserError: no UTF-8 text, or a column is missing.
    """
    queries: dict[str, LabelledQuery] = {}
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for line, row in _rows(path):
        try:
            query = _query(row, seen)
            known = queries.setdefault(query.qid, query)
            if known is not query:
                if (known.vid, known.query) != (query.vid, query.query):
                    raise BadRecord(f"query {query.qid} has another film or sentence above")
                known.spans = np.concatenate([known.spans, query.spans])
        except BadRecord as error:
            problems.append(Problem(str(path), line, str(error)))
    return list(queries.values()), problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and cells of every row, by the names of `COLUMNS`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    head = text.partition("\n")[0]
    columns = _columns(head)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)} in its head line {head[:80]!r}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(head))
    try:
        for cells in itertools.islice(reader, 1, None):
            if any(cell.strip() for cell in cells):
                padded = [*(cell.strip() for cell in cells), *[""] * (1 + max(columns.values()))]
                yield reader.line_num, {name: padded[at] for name, at in columns.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _columns(head: str) -> dict[str, int]:
    try:
        cells = next(csv.reader([head.removeprefix("\ufeff")], delimiter=_delimiter(head)), [])
    except csv.Error:  # stray line ends or zero characters: no head of a table
        return {}
    names = [cell.strip().lower() for cell in cells]
    return {
        column: names.index(name)
        for column, known in COLUMNS.items()
        for name in known[::-1]
        if name in names
    }


def _delimiter(head: str) -> str:
    """Comma, semicolon (spreadsheets of many countries) or tab: the most frequent."""
    return max(",;\t", key=head.count)


def _query(row: dict[str, str], seen: Counter[str]) -> LabelledQuery:
    vid = VIDEO_SUFFIX.sub("", row["video"].replace("\\", "/").rpartition("/")[2])
    if not vid:
        raise BadRecord("no video")
    number = seen[vid]
    seen[vid] += 1
    times = [_seconds(row[name], name) for name in ("start", "end")]
    if (times[0] is None) != (times[1] is None):
        raise BadRecord("one of start and end is empty")
    duration = row.get("duration", "")
    return LabelledQuery(
        qid=row.get("query_id") or f"{vid}_{number}",
        vid=vid,
        query=row["sentence"],
        duration_s=_seconds(duration, "duration"),
        spans=NO_SPANS if times[0] is None else span_rows([times], "times"),
    )


def _seconds(text: str, name: str) -> float | None:
    """Seconds of `12.5`, `12,5`, `1:02` or `1:02:03`; None for an empty cell (raises BadRecord)."""
    if not text:
        return None
    try:
        parts = [float(part.replace(",", ".")) for part in text.split(":")]
    except ValueError as error:
        raise BadRecord(f"{name} {text!r} is no time") from error
    if len(parts) > 3 or any(not 0 <= part < 60 for part in parts[1:]) or parts[0] < 0:
        raise BadRecord(f"{name} {text!r} is no time")
    total = 0.0
    for part in parts:
        total = 60 * total + part
    return total


def write_queries(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write a table, a row per true span."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["video", "start", "end", "sentence", "query_id", "duration"])
    for query in queries:
        duration = "" if query.duration_s is None else query.duration_s
        for span in all_spans(query, "csv") or [["", ""]]:
            writer.writerow([query.vid, *span, query.query, query.qid, duration])
    write_text(path, out.getvalue())
