"""Errors a user can mend, and how entry points turn them into one line and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what mends it.

    Entry points print it as one line on stderr and exit with code 2; it never carries a traceback.
    """


def run_entry_point(main: Callable[[], int], program: str) -> int:
    """Call ``main`` and translate what went wrong into an exit code.

    Args:
        main: the work; returns an exit code.
        program: name to print in front of the message.

    Returns:
        What ``main`` returned; 2 for a `UserError` or a full disk; 130 when interrupted.
    """
    try:
        return main()
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of our stdout went away (`| head`): not our failure
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f": {error.filename}" if error.filename else ""
        message = f"disk full{place}; free some space and run the same command again"
        print(f"{program}: error: {message}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED
