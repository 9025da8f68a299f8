"""Strict reading of JSON and JSONL that strangers wrote: errors are named with file and line.

Used by every reader of predictions and annotations (eval/, interop/). A bad line never stops a
reader and never turns into a number: it becomes a `Problem`, which the caller counts and prints.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from revisionllm.errors import UserError
from revisionllm.files import BadRecord, is_number, parse_json, read_json, write_text

__all__ = ["BadRecord", "parse_json", "read_json"]  # of files.py; readers find all in one place

if TYPE_CHECKING:
    import numpy as np

MAX_LINE_BYTES = 64 * 2**20  # a longer line is not a record of any format here, whatever it is
NUMBER_TYPES = frozenset({int, float})  # not bool: True is no number of seconds
ROW_TYPES = frozenset({list, tuple})


@dataclass(frozen=True)
class Problem:
    """Something in an input file that was not used. `line` counts from 1; 0 is the whole file."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.what}"


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def iter_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield `(line number from 1, object or Problem)` for each non-empty line of a JSONL file.

    Raises:
        UserError: the file cannot be opened.
    """
    path = Path(path)
    with _open(path) as file:
        line_number = 0
        while raw := file.readline(MAX_LINE_BYTES):
            line_number += 1
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while raw and not raw.endswith(b"\n"):  # skip the rest of the monster
                    raw = file.readline(MAX_LINE_BYTES)
                what = f"line longer than {MAX_LINE_BYTES} bytes"
                yield line_number, Problem(str(path), line_number, what)
                continue
            if not raw.strip():
                continue
            try:
                yield line_number, parse_json(raw)
            except BadRecord as error:
                torn = "" if raw.endswith(b"\n") else "; the last line is torn"
                yield line_number, Problem(str(path), line_number, f"{error}{torn}")


def iter_records(path: str | Path) -> Iterator[tuple[int | str, Any]]:
    """`(line number or "item N", object or Problem)` of a file that is JSONL or one JSON list.

    Raises:
        UserError: the file cannot be opened, or begins as a list and is none.
    """
    path = Path(path)
    with _open(path) as file:
        start = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") and path.suffix != ".jsonl":
        for number, record in enumerate(read_json(path, kind=list)):
            yield f"item {number}", record
    else:
        yield from iter_json_lines(path)


def text_field(record: Any, name: str) -> str:
    """The field as text; an integer id is turned into text. Raises BadRecord otherwise."""
    value = record.get(name) if isinstance(record, dict) else None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value:
        raise BadRecord(f"field {name!r} must be text or an integer, got {_short(value)}")
    return value


def optional_text(record: dict[str, Any], name: str) -> str | None:
    """The field as text, None where it is absent or null. Raises BadRecord otherwise."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRecord(f"field {name!r} must be text, got {_short(value)}")
    return value


def number_field(record: Any, name: str) -> float:
    """The field as a finite float. Raises BadRecord otherwise."""
    value = record.get(name) if isinstance(record, dict) else None
    if not is_number(value):
        raise BadRecord(f"field {name!r} must be a finite number, got {_short(value)}")
    return float(value)


def number_rows(rows: Any, width: int, what: str) -> np.ndarray:
    """Turn a list of rows of `width` numbers into float64 [n, width], refusing anything else.

    Raises:
        BadRecord: not a list, a row of another length, a text, a boolean, NaN or infinity.
    """
    import numpy as np

    if not isinstance(rows, (list, tuple)):
        raise BadRecord(f"{what} must be a list, got {_short(rows)}")
    if not set(map(type, rows)) <= ROW_TYPES or not set(map(len, rows)) <= {width}:
        bad = next(row for row in rows if type(row) not in ROW_TYPES or len(row) != width)
        raise BadRecord(f"{what}: expected {width} numbers, got {_short(bad)}")
    flat = list(itertools.chain.from_iterable(rows))
    if not set(map(type, flat)) <= NUMBER_TYPES:
        bad = next(value for value in flat if type(value) not in NUMBER_TYPES)
        raise BadRecord(f"{what}: {_short(bad)} is not a number")
    try:
        array = np.array(flat, dtype=np.float64).reshape(len(rows), width)
    except OverflowError as error:
        raise BadRecord(f"{what}: a number is too large") from error
    if not np.isfinite(array).all():
        raise BadRecord(f"{what}: a number is not finite")
    return array


def span_rows(rows: Any, what: str, *, width: int = 2) -> np.ndarray:
    """`number_rows` whose first two columns are start and end; refuses a reversed span."""
    array = number_rows(rows, width, what)
    reversed_rows = array[:, 1] < array[:, 0]
    if reversed_rows.any():
        start_s, end_s = array[reversed_rows][0, :2]
        raise BadRecord(f"{what}: a span ends before it starts ({start_s:g} > {end_s:g})")
    return array


def predicted_rows(rows: Any, what: str, *, width: int = 2) -> tuple[np.ndarray, int]:
    """`number_rows` of an answer: the rows whose start is not after their end, and how many are.

    A peer's reversed span is dropped and counted; it costs the answer nothing else.
    """
    array = number_rows(rows, width, what)
    good = array[:, 0] <= array[:, 1]
    return array[good], int((~good).sum())


def write_json_lines(path: str | Path, records: Iterable[Any]) -> None:
    """Write one JSON object per line, atomically."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    write_text(path, "".join(line + "\n" for line in lines))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
