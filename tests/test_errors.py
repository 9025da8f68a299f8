"""What entry points make of errors."""

from __future__ import annotations

import errno

import pytest

from revisionllm.errors import UserError, run_entry_point


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


def test_user_errors_and_a_full_disk_are_one_line_and_exit_2(capsys):
    assert run_entry_point(raising(UserError("bad file:\n  x.mp4")), "find") == 2
    assert capsys.readouterr().err == "find: error: bad file: x.mp4\n"
    full = OSError(errno.ENOSPC, "No space left on device", "out/film.mp4")
    assert run_entry_point(raising(full), "demo") == 2
    err = capsys.readouterr().err
    assert err.startswith("demo: error: disk full: out/film.mp4") and err.count("\n") == 1


def test_interrupts_and_results():
    assert run_entry_point(raising(KeyboardInterrupt()), "demo") == 130
    assert run_entry_point(lambda: 7, "demo") == 7


def test_other_errors_are_not_hidden():
    with pytest.raises(PermissionError):
        run_entry_point(raising(PermissionError(errno.EACCES, "denied")), "demo")
