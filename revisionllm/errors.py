"""Errors a user can mend, and how entry points turn them into one line and an exit code."""

from __future__ import annotations

import errno
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
RANK_WAIT_S = 5.0


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what mends it.

    Entry points print it as one line on stderr and exit with code 2; it never carries a traceback.
    """


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread, so that what is open is closed in order."""


def check_installed(what: str, *modules: str, get: str | None = None) -> None:
    """An optional package is there.

    Args:
        what: the message's beginning: who needs what.
        modules: what is imported, all of them.
        get: what pip installs; None: the modules by their names.

    Raises:
        UserError: one is missing.
    """
    if any(importlib.util.find_spec(name) is None for name in modules):
        raise UserError(f"{what}: `pip install {get or ' '.join(modules)}`")


@contextmanager
def reading(problem: str, mend: str = "copy or make it again") -> Iterator[None]:
    """Around one call of a library that reads a file: whatever it raises on damage is one line.

    Libraries raise anything there, plain `Exception` included; nothing of ours belongs inside.

    Raises:
        UserError: `problem` in words, the library's reason, and what mends it.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else ""
        kind = type(error).__name__
        reason = f"{kind}: {reason}" if reason and len(reason) < 40 else reason or kind
        raise UserError(f"{problem} ({reason}); {mend}") from error


def run_entry_point(main: Callable[[], int], program: str, *, rank: int = 0) -> int:
    """Call ``main`` and translate what went wrong into an exit code.

    Args:
        main: the work; returns an exit code.
        program: name to print in front of the message.
        rank: of several processes that do the same, this one's number. Number 0 speaks for all;
            another one speaks only if nobody has ended it `RANK_WAIT_S` seconds later.

    Returns:
        What ``main`` returned; 2 for a `UserError` or a place that cannot be used; 130 when
        interrupted; 143 when terminated.
    """
    _prepare_streams()
    with _TerminatedRaised():
        try:
            return main()
        except UserError as error:
            if rank and _is_ended_within(RANK_WAIT_S):
                return EXIT_BAD_INPUT
            return _refuse(program, str(error))
        except BrokenPipeError:  # the reader of our stdout went away (`| head`): not our failure
            sys.stderr.close()
            return 0
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = f": {error.filename}" if error.filename else ""
                return _refuse(
                    program, f"disk full{place}; free some space and run the same command again"
                )
            if error.filename is None:
                raise
            return _refuse(program, f"cannot use {error.filename}: {error.strerror}")
        except KeyboardInterrupt:
            if rank:
                return EXIT_INTERRUPTED
            print(f"{program}: interrupted; run the same command again to resume", file=sys.stderr)
            return EXIT_INTERRUPTED
        except Terminated:
            if rank:
                return EXIT_TERMINATED
            print(f"{program}: terminated; run the same command again to resume", file=sys.stderr)
            return EXIT_TERMINATED


def _is_ended_within(seconds: float) -> bool:
    """Wait; whether somebody ended this process meanwhile."""
    try:
        time.sleep(seconds)
    except (KeyboardInterrupt, Terminated):
        return True
    return False


def _refuse(program: str, message: str) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _prepare_streams() -> None:
    """File names that are not Unicode are shown with backslashes instead of failing to print."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


class _TerminatedRaised:
    """While it is entered, SIGTERM raises `Terminated` in the main thread."""

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _raise(*_: object) -> NoReturn:
        raise Terminated
