"""LMDB of `np.savez` records, the format CONE, RGNet and the released code share for features.

Key: id of a film or a query; value: the bytes of an npz with named arrays. A record must be
decoded whole, so decoded ones stay in a cache that is bounded in bytes.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.errors import UserError

DEFAULT_CACHE_BYTES = 512 * 2**20


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
        with self._begin() as transaction:
            return sorted(key.decode() for key in transaction.cursor().iternext(values=False))

    def shape(self, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
        """Shape of the first array of `names` in the record, from its header alone."""
        if key not in self._shapes:
            try:
                with zipfile.ZipFile(io.BytesIO(self._value(key))) as archive:
                    self._shapes[key] = _member_shape(archive, names)
            except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
                raise self.corrupt(key, error) from error
        return self._shapes[key]

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
            with np.load(io.BytesIO(self._value(key)), allow_pickle=False) as archive:
                # Old writers passed allow_pickle to np.savez, which stored it as an array.
                arrays = {name: archive[name] for name in archive.files if name != "allow_pickle"}
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
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
        except lmdb.BadValsizeError:  # an empty or overlong id cannot be in there
            value = None
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
        except lmdb.Error as error:
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
    return tokens.astype(np.float32), sentence.reshape(-1).astype(np.float32)


def pick_array(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    """The first of `names` that is there."""
    return next((arrays[name] for name in names if name in arrays), None)


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


def _open_or_share(path: Path):
    import lmdb

    key = (os.path.realpath(path), os.getpid())
    environment = _open_environments.get(key)
    if environment is None:
        for (name, pid), inherited in list(_open_environments.items()):
            if name == key[0] and pid != key[1]:  # a fork's copy: unusable here, and in the way
                inherited.close()
        environment = lmdb.open(
            str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir()
        )
        _open_environments[key] = environment
    return environment
