"""Write feature stores: .npy folders, HDF5 files, LMDB of npz records (`feature_store.py` reads).

Everything is written beside its place and renamed: a half-written store is never taken for whole.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.data.stores.feature_store import HDF5_SUFFIXES, check_key
from revisionllm.errors import UserError
from revisionllm.files import (
    MADE_BY,
    locked,
    read_json,
    remove_stale,
    replacing,
    temporary_path,
    write_json,
)

FORMATS = ("npy", "hdf5", "lmdb")
FIRST_MAP_BYTES = 64 * 2**20
SPARE_BYTES = 2**20  # for what HDF5 writes beside the data
UNFINISHED_NAME = ".converting.json"

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
        UserError: the place is taken, cannot be written, or another process writes it.
    """
    path = Path(path).absolute()  # "." has no name
    with locked(path.with_name(f".{path.name}.lock"), f"writes {path}"):
        if store_format == "npy":
            return _write_npy_folder(path, records)
        _refuse_taken(path)
        if store_format == "hdf5":
            return _write_hdf5(path, records)
        return _write_features_lmdb(path, records)


def _refuse_taken(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or move it away")


def _write_features_lmdb(path: Path, records: Iterable[Record]) -> int:
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
    _refuse_taken(path)
    temporary = temporary_path(path)
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        with lmdb.open(str(temporary), map_size=FIRST_MAP_BYTES, sync=False) as environment:
            for key, arrays in records:
                _put(environment, check_key(key).encode(), pack_record(arrays))
                count += 1
            environment.sync(True)
        (temporary / "lock.mdb").unlink(missing_ok=True)
        if metadata:
            write_json(temporary / "metadata.json", metadata)
        _refuse_taken(path)
        os.replace(temporary, path)
    except (lmdb.Error, OSError) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else error
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count


def _put(environment, key: bytes, value: bytes) -> None:
    """Store one record; the map grows as needed, so no size has to be guessed."""
    import lmdb

    while True:
        try:
            # a full disk would end the process while the map is written, so ask for room before
            folder = Path(environment.path())
            with environment.begin(write=True) as transaction:
                if shutil.disk_usage(folder).free < 2 * len(value) + 2**16:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"] + len(value))


def unfinished(folder: str | os.PathLike, made_with: dict[str, Any]) -> set[str]:
    """Ids that a killed `write_features` of the same things has already put into a .npy folder.

    Call it before writing and leave these records out; `finished` when all are there.

    Args:
        made_with: what is written, from where and how; another one's files are never taken over.

    Raises:
        UserError: the folder holds features of something else.
    """
    folder = Path(folder)
    note = folder / UNFINISHED_NAME
    there = {path.stem for path in folder.glob("*.npy")} if folder.is_dir() else set()
    if note.is_file():
        if read_json(note, kind=dict) != made_with:
            raise UserError(
                f"{folder} holds the beginning of another conversion; choose another folder or move"
                " it away"
            )
        return there
    if not there:
        write_json(note, made_with)
    return set()


def finished(folder: str | os.PathLike) -> None:
    """All records of `unfinished` are there."""
    (Path(folder) / UNFINISHED_NAME).unlink(missing_ok=True)


def _write_npy_folder(folder: Path, records: Iterable[Record]) -> int:
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
    """One dataset a record. HDF5 crashes on a full disk, so room is asked for before each one."""
    import h5py

    count = 0
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["made_by"] = MADE_BY
        for key, features, about in records:
            if shutil.disk_usage(path.parent).free < 2 * features.nbytes + SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            dataset = file.create_dataset(check_key(key), data=features)
            if about:
                dataset.attrs["metadata"] = json.dumps(about)
            file.flush()
            count += 1
    return count
