"""Captions: ActivityNet's JSON, JSON lines, and the Charades-STA text file. Query ids are
`<video>_<number>`.

ActivityNet: `{"v_id": {"duration", "timestamps": [[s, e], ...], "sentences": [...]}}`;
JSON lines: `{"vid", "start_s", "end_s", "caption"}`, without the film's length (alignment stage);
Charades-STA: one line `video start end##sentence.` per query, without the film's length.
https://cs.stanford.edu/people/ranjaykrishna/densevid, https://github.com/jiyanggao/TALL
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import write_text
from revisionllm.formats.common import (
    Found,
    duration_of,
    field,
    one_span,
    parse_items,
    parse_lines,
    read_object,
    single,
    write_document,
)
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    number_field,
    span_rows,
    text_field,
    write_json_lines,
)
from revisionllm.records.rankings import LabelledQuery


def read_activitynet(path: Path) -> Found[LabelledQuery]:
    """Read ActivityNet Captions annotations."""
    items = ((f"video {vid}", (vid, record)) for vid, record in read_object(path).items())
    return parse_items(path, items, _video)


def _video(item: tuple[str, Any]) -> list[LabelledQuery]:
    vid, record = item
    sentences, times = field(record, "sentences", list), field(record, "timestamps", list)
    if len(sentences) != len(times) or not all(isinstance(text, str) for text in sentences):
        raise BadRecord(f"{len(sentences)} sentences but {len(times)} timestamps")
    duration_s, spans = number_field(record, "duration"), span_rows(times, "timestamps")
    return [
        LabelledQuery(f"{vid}_{index}", vid, sentence, duration_s, spans[index : index + 1])
        for index, sentence in enumerate(sentences)
    ]


def write_activitynet(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write ActivityNet Captions annotations."""
    document: dict[str, dict[str, Any]] = {}
    for query in queries:
        empty = {"duration": duration_of(query, "activitynet"), "timestamps": [], "sentences": []}
        video = document.setdefault(query.vid, empty)
        video["timestamps"].append(single(query, "activitynet"))
        video["sentences"].append(query.query)
    write_document(path, document)


def read_captions(path: Path) -> Found[LabelledQuery]:
    """Read JSON lines of captions."""
    seen: Counter[str] = Counter()

    def parse(record: Any) -> LabelledQuery:
        vid = text_field(record, "vid")
        span = one_span([record.get("start_s"), record.get("end_s")], "times")
        caption = field(record, "caption", str)
        query = LabelledQuery(f"{vid}_{seen[vid]}", vid, caption, None, span)
        seen[vid] += 1
        return query

    return parse_lines(path, parse)


def write_captions(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write JSON lines of captions."""
    spans = [single(query, "captions") for query in queries]
    write_json_lines(
        path,
        (
            {"vid": query.vid, "start_s": start_s, "end_s": end_s, "caption": query.query}
            for query, (start_s, end_s) in zip(queries, spans, strict=True)
        ),
    )


def read_charades(path: Path) -> Found[LabelledQuery]:
    """Read a Charades-STA text file."""
    queries: list[LabelledQuery] = []
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(_text_lines(path), 1):
        if not line.strip():
            continue
        try:
            vid, sentence, span = _charades_line(line)
        except BadRecord as error:
            problems.append(Problem(str(path), number, str(error)))
            continue
        queries.append(LabelledQuery(f"{vid}_{seen[vid]}", vid, sentence, None, span))
        seen[vid] += 1
    return queries, problems


def _text_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _charades_line(line: str) -> tuple[str, str, Any]:
    head, separator, sentence = line.partition("##")
    words = head.split()
    if not separator or len(words) != 3:
        raise BadRecord("expected `video start end##sentence`")
    try:
        times = [float(words[1]), float(words[2])]
    except ValueError as error:
        raise BadRecord(f"{words[1]} {words[2]} are not seconds") from error
    return words[0], sentence, one_span(times, "times")


def write_charades(path: Path, queries: Sequence[LabelledQuery]) -> None:
    """Write a Charades-STA text file."""
    lines = []
    for query in queries:
        start_s, end_s = single(query, "charades-sta")
        if " " in query.vid or "\n" in query.query or "\r" in query.query:
            raise UserError(f"charades-sta cannot hold query {query.qid}: space or line break")
        lines.append(f"{query.vid} {start_s!r} {end_s!r}##{query.query}\n")
    write_text(path, "".join(lines))
