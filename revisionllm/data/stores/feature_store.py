"""Frame features on disk behind one reader: HDF5 (MAD's own), LMDB of npz, .npy folders.

`open_features(path)` finds the format. A store holds one float array [T, D] per film; `read` gives
the asked rows as float32, without loading the film where the format allows (HDF5 and .npy; an LMDB
record must be decoded whole, see `lmdb_records.py`). Stores are opened on first use and pickle into
workers as their path. Writers: `feature_writers.py`. MAD: https://github.com/Soldelli/MAD
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.data.stores.lmdb_records import (
    DAMAGED,
    DEFAULT_CACHE_BYTES,
    MAX_INFLATION,
    SMALL_BYTES,
    LmdbRecords,
    pick_array,
)
from revisionllm.errors import UserError
from revisionllm.files import BadRecord, parse_json, probe_in_child, read_json
from revisionllm.options import RANGES

HDF5_SUFFIXES = (".h5", ".hdf5")
# Names of the frame array in records of the wild, in the order they are looked for.
FRAME_ARRAYS = ("features", "memory_global")
# Rows of HDF5 further apart than this are read as two slices instead of one.
MAX_GAP_ROWS = 64
ROWS_PER_READ = 4096  # when all rows are checked
RATES = RANGES["feature_fps"]

DIGEST = "sha256_of_rows"  # name of a description's digest, see `RowsDigest`
CONTENTS = "video_contents"  # of the film's own digest and time of change
# one header at a time: CPython 3.11's parser of literals may fail in several threads at once
# (https://github.com/python/cpython/issues/106905)
_HEADERS = threading.Lock()


class RowsDigest:
    """SHA-256 of feature rows as float32: the same in stores of every format and dtype."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, rows: np.ndarray) -> None:
        """Add the next rows [n, D]."""
        self._sha256.update(np.ascontiguousarray(rows, dtype="<f4").tobytes())

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        return self._sha256.hexdigest()


def rows_digest(rows: np.ndarray) -> str:
    """Digest of a film's rows [T, D]."""
    digest = RowsDigest()
    digest.update(rows)
    return digest.hexdigest()


Rows = slice | np.ndarray | list[int] | None


class FeatureStore(ABC):
    """One [T, D] float array per id (a film, or a query for MAD's text features)."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @abstractmethod
    def keys(self) -> list[str]:
        """All ids, sorted."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, int]:
        """(T, D) of one record, without reading it. Raises UserError like `read`."""

    @abstractmethod
    def _read_rows(self, key: str, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one record; `rows` is a slice or a checked int64 array."""

    def metadata(self, key: str) -> dict[str, Any]:
        """What the extraction recorded about this record (rate, CLIP, length); {} if nothing.

        Raises:
            UserError: it cannot be read, or its rate or length is none.
        """
        about = self._metadata(key)
        if not isinstance(about, dict):
            raise self._corrupt(key, "its description is no JSON object")
        fps, num_frames = about.get("feature_fps", 1.0), about.get("num_frames", 1)
        if type(fps) not in (int, float) or RATES.problem(fps):
            raise self._corrupt(key, f"its description says feature_fps {str(fps)[:20]}")
        if type(num_frames) is not int or num_frames < 0:
            raise self._corrupt(key, f"its description says num_frames {str(num_frames)[:20]}")
        return about

    def _metadata(self, key: str) -> Any:
        """The parsed description of one record."""
        return {}

    def bad_rows(self, key: str) -> str | None:
        """Read every row; says which cannot be used, None if all can. Raises UserError."""
        num_frames = self.num_frames(key)
        if num_frames == 0:
            return "no rows"
        stated = self.metadata(key).get("num_frames", num_frames)
        if stated != num_frames:
            return f"{num_frames} rows, its description says {stated}"
        digest = RowsDigest()
        for start in range(0, num_frames, ROWS_PER_READ):
            rows = np.asarray(self._read_rows(key, slice(start, start + ROWS_PER_READ)))
            digest.update(rows)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if bad.size:
                return f"row {start + bad[0]} is not finite"
        stated = self.metadata(key).get(DIGEST)
        if stated is not None and stated != digest.hexdigest():
            return "its rows are others than those that were written"
        return None

    def num_frames(self, key: str) -> int:
        """T of one record."""
        return self.shape(key)[0]

    def read(self, key: str, rows: Rows = None) -> np.ndarray:
        """Rows of one record as float32 [n, D].

        Args:
            key: id of the film.
            rows: None for all, a slice, or indices in 0..T-1 in any order, repeats allowed.

        Raises:
            UserError: the record is missing, corrupt or shorter than the indices ask; the message
                names the id and the store.
        """
        if rows is None:
            rows = slice(None)
        elif not isinstance(rows, slice):
            rows = np.asarray(rows, dtype=np.int64)
            self._check_rows(key, rows)
        found = np.asarray(self._read_rows(key, rows), dtype=np.float32)
        if not np.isfinite(found).all():
            raise UserError(
                f"features of {key!r} in {self.path} hold values that are not finite; `revisionllm"
                f" features verify {self.path}` says which, extract them again"
            )
        return found

    def _check_rows(self, key: str, rows: np.ndarray) -> None:
        num_frames = self.num_frames(key)
        if rows.size and not (rows.min() >= 0 and rows.max() < num_frames):
            raise UserError(
                f"features of {key!r} have {num_frames} rows, rows {rows.min()}..{rows.max()} were"
                f" asked: {self.path}; do annotation and features come from the same film?"
            )

    def _missing(self, key: str) -> UserError:
        return UserError(f"no features of {key!r} in {self.path}; extract or copy them there")

    def _corrupt(self, key: str, reason: object) -> UserError:
        return UserError(
            f"features of {key!r} in {self.path} are corrupt ({reason}); extract or copy them again"
        )


class NpyFolderStore(FeatureStore):
    """`<folder>/<id>.npy`, memory-mapped for each read, so nothing stays open or in memory."""

    def keys(self) -> list[str]:
        return sorted(path.stem for path in self.path.glob("*.npy"))

    def shape(self, key: str) -> tuple[int, int]:
        return self._map(key).shape

    def _metadata(self, key: str) -> Any:
        sidecar = self.path / f"{check_key(key)}.json"
        return read_json(sidecar) if sidecar.is_file() else {}

    def _read_rows(self, key: str, rows: slice | np.ndarray) -> np.ndarray:
        return np.array(self._map(key)[rows], dtype=np.float32)

    def _map(self, key: str) -> np.ndarray:
        path = self.path / f"{check_key(key)}.npy"
        try:
            with _HEADERS:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise self._missing(key) from error
        except DAMAGED as error:
            raise self._corrupt(key, error) from error
        if not isinstance(array, np.ndarray):
            raise self._corrupt(key, "an npz archive under the name of a .npy file")
        return _checked(self, key, array)


class Hdf5Store(FeatureStore):
    """MAD's format: one dataset [T, D] per film at the top of one HDF5 file."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self._file, self._pid = None, None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_pid": None}

    def keys(self) -> list[str]:
        try:
            return sorted(self._open())
        except (OSError, RuntimeError, ValueError, UnicodeError) as error:
            raise UserError(f"cannot read HDF5 file {self.path}: {error}") from error

    def shape(self, key: str) -> tuple[int, int]:
        return self._dataset(key).shape

    def _metadata(self, key: str) -> Any:
        try:
            text = self._dataset(key).attrs.get("metadata", "{}")
            return parse_json(text.encode() if isinstance(text, str) else bytes(text))
        except (BadRecord, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise self._corrupt(key, error) from error

    def _read_rows(self, key: str, rows: slice | np.ndarray) -> np.ndarray:
        dataset = self._dataset(key)
        try:
            return dataset[rows] if isinstance(rows, slice) else _gather(dataset, rows)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._corrupt(key, error) from error

    def _dataset(self, key: str):
        import h5py

        try:
            item = self._open().get(check_key(key))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise self._corrupt(key, error) from error
        if item is None:
            raise self._missing(key)
        if not isinstance(item, h5py.Dataset):
            raise self._corrupt(key, "a group, not a dataset")
        _checked(self, key, item)
        if item.nbytes > max(SMALL_BYTES, MAX_INFLATION * item.id.get_storage_size()):
            held = item.id.get_storage_size()
            raise self._corrupt(key, f"{held} bytes stand for {item.nbytes}")
        return item

    def _open(self):
        """The file, opened once per process: HDF5 handles do not survive a fork."""
        import h5py

        if self._pid != os.getpid():
            probe_in_child(self.path, _HDF5_PROBE)
            try:
                self._file, self._pid = h5py.File(self.path, "r", locking=False), os.getpid()
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(f"cannot read HDF5 file {self.path}: {error}") from error
        return self._file


# HDF5 loops for ever on some damaged headers and crashes on others
_HDF5_PROBE = """
import sys, h5py
with h5py.File(sys.argv[1], "r", locking=False) as file:
    keys = list(file)
    for key in keys[:: max(1, len(keys) // 2000)]:
        try:
            item = file[key]
            dict(item.attrs)
            item[0], item[len(item) - 1]
        except Exception:
            pass  # whoever reads it is told
"""


class LmdbStore(FeatureStore):
    """Frame features as LMDB of npz records, the format CONE and RGNet share."""

    def __init__(self, path: str | os.PathLike, *, cache_bytes: int = DEFAULT_CACHE_BYTES):
        super().__init__(path)
        self.records = LmdbRecords(path, cache_bytes=cache_bytes)
        self._about: dict[str, Any] | None = None

    def keys(self) -> list[str]:
        return self.records.keys()

    def shape(self, key: str) -> tuple[int, int]:
        shape = self.records.shape(key, FRAME_ARRAYS)
        if len(shape) != 2:
            raise self._corrupt(key, f"shape {shape}, not [T, D]")
        return shape

    def _metadata(self, key: str) -> Any:
        if self._about is None:  # one file for all records
            path = self.path / "metadata.json"
            self._about = read_json(path, kind=dict) if path.is_file() else {}
        return self._about.get(key, {})

    def _read_rows(self, key: str, rows: slice | np.ndarray) -> np.ndarray:
        array = pick_array(self.records.read(key), FRAME_ARRAYS)
        if array is None:
            raise self._corrupt(key, f"none of the arrays {', '.join(FRAME_ARRAYS)}")
        return np.array(_checked(self, key, array)[rows], dtype=np.float32)


def open_features(
    path: str | os.PathLike, *, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> FeatureStore:
    """Open a feature store, whichever format it has.

    Args:
        path: an HDF5 file, a folder with `data.mdb` (LMDB) or a folder of .npy files. Where nothing
            is at `path` itself, `path` + ".h5" is looked for: MAD's default path has no suffix.
        cache_bytes: bound on decoded LMDB records, per process.

    Raises:
        UserError: nothing there, or none of these formats.
    """
    path = Path(path)
    if not path.exists():
        path = next((p for s in HDF5_SUFFIXES if (p := Path(f"{path}{s}")).exists()), path)
    if not path.exists():
        raise UserError(f"feature store not found: {path}; data/README.md says what makes it")
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(8) != b"\x89HDF\r\n\x1a\n":
                raise UserError(f"not an HDF5 file: {path}; expected HDF5, LMDB or a .npy folder")
        return Hdf5Store(path)
    if (path / "data.mdb").is_file():
        return LmdbStore(path, cache_bytes=cache_bytes)
    if next(path.glob("*.npy"), None) is None:
        raise UserError(f"no features in folder {path}: neither data.mdb nor .npy files")
    return NpyFolderStore(path)


def check_key(key: str) -> str:
    """An id that can be a file name; raises UserError for one that would leave the store."""
    if not key or key in (".", "..") or "/" in key or "\0" in key or not _is_unicode(key):
        raise UserError(f"not an id of a film: {key!r}; it must be a plain name without '/'")
    return key


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _checked(store: FeatureStore, key: str, array):
    """The array or dataset itself if it is a float [T, D]."""
    if len(array.shape) != 2 or array.dtype.kind != "f":
        raise store._corrupt(key, f"{array.dtype} {array.shape}, not floats [T, D]")
    return array


def _gather(dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of an HDF5 dataset in any order: h5py is slow row by row, so read runs and pick."""
    if not rows.size:
        return dataset[:0]
    wanted, inverse = np.unique(rows, return_inverse=True)
    breaks = np.flatnonzero(np.diff(wanted) > MAX_GAP_ROWS) + 1
    if not breaks.size:  # one window: one read, one copy
        return dataset[wanted[0] : wanted[-1] + 1][rows - wanted[0]]
    runs = [dataset[run[0] : run[-1] + 1][run - run[0]] for run in np.split(wanted, breaks)]
    return np.concatenate(runs)[inverse.reshape(-1)]
