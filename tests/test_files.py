"""A file is whole or not there, nothing is left beside it, and a failure is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from revisionllm.errors import UserError
from revisionllm.files import replacing, write_bytes, write_json, write_text


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every name in a folder, hidden ones too; None stands for a folder."""
    return {p.name: None if p.is_dir() else p.read_bytes() for p in folder.iterdir()}


def test_folder_is_made_and_nothing_else_is_left(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "view.html", b"new")
    write_bytes(str(tmp_path / "a" / "b" / "view.html"), b"newer")
    assert contents(tmp_path / "a" / "b") == {"view.html": b"newer"}


def test_bytes_of_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "gr\u00fcn\r\nno line end")
    write_json(tmp_path / "a.json", {"b": [1, "gr\u00fcn"], "a": None})
    write_json(tmp_path / "one.json", {"a": 1}, indent=1)
    assert contents(tmp_path) == {
        "a.txt": b"gr\xc3\xbcn\r\nno line end",
        "a.json": b'{\n  "b": [\n    1,\n    "gr\\u00fcn"\n  ],\n  "a": null\n}\n',
        "one.json": b'{\n "a": 1\n}\n',
    }


def test_the_name_holds_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        temporary.write_bytes(b"whole")
    assert contents(tmp_path) == {"weights.bin": b"whole"}


@pytest.mark.parametrize("error", [ValueError("bad value"), KeyboardInterrupt(), UserError("no")])
@pytest.mark.parametrize("before", [{}, {"weights.bin": b"old"}])
def test_an_exception_in_the_block_changes_nothing_and_passes(tmp_path, error, before):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(type(error)) as raised, replacing(tmp_path / "weights.bin") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert raised.value is error
    assert contents(tmp_path) == before


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert contents(tmp_path) == {"a.json": b"old"}


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "view.html"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError) as raised:
        write_bytes(path, b"new")
    assert str(raised.value) == f"cannot write {path}: No space left on device"
    assert contents(tmp_path) == {"view.html": b"old"}


def test_places_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "file" / "view.html"):
        with pytest.raises(UserError) as raised:
            write_bytes(path, b"new")
        assert str(raised.value).startswith(f"cannot write {path}: ")
        assert "\n" not in str(raised.value) and ".tmp" not in str(raised.value)
    assert contents(tmp_path) == {"folder": None, "file": b""}


def test_a_library_s_error_names_the_file_and_not_the_temporary(tmp_path):
    import h5py

    with pytest.raises(UserError) as raised, replacing(tmp_path / "films.h5") as temporary:
        h5py.File(temporary / "not a folder", "w")
    assert str(raised.value) == f"cannot write {tmp_path / 'films.h5'}: {os.strerror(2)}"
    assert contents(tmp_path) == {}
