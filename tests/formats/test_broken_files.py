"""Files broken in every way: readers name file and place, or read right; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import EXAMPLES

from revisionllm.errors import UserError
from revisionllm.formats.registry import ANNOTATIONS, FORMATS, detect
from revisionllm.formats.released_log import read_logs
from revisionllm.records.jsonl import MAX_LINE_BYTES, iter_json_lines
from revisionllm.records.rankings import LabelledQuery

OURS = {"schema": 1, "qid": "1", "vid": "v", "query": "q", "duration_s": 60.0, "found": True}
OURS |= {"moments": [{"start_s": 1.0, "end_s": 2.0, "score": 0.5, "parts": {}, "level": ""}]}
OURS |= {"cost": {}, "status": "ok", "reason": None, "run": "", "gt": [[1.0, 2.0]]}
OURS |= {"windows": [{"index": 0, "start_s": 0.0, "end_s": 60.0, "answer": "x"}]}
LOG = {"video_id": "v", "task": "grounding", "query_id": "1", "answer": ["From 1 to 2."]}
LOG |= {"info": {"iou": [0.5], "scores": [1.0], "frames": {"0": [1, 3]}}}
FILES = dict(EXAMPLES)
FILES["revisionllm"] = ("p.jsonl", json.dumps(OURS) + "\n")
FILES["released-log"] = ("predictions_streaming_0.txt", json.dumps(LOG) + "\n")

JUNK = [None, True, -1, 0, 1.5, "", "x", "1", [], [[]], {}, {"a": 1}, [1], [[2, 1]], [["1", "2"]]]
JUNK += [[[1, 2, 3, 4]], [[True, 2]], 10**400, float("nan"), float("inf"), [[0, float("nan")]]]
QUIET = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(name: str, path: Path):
    """Read a file by its format; released logs row by row, since seconds need annotations."""
    return read_logs([path]) if name == "released-log" else FORMATS[name].read(path)


def check(name: str, path: Path) -> None:
    """Read a possibly broken file: fine, named, or refused in one sentence that names the file."""
    try:
        items, problems = read(name, path)
    except UserError as error:
        assert str(path) in str(error) or "Ego4D" in str(error)
        return
    assert all(problem.path == str(path) and problem.what for problem in problems)
    for item in items:
        for spans in numbers(item):
            assert np.isfinite(spans).all() and (spans[:, 0] <= spans[:, 1]).all()


def numbers(item) -> list[np.ndarray]:
    if isinstance(item, LabelledQuery):
        return [item.spans]
    if not hasattr(item, "spans"):
        return []
    return [spans for spans in (item.spans, item.gt) if spans is not None]


def places(value, at=()):
    """Every place in a JSON value."""
    yield at
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from places(child, (*at, key))


def replaced(value, at, junk):
    """The JSON value with one place replaced."""
    if not at:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], junk)
    return copy


JSON_FORMATS = [name for name in FILES if name not in ("charades-sta", "csv")]


@pytest.mark.parametrize("name", JSON_FORMATS)
@QUIET
@given(data=st.data())
def test_any_value_in_any_place(name, tmp_path, data):
    file, text = FILES[name]
    document = json.loads(text)
    at = data.draw(st.sampled_from(list(places(document))))
    junk = data.draw(st.sampled_from(JUNK))
    path = tmp_path / file
    path.write_text(json.dumps(replaced(document, at, junk)) + "\n")
    check(name, path)


@pytest.mark.parametrize("name", FILES)
@QUIET
@given(data=st.data())
def test_cut_and_damaged_bytes(name, tmp_path, data):
    file, text = FILES[name]
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / file
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    check(name, path)
    try:
        detect(path)
    except UserError as error:
        assert str(path) in str(error)


LINES = [name for name, (file, _) in FILES.items() if file.endswith(("jsonl", "txt"))]
BAD_LINES = [
    b'{"a": ',
    b"null",
    b"[1, 2]",
    b'{"qid": NaN}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"1" * 5000,
    b'"' + b"x" * 1000 + b'"',
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_named_and_its_neighbours_are_read(name, bad, tmp_path):
    file, text = FILES[name]
    if name == "charades-sta":  # a text file is decoded as a whole, and refused as a whole, below
        bad = bad.replace(b"\xff\xfe", b"?")
    good = text.splitlines()[0].encode()
    path = tmp_path / file
    path.write_bytes(good + b"\n" + bad + b"\n\n" + good + b"\n")
    items, problems = read(name, path)
    per_line = len(read_alone(name, tmp_path / "one", good))
    assert len(items) == 2 * per_line
    assert [str(problem).split(": ")[0] for problem in problems] == [f"{path}:2"]


def read_alone(name: str, folder: Path, line: bytes) -> list:
    folder.mkdir()
    path = folder / FILES[name][0]
    path.write_bytes(line + b"\n")
    return read(name, path)[0]


def test_a_line_that_never_ends_is_not_kept_in_memory(tmp_path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_LINE_BYTES + 10)
        file.seek(0, 2)
        file.write(b"\n" + json.dumps({"a": 1}).encode() + b"\n")
    (_, first), (second, record) = iter_json_lines(path)
    assert "longer than" in first.what and (second, record) == (2, {"a": 1})


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "sta.txt"
    path.write_bytes(b"v 0 1##caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read("charades-sta", path)


def test_every_format_is_broken_here():
    assert set(FILES) == set(FORMATS)
    assert FORMATS["mad"].kind == ANNOTATIONS
