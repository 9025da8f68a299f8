"""What entry points make of errors."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from revisionllm import errors
from revisionllm.errors import UserError, reading, run_entry_point


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


def test_a_place_that_cannot_be_used_is_one_line(capsys):
    error = NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/x")
    assert run_entry_point(raising(error), "demo") == 2
    assert capsys.readouterr().err == "demo: error: cannot use /dev/null/x: Not a directory\n"


def test_termination_is_told_and_has_its_exit_code(capsys):
    def main() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_entry_point(main, "demo") == 143
    assert "terminated; run the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_of_several_processes_the_first_one_speaks(capsys, monkeypatch):
    monkeypatch.setattr(errors, "RANK_WAIT_S", 0.05)
    assert run_entry_point(raising(KeyboardInterrupt()), "train", rank=3) == 130
    assert capsys.readouterr().err == ""
    assert run_entry_point(raising(UserError("only here")), "train", rank=3) == 2
    assert "only here" in capsys.readouterr().err  # nobody had ended it: it knows alone


def test_what_a_library_raises_on_damage_is_one_line():
    message = r"cannot load it \(KeyError: 'x'\); copy it again"
    with pytest.raises(UserError, match=message), reading("cannot load it", "copy it again"):
        raise KeyError("x")
