"""Write a file in one step: it is whole or it is not there, and a failure is one line.

The only definition of writing beside and renaming; files that grow line by line (predictions, logs)
and folders made as a whole keep their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it when the block ends well.

    The folder is made. When the block raises, the temporary file goes and `path` stays as it was.

    Raises:
        UserError: for any OSError, the block's included (full disk, no permission, a folder of
            that name).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:  # an interrupt too: nothing half-written stays
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        # strerror of the number: libraries put the temporary name into their own text
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f"cannot write {path}: {reason}") from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, its line ends as they are, in one step; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any, indent: int = 2) -> None:
    """Write `value` as ASCII JSON with a line end after it, in one step; see `replacing`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
