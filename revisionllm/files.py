"""Write a file in one step: it is whole or it is not there, and a failure is one line.

Here alone: writing beside and renaming, what may be replaced, locks. Files that grow line by line
(predictions, logs) and folders made as a whole keep their own way of writing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revisionllm import __version__
from revisionllm.errors import UserError

MADE_BY = f"revisionllm {__version__}"
# How files of ours say so: JSON and HDF5 attributes; HTML; PNG; Markdown, tables and film tags.
_OURS = re.compile(
    rb'made_by"?: *"?revisionllm|name="generator" content="revisionllm|Software\x00revisionllm'
    rb'|"format": "revisionllm-'
)
_LOOK_BYTES = 2**16
_DIGEST_BYTES = 2**22
HEAD_BYTES = 2**20  # of a model's file, which tell it from others
MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.model")
# .NAME.HOST-PID.tmp; older versions left HOST out
_TEMPORARY = re.compile(r"\.(?:(?P<host>[^.]*)-)?(?P<pid>\d+)\.tmp")


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it when the block ends well.

    The folder is made. When the block raises, the temporary file goes and `path` stays as it was;
    what a killed run of this machine left goes at the next start.

    Raises:
        UserError: for any OSError, the block's included (full disk, no permission, a folder of
            that name).
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        try:
            yield temporary
            if temporary.is_file():  # safetensors makes files for their owner's eyes alone
                temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
        except BaseException:  # an interrupt too: nothing half-written stays
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, UnicodeEncodeError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | os.PathLike, error: OSError | UnicodeEncodeError) -> UserError:
    """The one line for a file that cannot be written; to be raised."""
    if isinstance(error, UnicodeEncodeError):
        return UserError(f"cannot write {path}: a text in it is not Unicode")
    # strerror of the number: libraries put the temporary name into their own text
    reason = os.strerror(error.errno) if error.errno else error
    return UserError(f"cannot write {path}: {reason}")


def temporary_path(path: Path) -> Path:
    """Where this process writes what will become `path`."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:20] or "host"
    room = 200 - len(host)  # file systems allow 255 bytes
    return path.with_name(f".{path.name[:room]}.{host}-{os.getpid()}.tmp")


def remove_stale(path: Path) -> None:
    """Remove temporary files and folders of `path` whose process, one of this machine, is gone."""
    own = _TEMPORARY.search(temporary_path(path).name)
    prefix = temporary_path(path).name[: own.start()]
    for entry in path.parent.glob(f"{_glob_escaped(prefix)}.*.tmp"):
        match = _TEMPORARY.fullmatch(entry.name[len(prefix) :])
        if match is None or match["host"] not in (None, own["host"]) or _runs(int(match["pid"])):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _glob_escaped(text: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", text)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# --- reading JSON ---

MAX_JSON_BYTES = 2**32  # MAD's annotations have 0.2 GB


class BadRecord(ValueError):
    """One record that cannot be used; the message says which field and why."""


def _refuse_constant(name: str) -> float:
    raise BadRecord(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(data: bytes) -> Any:
    """Parse one JSON text strictly: UTF-8 (a byte order mark is left out), no NaN or Infinity.

    Raises:
        BadRecord: with the reason, on one line.
    """
    try:
        return _DECODER.decode(data.decode("utf-8-sig"))
    except BadRecord:
        raise
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise BadRecord(f"not valid JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise BadRecord("not valid JSON (nested too deeply)") from error
    except ValueError as error:  # an integer of thousands of digits
        raise BadRecord(f"not valid JSON ({error})") from error


def is_number(value: Any) -> bool:
    """Whether a parsed value is a finite number within the range of floats, and no boolean."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def read_json(path: str | os.PathLike, *, kind: type | None = None, mend: str = "") -> Any:
    """Read a whole JSON file strictly.

    Args:
        kind: dict or list, what the document must be; None: anything.
        mend: what mends a damaged file, for the message.

    Raises:
        UserError: missing, unreadable, invalid or another kind; names the file and what is wrong.
    """
    path = Path(path)
    data = read_bytes(path)
    after = f"; {mend}" if mend else ""
    try:
        document = parse_json(data)
    except BadRecord as error:
        cause = error.__cause__
        line = f":{cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: {error}{after}") from error
    if kind is not None and type(document) is not kind:
        found = {dict: "an object", list: "a list"}.get(type(document), repr(document)[:40])
        wanted = {dict: "an object", list: "a list"}[kind]
        raise UserError(f"{path}: expected {wanted}, got {found}{after}")
    return document


def read_bytes(path: str | os.PathLike, limit: int = MAX_JSON_BYTES) -> bytes:
    """A whole file.

    Raises:
        UserError: missing, unreadable or larger than `limit`.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise UserError(f"{os.fspath(path)} is larger than {limit} bytes")
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"no such file: {os.fspath(path)}") from error
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"not a file name: {os.fspath(path)!r}") from error


# --- files whose library may crash on damage ---

PROBE_S = 60.0
_probed: set[tuple[str, int, int]] = set()


def probe_in_child(path: str | os.PathLike, code: str) -> None:
    """Let another process read a file first, with a library that crashes or hangs on some damage.

    Once per process and state of the file. What the child raises does not count: whoever reads the
    file afterwards is told the same.

    Args:
        code: Python that reads the file named by `sys.argv[1]`.

    Raises:
        UserError: the child crashed, or did not come to an end in `PROBE_S` seconds.
    """
    try:
        about = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    state = (os.path.realpath(path), about.st_size, about.st_mtime_ns)
    if state in _probed:
        return
    command = [sys.executable, "-c", code, os.fspath(path)]
    try:
        code = subprocess.run(command, capture_output=True, timeout=PROBE_S).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0:
        raise UserError(f"{os.fspath(path)} is damaged; extract or copy it again")
    _probed.add(state)


# --- what may be replaced ---


def claim_output(
    path: str | os.PathLike,
    *,
    inputs: Iterable[str | os.PathLike | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuse an output that is an input, or that would replace what this project did not make.

    Call it before any work.

    Raises:
        UserError: says which, and what mends it.
    """
    path = Path(path)
    try:
        for source in inputs:
            if source is not None and is_same(path, source):
                raise UserError(f"{path} is read by this command; write to another place")
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        folder = next(place for place in path.absolute().parents if place.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"cannot write {path}: {folder} is no folder that can be written to")
        if path.exists() and not overwrite and not is_ours(path):
            raise UserError(
                f"{path} exists and was not made by this project; move it away, choose another"
                " name, or add --overwrite"
            )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"not a file name: {os.fspath(path)!r}") from error


def claim_outputs(
    folder: str | os.PathLike,
    names: Iterable[str],
    *,
    mark: str,
    inputs: Iterable[str | os.PathLike | None] = (),
    overwrite: bool = False,
) -> None:
    """`claim_output` for files written together; `mark` is the one that says whose they all are."""
    inputs = list(inputs)
    ours = is_ours(Path(folder) / mark)
    for name in names:
        claim_output(Path(folder) / name, inputs=inputs, overwrite=overwrite or ours)


def is_same(path: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two paths are one file or folder, by any name."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, which is never in memory as a whole."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_DIGEST_BYTES):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(place: str | os.PathLike) -> str:
    """Fingerprint of a model's folder or file without reading it whole: names, sizes, times of
    change and first bytes (of safetensors: names and shapes of tensors)."""
    path = Path(place)
    files: Iterable[Path] = [path]
    if path.is_dir():
        files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    return json_digest([_stamp(file) for file in files])


def _stamp(file: Path) -> list[Any]:
    status = file.stat()
    with file.open("rb") as stream:
        head = hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()
    # small files are told by their bytes; copying them is no change
    changed = status.st_mtime_ns if status.st_size > HEAD_BYTES else 0
    return [file.name, status.st_size, changed, head]


def cache_dir() -> Path:
    """Where this project keeps what can be made again: $XDG_CACHE_HOME/revisionllm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revisionllm"


def json_digest(value: Any) -> str:
    """32 hexadecimal digits of anything that JSON can hold; other things count by their text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_noted(path: str | os.PathLike, text: str) -> None:
    """Write a file whose format cannot say what made it, and a note beside it that does."""
    write_text(path, text)
    note = {"made_by": MADE_BY, "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}
    write_json(_note_of(Path(path)), note)


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + ".made_by.json")


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a file, or the note beside it, says that this project made it; or it is empty."""
    path = Path(path)
    try:
        if _note_of(path).is_file() and is_ours(_note_of(path)):
            noted = parse_json(_note_of(path).read_bytes()).get("sha256")
            return noted == sha256_of(path)
        with open(path, "rb") as file:
            head = file.read(_LOOK_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOOK_BYTES))
            return not head or _OURS.search(head + file.read(_LOOK_BYTES)) is not None
    except (OSError, BadRecord, AttributeError):
        return False


# --- one at a time ---


@contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs, so that no other process does the same.

    Args:
        path: the lock file; it is there as long as it is held.
        what: what one process alone may do, for the message.

    Raises:
        UserError: another process holds it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        lock_file(file, what)
        if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
            # another process held it and took it away meanwhile
            raise UserError(f"another process {what}; run this again when it is done")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_file(file: Any, what: str) -> None:
    """Lock an open file until it is closed.

    Raises:
        UserError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process {what}; run this again when it is done") from error
    except OSError as error:
        raise UserError(f"cannot lock {file.name}: {error.strerror}") from error


@contextmanager
def waiting_lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of an existing file, after those of other processes."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- writing ---


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, its line ends as they are, in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any, indent: int = 2) -> None:
    """Write `value` as ASCII JSON with a line end after it, in one step; see `replacing`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def html_template(package: str, name: str, **filters: Callable[..., Any]) -> Any:
    """A Jinja template of a package's `assets/`; every text that it is given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
