"""Write feature stores: .npy folders, HDF5 files, LMDB of npz records (`feature_store.py` reads).

Everything is written beside its place and renamed: a half-written store is never taken for whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.data.feature_store import HDF5_SUFFIXES, check_key
from revisionllm.errors import UserError
from revisionllm.files import replacing, write_json

FORMATS = ("npy", "hdf5", "lmdb")
FIRST_MAP_BYTES = 64 * 2**20

# id, features [T, D], what the extraction recorded about them
Record = tuple[str, np.ndarray, dict[str, Any]]


def guess_format(path: str | os.PathLike) -> str:
    """The format a path's name asks for: .h5/.hdf5, .lmdb, otherwise a folder of .npy files."""
    suffix = Path(path).suffix
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    return "lmdb" if suffix == ".lmdb" else "npy"


def write_features(path: str | os.PathLike, records: Iterable[Record], *, store_format: str) -> int:
    """Write frame features; returns the number of records.

    Args:
        path: the new store. It must not exist, except a folder for .npy files.
        records: id, [T, D] float array (written in its own dtype), metadata.
        store_format: one of `FORMATS`.

    Raises:
        UserError: the place is taken.
    """
    path = Path(path)
    if store_format == "npy":
        return _write_npy_folder(path, records)
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    if store_format == "hdf5":
        return _write_hdf5(path, records)
    metadata: dict[str, dict[str, Any]] = {}

    def arrays() -> Iterable[tuple[str, dict[str, np.ndarray]]]:
        for key, features, about in records:
            if about:
                metadata[key] = about
            yield key, {"features": features}

    return write_lmdb(path, arrays(), metadata=metadata)


def save_npy(path: Path, array: np.ndarray) -> None:
    """Write a .npy file in one step."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def pack_record(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an LMDB record: a compressed npz, as the shared format has it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def write_lmdb(
    path: str | os.PathLike,
    records: Iterable[tuple[str, dict[str, np.ndarray]]],
    *,
    metadata: dict[str, Any] | None = None,
) -> int:
    """Write an LMDB of npz records (frame features, or text features of queries).

    Args:
        path: the new folder; must not exist.
        records: id and named arrays.
        metadata: written to `metadata.json` beside the data after the last record, if not empty.

    Returns:
        The number of records.
    """
    import lmdb

    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what an earlier, killed run left
    count = 0
    with lmdb.open(str(temporary), map_size=FIRST_MAP_BYTES, sync=False) as environment:
        for key, arrays in records:
            _put(environment, check_key(key).encode(), pack_record(arrays))
            count += 1
        environment.sync(True)
    (temporary / "lock.mdb").unlink(missing_ok=True)
    if metadata:
        write_json(temporary / "metadata.json", metadata)
    os.replace(temporary, path)
    return count


def _put(environment, key: bytes, value: bytes) -> None:
    """Store one record; the map grows as needed, so no size has to be guessed."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"] + len(value))


def _write_npy_folder(folder: Path, records: Iterable[Record]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for key, features, about in records:
        path = folder / f"{check_key(key)}.npy"
        if path.exists():
            raise UserError(f"{path} exists already; choose another folder or move it away")
        if about:
            write_json(folder / f"{key}.json", about)
        save_npy(path, features)
        count += 1
    return count


def _write_hdf5(path: Path, records: Iterable[Record]) -> int:
    import h5py

    count = 0
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for key, features, about in records:
            dataset = file.create_dataset(check_key(key), data=features)
            if about:
                dataset.attrs["metadata"] = json.dumps(about)
            count += 1
    return count
