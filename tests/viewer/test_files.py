"""A view is whole or not there, and a failure is one line for the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from revisionllm.errors import UserError
from revisionllm.viewer.files import write_whole


def test_folder_is_made_and_nothing_else_is_left(tmp_path):
    write_whole(tmp_path / "out" / "view.html", b"new")
    write_whole(tmp_path / "out" / "view.html", b"newer")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [
        ("view.html", b"newer")
    ]


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "view.html"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*view\.html: No space left on device"):
        write_whole(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("view.html", b"old")]


def test_a_folder_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "view.html").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "view.html", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["view.html"]
