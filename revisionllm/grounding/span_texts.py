"""Spans in seconds out of an answer in words: one reader for other models' files and answers.

Read are JSON (`[[3, 7.5]]`, `{"start": "0:03", "end": "0:07.5"}` and lists of these, also inside
other text) and, without any, ranges in words: `3 - 7.5 seconds`, `from 0:03 to 1:02:03.5`,
`between 3 and 7 s`, `starts at 3 s and ends at 7 s`. Nothing is invented: every time that comes out
stands in the text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

Span = tuple[float, float]

MAX_ANSWER = 20_000  # characters that are read; no grounder means more
# seconds, or [hours:]minutes:seconds
TIME = r"(?<![\w:.])((?:\d+:)?\d{1,2}:\d{2}(?:\.\d+)?|\d+(?:\.\d*)?)(?![:.]?\d|e\d)"
FIRST = rf"(?<!-){TIME}"  # -3 is no time; in 3-7 the dash joins
UNIT = r"\s*(?:seconds?|secs?|s)?\b"
FILLER = r"[^\d]{0,20}"
RANGES = (
    re.compile(
        rf"{FIRST}(?:{UNIT})?\s*(?:-|\u2013|\u2014|~|to\b)\s*{TIME}", re.IGNORECASE | re.ASCII
    ),
    re.compile(rf"\bbetween\s+{FIRST}(?:{UNIT})?\s+and\s+{FIRST}", re.IGNORECASE | re.ASCII),
    re.compile(
        rf"\bstarts?\b{FILLER}{FIRST}(?:{UNIT})?{FILLER}\bends?\b{FILLER}{FIRST}",
        re.IGNORECASE | re.ASCII,
    ),
)
MAX_DOCUMENTS = 200  # brackets that are tried
_OPENING = re.compile(r"[\[{]")
_CLOCK = re.compile(
    r"\s*(?:(\d+):)?(?:(\d{1,2}):)?(\d+(?:\.\d*)?)\s*(?:seconds?|secs?|s)?\s*", re.ASCII
)
START_KEYS = ("start", "start_s", "start_time", "begin", "from")
END_KEYS = ("end", "end_s", "end_time", "stop", "to")
_ABSENT = re.compile(
    r"\b(?:not\s+(?:present|visible|shown|seen|found|there|happen(?:ing)?|occur(?:ring)?|in\s+th)"
    r"|n't\s+(?:happen|occur|appear|show|contain|see|find)|never\s+(?:happens|occurs|appears)"
    r"|(?:does|do|did)\s+not\s+(?:happen|occur|appear|show|contain)|cannot\s+be\s+(?:seen|found)"
    r"|no\s+such\s+(?:event|moment|scene)|absent|none)\b|doesn['\u2019]t\b|isn['\u2019]t\b"
    r"|^\W*(?:no|null|n/a|\[\s*\])\W*$",
    re.IGNORECASE | re.ASCII,
)


def read_spans(text: str) -> list[Span] | None:
    """The spans that an answer names, in the order of the text.

    Returns:
        Spans with `start <= end`, in seconds; []: the answer says that there is nothing; None: it
        says neither.
    """
    text = text[:MAX_ANSWER]
    spans = [span for value in _documents(text) for span in _spans_of(value)]
    spans = spans or ranges_in(text)
    found = [span for span in spans if span[0] <= span[1]]
    if found:
        return list(dict.fromkeys(found))
    return [] if not spans and _ABSENT.search(text) else None


def ranges_in(text: str) -> list[Span]:
    """The ranges that a text names in words, in its order, whatever order their ends have."""
    matches = [match for pattern in RANGES for match in pattern.finditer(text[:MAX_ANSWER])]
    matches.sort(key=lambda match: match.start())
    found = []
    for match in matches:
        span = clock_seconds(match[1]), clock_seconds(match[2])
        if None not in span:
            found.append(span)
    return found


def clock_seconds(text: str) -> float | None:
    """Seconds of `12.5`, `12.5 s`, `1:02` or `1:02:03.5`; None: it is no time."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hours, minutes, seconds = match[1], match[2], float(match[3])
    if minutes is None and hours is not None:  # mm:ss
        hours, minutes = None, hours
    if not math.isfinite(seconds) or (minutes is not None and seconds >= 60):
        return None
    if hours is not None and int(minutes) >= 60:
        return None
    try:
        return seconds + 60.0 * int(minutes or 0) + 3600.0 * int(hours or 0)
    except (OverflowError, ValueError):  # thousands of digits
        return None


def _documents(text: str) -> Iterator[Any]:
    """The JSON arrays and objects in a text, the outermost ones."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(MAX_DOCUMENTS):
        opening = _OPENING.search(text, at)
        if opening is None:
            return
        try:
            value, at = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            at = opening.start() + 1
            continue
        yield value


def _spans_of(value: Any, depth: int = 0) -> Iterator[Span]:
    if depth > 4:
        return
    if isinstance(value, dict):
        named = {str(key).lower(): item for key, item in value.items()}
        start_s, end_s = (
            next((_time(named[key]) for key in keys if key in named), None)
            for keys in (START_KEYS, END_KEYS)
        )
        if start_s is not None and end_s is not None:
            yield start_s, end_s
            return
        for item in value.values():
            yield from _spans_of(item, depth + 1)
    elif isinstance(value, list):
        times = [_time(item) for item in value]
        if len(value) == 2 and None not in times:
            yield times[0], times[1]
            return
        for item in value:
            yield from _spans_of(item, depth + 1)


def _time(value: Any) -> float | None:
    if isinstance(value, str):
        return clock_seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
