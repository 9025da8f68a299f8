"""Checkpoints of a run: which is the newest complete one, and how one becomes complete.

A checkpoint is a folder `checkpoint-<step>`; its manifest, written last, names every file with its
size. A folder without it, or whose files differ from it, is what a kill left: it is skipped with a
line and stays where it is. On several machines the run folder must be shared.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import read_json, write_json

log = logging.getLogger(__name__)

MANIFEST = "complete.json"
WEIGHTS = "trained.safetensors"  # without DeepSpeed
FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, optimizer step and what was noted with it."""

    folder: Path
    step: int
    facts: dict[str, Any]


def complete(folder: Path, **facts: Any) -> None:
    """Declare a checkpoint complete: call it once every process has written its part."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / MANIFEST, {"facts": facts, "files": sizes}, indent=1)


def problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it is complete."""
    if not (folder / MANIFEST).is_file():
        return f"no {MANIFEST}: saving was interrupted"
    try:
        manifest = read_json(folder / MANIFEST, kind=dict)
    except UserError:
        return f"{MANIFEST} cannot be read"
    files, facts = manifest.get("files"), manifest.get("facts")
    if not isinstance(files, dict) or not isinstance(facts, dict):
        return f"{MANIFEST} names no files"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def newest_complete(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder; the incomplete ones after it are logged."""
    found = [
        (int(m[1]), path) for path in run.glob("checkpoint-*") if (m := FOLDER.fullmatch(path.name))
    ]
    for step, folder in sorted(found, reverse=True):
        trouble = problem(folder)
        if trouble is None:
            return Checkpoint(folder, step, facts_of(folder))
        log.warning("skipped %s, left in place: %s", folder, trouble)
    return None


def facts_of(folder: Path) -> dict[str, Any]:
    """What was noted with a complete checkpoint."""
    return read_json(folder / MANIFEST, kind=dict)["facts"]


def trained_tensors(folder: Path) -> dict[str, Any]:
    """The trained parameters of a complete checkpoint by name, float32, whatever wrote it.

    Raises:
        UserError: DeepSpeed wrote it, and is not installed.
    """
    from safetensors.torch import load_file

    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise UserError(f"{folder} was written by DeepSpeed, which is not installed") from error
    step = FOLDER.fullmatch(folder.name)
    tag = f"global_step{step[1]}" if step else None
    return get_fp32_state_dict_from_zero_checkpoint(
        str(folder), tag=tag, exclude_frozen_parameters=True
    )


def set_aside(folder: Path) -> None:
    """Rename what stands where a checkpoint is to be written: nothing is deleted."""
    if not folder.exists():
        return
    number = next(n for n in range(1, 1000) if not Path(f"{folder}.incomplete-{n}").exists())
    os.replace(folder, f"{folder}.incomplete-{number}")
    log.warning("renamed %s to %s.incomplete-%d", folder, folder.name, number)
