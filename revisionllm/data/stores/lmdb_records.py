"""LMDB of `np.savez` records, the format CONE, RGNet and the released code share for features.

Key: id of a film or a query; value: the bytes of an npz with named arrays. A record must be
decoded whole, so decoded ones stay in a cache that is bounded in bytes.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import tokenize
import weakref
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import probe_in_child

DEFAULT_CACHE_BYTES = 512 * 2**20
# What is larger than SMALL_BYTES and stored in less than 1 / MAX_INFLATION of that is no features.
SMALL_BYTES, MAX_INFLATION = 64 * 2**20, 200


class LmdbRecords:
    """LMDB of `np.savez` records: key -> named arrays, with a cache bounded in bytes.

    Args:
        path: folder with `data.mdb`.
        cache_bytes: decoded bytes kept per process; a larger record is never kept.
    """

    def __init__(self, path: str | os.PathLike, *, cache_bytes: int = DEFAULT_CACHE_BYTES):
        self.path = Path(path)
        self.cache_bytes = cache_bytes
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._environment, self._pid, self._lock = None, None, threading.Lock()
        self._cache: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self._cached_bytes = 0
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded arrays held now; never above `cache_bytes`."""
        return self._cached_bytes

    def keys(self) -> list[str]:
        """All record ids, sorted."""
        import lmdb

        with self._begin() as transaction:
            try:
                return sorted(key.decode() for key in transaction.cursor().iternext(values=False))
            except (UnicodeDecodeError, lmdb.Error) as error:
                raise UserError(f"cannot read LMDB {self.path}: {error}") from error

    def shape(self, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
        """Shape of the first array of `names` in the record, from its header alone."""
        if key not in self._shapes:
            try:
                with zipfile.ZipFile(io.BytesIO(self._value(key))) as archive:
                    self._shapes[key] = _member_shape(archive, names)
            except DAMAGED as error:
                raise self.corrupt(key, error) from error
        return self._shapes[key]

    def holds(self, key: str, name: str) -> bool:
        """Whether a record has an array of this name. Raises UserError as `read` does."""
        try:
            with zipfile.ZipFile(io.BytesIO(self._value(key))) as archive:
                return f"{name}.npy" in archive.namelist()
        except DAMAGED as error:
            raise self.corrupt(key, error) from error

    def read(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of one record; do not write into them.

        Raises:
            UserError: missing or corrupt; names the key and the store.
        """
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            value = self._value(key)
            _refuse_bomb(value)
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                # Old writers passed allow_pickle to np.savez, which stored it as an array.
                arrays = {name: archive[name] for name in archive.files if name != "allow_pickle"}
        except DAMAGED as error:
            raise self.corrupt(key, error) from error
        self._keep(key, arrays)
        return arrays

    def _keep(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        num_bytes = sum(array.nbytes for array in arrays.values())
        if num_bytes > self.cache_bytes:
            return
        with self._lock:
            if key not in self._cache:
                self._cache[key] = arrays
                self._cached_bytes += num_bytes
            while self._cached_bytes > self.cache_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= sum(array.nbytes for array in dropped.values())

    def _value(self, key: str) -> bytes:
        import lmdb

        try:
            with self._begin() as transaction:
                value = transaction.get(key.encode())
        except (lmdb.BadValsizeError, UnicodeEncodeError):  # such an id cannot be in there
            value = None
        except lmdb.Error as error:
            raise UserError(f"cannot read LMDB {self.path}: {error}") from error
        if value is None:
            raise UserError(f"no record {key!r} in {self.path}; extract or copy it there")
        return value

    def _begin(self):
        """A read transaction on this process's environment."""
        import lmdb

        try:
            if self._pid != os.getpid():
                # environment first: another thread that sees this process's id may use it at once
                self._environment = _environment(self.path)
                self._pid = os.getpid()
            return self._environment.begin()
        except (lmdb.Error, OSError) as error:
            raise UserError(f"cannot read LMDB {self.path}: {error}") from error

    def corrupt(self, key: str, reason: object) -> UserError:
        """The error for a record that cannot be used; to be raised."""
        return UserError(
            f"record {key!r} in {self.path} is corrupt ({reason}); extract or copy it again"
        )


def read_query(records: LmdbRecords, query_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Text features of a query: (token features [L, D], sentence feature [D]), both float32.

    Raises:
        UserError: missing or corrupt record.
    """
    arrays = records.read(query_id)
    tokens = arrays.get("token_features")
    sentence = pick_array(arrays, ("cls_features", "eot_features"))
    if tokens is None or sentence is None:
        raise UserError(
            f"record {query_id!r} in {records.path} holds {sorted(arrays)}, not token_features and"
            " cls_features; extract the text features again"
        )
    if tokens.ndim != 2 or tokens.dtype.kind != "f" or sentence.dtype.kind != "f":
        shape = f"{tokens.dtype} {tokens.shape}"
        raise records.corrupt(query_id, f"token_features {shape}, not floats [L, D]")
    found = tokens.astype(np.float32), sentence.reshape(-1).astype(np.float32)
    if not all(np.isfinite(array).all() for array in found):
        raise records.corrupt(query_id, "it is not finite")
    return found


def pick_array(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    """The first of `names` that is there."""
    return next((arrays[name] for name in names if name in arrays), None)


# What zipfile, zlib and NumPy raise on damaged records (MemoryError: a header states terabytes)
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, TypeError),
    *(NotImplementedError, RuntimeError, OverflowError, MemoryError, SyntaxError, struct.error),
    tokenize.TokenError,
)


def _refuse_bomb(value: bytes) -> None:
    """Raises ValueError for an npz that would grow to far more than it is."""
    with zipfile.ZipFile(io.BytesIO(value)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(SMALL_BYTES, MAX_INFLATION * len(value)):
        raise ValueError(f"{len(value)} bytes stand for {size}")


def _member_shape(archive: zipfile.ZipFile, names: tuple[str, ...]) -> tuple[int, ...]:
    """Shape from the header of the first of `names` in an npz; its data stay compressed."""
    present = [name for name in names if f"{name}.npy" in archive.namelist()]
    if not present:
        raise ValueError(f"it holds none of the arrays {', '.join(names)}")
    with archive.open(f"{present[0]}.npy") as member:
        if np.lib.format.read_magic(member) == (1, 0):
            return np.lib.format.read_array_header_1_0(member)[0]
        return np.lib.format.read_array_header_2_0(member)[0]


# LMDB refuses to open a path twice in one process; stores of the same path share the environment.
_open_environments: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_opening = threading.Lock()  # two threads must not both find the path unopened
os.register_at_fork(after_in_child=lambda: globals().update(_opening=threading.Lock()))


def _environment(path: Path):
    """The environment of a path in this process, opened once for all stores and threads."""
    with _opening:
        return _open_or_share(path)


# LMDB follows page numbers of a damaged file out of the mapped memory
_LMDB_PROBE = """
import os, sys, lmdb
path = sys.argv[1]
folder = os.path.basename(path) == "data.mdb"
with lmdb.open(os.path.dirname(path) if folder else path, readonly=True, lock=False, subdir=folder,
               readahead=False) as environment, environment.begin() as transaction:
    keys = list(transaction.cursor().iternext(values=False))
    for key in keys[:: max(1, len(keys) // 2000)]:
        bytes(transaction.get(key) or b"")
"""


def _check_length(path: Path) -> None:
    """Refuse a file that is shorter than its own header says: reading it would end the process.

    The header: http://www.lmdb.tech/doc/ (MDB_meta in mdb.c), two copies, the newer one counts.

    Raises:
        UserError: cut, or no LMDB.
    """
    file = path / "data.mdb" if path.is_dir() else path
    size = os.path.getsize(file)
    with open(file, "rb") as data:
        first = _read_header(data.read(160))
        if first is None:
            raise UserError(f"{file} is no LMDB file; extract or copy it again")
        data.seek(first[1])
        second = _read_header(data.read(160)) or first
    _, page_bytes, last_page = max(first, second)
    if size < (last_page + 1) * page_bytes:
        raise UserError(
            f"{file} has {size} of {(last_page + 1) * page_bytes} bytes: it was cut; copy it again"
        )


def _read_header(head: bytes) -> tuple[int, int, int] | None:
    """(transaction, bytes of a page, last page); None if it is no header."""
    if len(head) < 152 or int.from_bytes(head[16:20], sys.byteorder) != 0xBEEFC0DE:
        return None
    page_bytes = int.from_bytes(head[40:44], sys.byteorder)
    last_page, transaction = (int.from_bytes(head[i : i + 8], sys.byteorder) for i in (136, 144))
    return (transaction, page_bytes, last_page) if 256 <= page_bytes <= 2**16 else None


def _open_or_share(path: Path):
    import lmdb

    key = (os.path.realpath(path), os.getpid())
    environment = _open_environments.get(key)
    if environment is None:
        _check_length(path)
        probe_in_child(path / "data.mdb" if path.is_dir() else path, _LMDB_PROBE)
        for (name, pid), inherited in list(_open_environments.items()):
            if name == key[0] and pid != key[1]:  # a fork's copy: unusable here, and in the way
                inherited.close()
        environment = lmdb.open(
            str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir()
        )
        _open_environments[key] = environment
    return environment
