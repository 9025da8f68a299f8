"""Models of the Hugging Face hub: `hf:owner/name@revision/folder` wherever a path is taken.

A reference is read from the local cache; `revisionllm models get` alone downloads. A text without
`hf:` is always a path. Revision (a branch, tag or commit; main) and folder are optional.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.files import read_json

PREFIX = "hf:"
SAFE = {"trust_remote_code": False}  # of every `from_pretrained`
NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(rf"hf:({NAME})(?:@([\w.-]+))?((?:/[\w.-]+)*)/?")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([\w.-]+)((?:/.*)?)")


@dataclass(frozen=True)
class Reference:
    """A parsed `hf:` reference; `folder` is "" for the top."""

    repository: str
    revision: str = "main"
    folder: str = ""

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        below = f"/{self.folder}" if self.folder else ""
        return f"{PREFIX}{self.repository}{at}{below}"


def is_reference(text: str | os.PathLike) -> bool:
    """Whether a text is for the hub and not a path."""
    return os.fspath(text).startswith(PREFIX)


def parse(text: str) -> Reference:
    """Take a reference apart.

    Raises:
        UserError: it is not of the form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in match[3].split("/"):
        raise UserError(f"{text!r} is not of the form hf:owner/name@revision")
    return Reference(match[1], match[2] or "main", match[3].strip("/"))


def local(place: str | os.PathLike) -> str:
    """A path as it is; of a reference, its folder in the local cache. Never downloads.

    Raises:
        UserError: not in the cache; names the command that gets it.
    """
    text = os.fspath(place)
    if not is_reference(text):
        return text
    from huggingface_hub import constants

    reference = parse(text)
    whole = Reference(reference.repository, reference.revision)
    owner, name = reference.repository.split("/")
    cached = Path(constants.HF_HUB_CACHE, f"models--{owner}--{name}")
    named = cached / "refs" / reference.revision
    commit = named.read_text().strip() if named.is_file() else reference.revision
    snapshot = cached / "snapshots" / commit
    if not snapshot.is_dir():
        raise UserError(
            f"{whole} is not in the local cache; `revisionllm models get {whole}` downloads it"
        )
    if any((cached / "blobs").glob("*.incomplete")):
        raise UserError(f"{whole} is not whole; `revisionllm models get {whole}` goes on with it")
    found = Path(snapshot, reference.folder)
    if not found.exists():
        raise UserError(f"{whole} has no {reference.folder}")
    return str(found)


def path_argument(text: str) -> str:
    """`local` as the type of an argument on a command line."""
    try:
        return local(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def reference_to(path: str | os.PathLike) -> Reference | None:
    """The reference of a path inside the hub's cache, pinned to its commit; else None."""
    from huggingface_hub import constants

    cache = os.path.abspath(constants.HF_HUB_CACHE) + os.sep
    text = os.path.abspath(path)
    match = _SNAPSHOT.fullmatch(Path(text[len(cache) :]).as_posix())
    if not text.startswith(cache) or match is None:
        return None
    return Reference(f"{match[1]}/{match[2]}", match[3], match[4].strip("/"))


def missing(place: str, what: str = "folder") -> str:
    """What to say of a path with nothing there; a name as on the hub may be meant for it."""
    looks_like_one = re.fullmatch(NAME, place) and not Path(place).parent.is_dir()
    return f"no {what} {place}" + (f"; for the hub write {PREFIX}{place}" if looks_like_one else "")


def check_encoder(name: str) -> Path:
    """Where an encoder's weights lie, if `name` is a place; looked up before anything is imported.

    Raises:
        UserError: it is a place, and nothing is there.
    """
    path = Path(local(name))
    is_place = path.suffix in (".pt", ".safetensors") or os.sep in name or is_reference(name)
    if is_place and not path.exists():
        said = missing(name)
        hint = "" if ";" in said else "; checkpoints/README.md says where to get them"
        raise UserError(f"CLIP weights not found: {said}{hint}")
    return path


def go_offline() -> None:
    """Whatever a library looks for on the hub, it looks for in the cache alone, at once."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def refuse_own_code(
    folder: Path, models: str, names: Sequence[str] = ("config.json", "tokenizer_config.json")
) -> None:
    """Raises UserError if a model brings Python code of its own, which is never run."""
    for name in names:
        if (folder / name).is_file() and "auto_map" in read_json(folder / name, kind=dict):
            raise UserError(
                f"{folder / name} names code of its own (auto_map): such {models} are not supported"
            )
