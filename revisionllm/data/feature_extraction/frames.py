"""Extract CLIP frame features of one video into a .npy file; a killed run continues where it was.

Decoding runs in a thread ahead of the encoder (PyAV and torch both release the GIL). Rows grow in
`<out>.partial`; the finished file is renamed into place and `<out stem>.json` beside it records
what it was made of and a digest of its rows, so a later call reuses it only if video, CLIP and rate
are the same and no byte has changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from revisionllm.data.feature_extraction.same_frames import SAME_LEVELS, changed
from revisionllm.data.readers import frames_in_order
from revisionllm.data.stores.feature_store import CONTENTS, DIGEST, ROWS_PER_READ, RowsDigest
from revisionllm.data.video import probe
from revisionllm.errors import UserError
from revisionllm.files import read_json, sha256_of, write_json, write_text

if TYPE_CHECKING:
    from revisionllm.model.clip import ClipFeatures

# 1: times counted from the first picture, not from the container's start; 2: no digests
SCHEMA = 3
# Batches of frames that may wait for the encoder.
DECODE_AHEAD_BATCHES = 2
END_BYTES = 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureFile:
    """A finished feature file: row i is the frame on screen at i / feature_fps seconds.

    Attributes:
        path: .npy of [num_frames, dim].
        about: what the sidecar says (rate, CLIP fingerprint, video, duration_s, start_s).
        reused: an earlier run had made it; nothing was computed.
    """

    path: Path
    about: dict[str, Any]
    reused: bool

    @property
    def num_frames(self) -> int:
        return self.about["num_frames"]

    @property
    def feature_fps(self) -> float:
        return self.about["feature_fps"]

    @property
    def duration_s(self) -> float:
        return self.about["duration_s"]


def extract_features(
    video_path: str | os.PathLike,
    clip: ClipFeatures,
    *,
    feature_fps: float,
    out_path: str | os.PathLike,
    batch_size: int = 64,
    dtype: str = "float16",
    skip_same: bool = False,
    progress: bool = True,
) -> FeatureFile:
    """Write the image features of a video, one row per 1 / feature_fps seconds.

    The same arguments give the same bytes, interrupted and continued or not.

    Args:
        video_path: any video file.
        clip: see `load_clip`.
        feature_fps: rows per second.
        out_path: the .npy to write; its folder is made.
        batch_size: frames per pass of the image tower.
        dtype: of the stored rows, "float16" or "float32".
        skip_same: frames like the one before are not encoded and have its row (`same_frames`).
        progress: show a progress bar with frames/s and ETA on stderr.

    Raises:
        UserError: unreadable or cut video; full disk (what was done stays and is continued); a file
            at `out_path` that this function did not make; another process is at it.
    """
    out_path = Path(out_path)
    known = [_read_json(path) for path in (_sidecar(out_path), _partial_paths(out_path)[1])]
    about = _describe(video_path, clip, feature_fps, dtype, skip_same, known)
    _complete_rename(out_path, about)
    found = _read_json(_sidecar(out_path))
    if _is_same(found, about) and _has_shape(out_path, about):
        if _digest_of(out_path, about) == found.get(DIGEST):
            about = about | {DIGEST: found[DIGEST]}
            if found != about:  # the film was touched or copied
                write_json(_sidecar(out_path), about)
            return FeatureFile(out_path, about, reused=True)
        print(f"{out_path} has changed since it was made; extracting it again", file=sys.stderr)
    _refuse_files_of_others(out_path)
    with (
        _disk_errors_explained(out_path, about),
        _partial(out_path, about, batch_size) as (file, num_done),
    ):
        batches = _batches(video_path, clip, about, num_done, batch_size)
        bar = _progress_bar(out_path.stem, num_done, about["num_frames"], progress)
        with bar, closing(read_ahead(batches, depth=DECODE_AHEAD_BATCHES)) as frames:
            for batch in frames:
                rows = _encoded(clip, batch, skip_same).astype(dtype)
                _append(file, rows)
                _note_sum(out_path, rows.tobytes(), len(rows))
                bar.update(len(rows))
        about = about | {DIGEST: _finish(file, out_path, about)}
    return FeatureFile(out_path, about, reused=False)


def arithmetic_of(clip: ClipFeatures) -> str:
    """What an encoder computes in; one that does not say so, in float32."""
    return getattr(clip, "arithmetic", "float32")


def _encoded(clip: ClipFeatures, batch: np.ndarray, skip_same: bool) -> np.ndarray:
    """Rows of a batch; what stands still is encoded once per batch, so that a continued run gives
    the same bytes."""
    if not skip_same:
        return clip.encode_images(batch, batch_size=len(batch)).numpy()
    is_new = changed(batch)
    rows = clip.encode_images(batch[is_new], batch_size=len(batch)).numpy()
    return rows[np.cumsum(is_new) - 1]


def read_ahead(items: Iterable[T], *, depth: int) -> Iterator[T]:
    """Iterate `items` in a thread that runs at most `depth` items ahead; its errors arrive here.

    Close the iterator to stop the thread early.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except Exception as error:  # handed to the consumer, which raises it
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def _describe(
    video_path: str | os.PathLike,
    clip: ClipFeatures,
    feature_fps: float,
    dtype: str,
    skip_same: bool,
    known: Iterable[Any] = (),
) -> dict[str, Any]:
    """Everything the rows depend on; equal descriptions mean equal files.

    Args:
        known: descriptions of earlier calls, whose digest of an untouched film is believed.
    """
    info, video = probe(video_path), video_identity(video_path)
    arithmetic = arithmetic_of(clip)
    # only where they are unusual: older descriptions do without
    unusual = {"arithmetic": arithmetic} if arithmetic != "float32" else {}
    unusual |= {"skip_same": SAME_LEVELS} if skip_same else {}
    return unusual | {
        "made_by": "revisionllm",  # no version: what a newer one would make alike is kept
        "schema": SCHEMA,
        "feature_fps": float(feature_fps),
        "num_frames": info.num_samples(feature_fps),
        "dim": clip.dim,
        "dtype": str(np.dtype(dtype)),
        "clip_fingerprint": clip.fingerprint(),
        "decode_size": list(clip.decode_size(info.width, info.height)),
        "duration_s": info.duration_s,
        "start_s": info.start_s,
        "video": video,
        CONTENTS: _contents(video_path, video, known),
    }


def video_identity(path: str | os.PathLike) -> dict[str, Any]:
    """Name, size and a hash of the first and last MiB."""
    size = os.path.getsize(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return {"name": Path(path).name, "bytes": size, "sha256_of_ends": digest.hexdigest()}


def _contents(path: str | os.PathLike, video: dict[str, Any], known: Iterable[Any]) -> dict:
    """Time of change and SHA-256 of a film, which is read for it unless `known` tells of it."""
    mtime_ns = os.stat(path).st_mtime_ns
    for about in known:
        told = about.get(CONTENTS) if isinstance(about, dict) else None
        if not isinstance(told, dict) or about.get("video") != video or "sha256" not in told:
            continue
        if told.get("mtime_ns") == mtime_ns:
            return told
    return {"mtime_ns": mtime_ns, "sha256": sha256_of(path)}


def _is_same(found: Any, about: dict[str, Any]) -> bool:
    """Whether a description on disk says what `about` does; times of change may differ."""

    def told(description: dict[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in description.items() if k not in (DIGEST, CONTENTS)}
        return rest | {"sha256": description[CONTENTS].get("sha256")}

    is_description = isinstance(found, dict) and isinstance(found.get(CONTENTS), dict)
    return is_description and told(found) == told(about)


def _digest_of(path: Path, about: dict[str, Any]) -> str:
    """Digest of the rows in a .npy file that has the shape `about` says."""
    rows = np.memmap(
        path,
        dtype=about["dtype"],
        mode="r",
        offset=len(_header(about)),
        shape=(about["num_frames"], about["dim"]),
    )
    digest = RowsDigest()
    for first in range(0, len(rows), ROWS_PER_READ):
        digest.update(rows[first : first + ROWS_PER_READ])
    return digest.hexdigest()


def _batches(
    video_path: str | os.PathLike,
    clip: ClipFeatures,
    about: dict[str, Any],
    first: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """uint8 [n, H, W, 3], n = batch_size but for the last; grid indices from `first` on."""
    feature_fps = about["feature_fps"]
    size = (about["decode_size"][0], about["decode_size"][1])
    batch: list[np.ndarray] = []
    if first >= about["num_frames"]:
        return
    start_s = first / feature_fps
    for _, _, rgb in frames_in_order(video_path, feature_fps, size=size, start_s=start_s):
        batch.append(rgb)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _progress_bar(name: str, num_done: int, total: int, shown: bool):
    from tqdm import tqdm

    return tqdm(
        desc=name, initial=num_done, total=total, unit="frame", file=sys.stderr, disable=not shown
    )


def _sidecar(out_path: Path) -> Path:
    return out_path.with_suffix(".json")


def _read_json(path: Path) -> Any:
    """The parsed file; None if it is not there or torn."""
    try:
        return read_json(path)
    except UserError:
        return None


def _partial_paths(out_path: Path) -> tuple[Path, Path]:
    """The unfinished rows and their description."""
    rows = out_path.with_name(out_path.name + ".partial")
    return rows, rows.with_name(rows.name + ".json")


def _sums_path(out_path: Path) -> Path:
    """A line per batch of the unfinished rows: how many, and their digest."""
    return out_path.with_name(out_path.name + ".partial.sums")


def _note_sum(out_path: Path, data: bytes, count: int) -> None:
    with open(_sums_path(out_path), "a", encoding="ascii") as file:
        file.write(f"{count} {hashlib.sha256(data).hexdigest()[:16]}\n")


def _sound_rows(out_path: Path, header_bytes: int, row_bytes: int, batch_size: int) -> int:
    """Unfinished rows that are as they were written, in whole batches; cuts the sums to them."""
    path, lines = _sums_path(out_path), []
    kept = sound = num_lines = 0
    text = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
    with open(_partial_paths(out_path)[0], "rb") as rows:
        rows.seek(header_bytes)
        for line in text.splitlines(keepends=True):
            count, _, digest = line.strip().partition(" ")
            data = rows.read(int(count) * row_bytes) if count.isdecimal() else b""
            if not data or hashlib.sha256(data).hexdigest()[:16] != digest:
                break
            lines.append(line)
            sound += int(count)
            if sound % batch_size == 0 or int(count) < batch_size:  # the last one may be shorter
                kept, num_lines = sound, len(lines)
    write_text(path, "".join(lines[:num_lines]))
    return kept


def _complete_rename(out_path: Path, about: dict[str, Any]) -> None:
    """Write the sidecar of a run that was killed right after moving its rows into place."""
    partial, about_path = _partial_paths(out_path)
    if partial.exists() or not _has_shape(out_path, about):
        return
    if _is_same(_read_json(about_path), about) and not _sidecar(out_path).exists():
        about_path.replace(_sidecar(out_path))
        _sums_path(out_path).unlink(missing_ok=True)


def _refuse_files_of_others(out_path: Path) -> None:
    """Features or .json files that this command did not write are never replaced."""
    sidecar = _sidecar(out_path)
    about = _read_json(sidecar)
    ours = isinstance(about, dict) and "clip_fingerprint" in about
    for path in (out_path, sidecar):
        if path.exists() and not ours:
            raise UserError(
                f"{path} was not made by this command; move it away or choose another folder"
            )


def _has_shape(out_path: Path, about: dict[str, Any]) -> bool:
    """Whether the file at `out_path` is whole: as many bytes as header and rows make."""
    return out_path.is_file() and out_path.stat().st_size == _total_bytes(about)


def _header(about: dict[str, Any]) -> bytes:
    """The .npy header of the finished file."""
    buffer = io.BytesIO()
    shape = (about["num_frames"], about["dim"])
    descr = np.lib.format.dtype_to_descr(np.dtype(about["dtype"]))
    np.lib.format.write_array_header_1_0(
        buffer, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return buffer.getvalue()


def _total_bytes(about: dict[str, Any]) -> int:
    row_bytes = about["dim"] * np.dtype(about["dtype"]).itemsize
    return len(_header(about)) + about["num_frames"] * row_bytes


@contextmanager
def _partial(
    out_path: Path, about: dict[str, Any], batch_size: int
) -> Iterator[tuple[IO[bytes], int]]:
    """Open `<out>.partial`, locked, cut back to whole batches; yields (file at its end, rows kept).

    Its description lies beside it; a partial file of another video, CLIP or rate starts again.
    Whole batches, because a frame's last bits may depend on the batch it is encoded in.
    """
    out_path.parent.mkdir(parents=True, exist_ok=True)
    path, about_path = _partial_paths(out_path)
    with open(path, "ab") as file:
        _lock(file, path)
        header, num_done = _header(about), 0
        row_bytes = about["dim"] * np.dtype(about["dtype"]).itemsize
        if _is_same(_read_json(about_path), about):
            num_done = _sound_rows(out_path, len(header), row_bytes, batch_size)
        else:
            file.truncate(0)
            write_text(_sums_path(out_path), "")
            write_json(about_path, about)
        if not num_done:
            file.truncate(0)
            _append(file, np.frombuffer(header, np.uint8))
        file.truncate(len(header) + num_done * row_bytes)
        yield file, num_done


def _lock(file: IO[bytes], path: Path) -> None:
    """Make this process the only writer of the partial file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have finished and renamed the file between opening and locking it.
        ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except BlockingIOError:
        ours = False
    if not ours:
        raise UserError(f"another process is writing {path}; run again when it is done")


def _append(file: IO[bytes], rows: np.ndarray) -> None:
    """Write rows through to the operating system, so that a killed run keeps them."""
    file.write(rows.tobytes())
    file.flush()


def _finish(file: IO[bytes], out_path: Path, about: dict[str, Any]) -> str:
    """Move the rows into place; the sidecar, which vouches for them, comes last. Their digest.

    What it replaces goes first, so that a kill between any two steps leaves nothing mismatched.
    """
    os.fsync(file.fileno())
    partial, about_path = _partial_paths(out_path)
    if partial.stat().st_size != _total_bytes(about):
        raise RuntimeError(f"{partial} has {partial.stat().st_size} of {_total_bytes(about)} bytes")
    digest = _digest_of(partial, about)
    write_json(about_path, about | {DIGEST: digest})
    out_path.unlink(missing_ok=True)
    _sidecar(out_path).unlink(missing_ok=True)
    partial.replace(out_path)
    about_path.replace(_sidecar(out_path))
    _sums_path(out_path).unlink(missing_ok=True)
    return digest


@contextmanager
def _disk_errors_explained(out_path: Path, about: dict[str, Any]) -> Iterator[None]:
    """Turn errors of writing into one line; the partial file stays for the next run."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            partial, _ = _partial_paths(out_path)
            written = partial.stat().st_size if partial.exists() else 0
            missing = _total_bytes(about) - written
            raise UserError(
                f"disk full: {out_path} needs {missing} more bytes; free them and run the same"
                " command again, it continues"
            ) from error
        raise UserError(f"cannot write {out_path}: {error.strerror or error}") from error
