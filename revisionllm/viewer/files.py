"""Write a finished file in one step: a view is whole or it is not there."""

from __future__ import annotations

import os
from pathlib import Path

from revisionllm.errors import UserError


def write_whole(path: str | Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, then rename; the folder is made.

    Raises:
        UserError: the file cannot be written (full disk, no permission, a folder of that name).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
