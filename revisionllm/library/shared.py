"""A library's encoder level as LanceDB tables, in a folder or an object store (s3://, gs://, az://).

    revisionllm library share library s3://films/library
    revisionllm find s3://films/library "a dog jumps over a fence"

For libraries that are too large to read whole for a sentence, or that lie elsewhere: the table
proposes films by their nearest pieces, and those are searched as always. LanceDB (optional: `pip
install lancedb`; https://lancedb.github.io/lancedb/) takes an object store's keys from the
environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.errors import UserError, check_installed
from revisionllm.files import locked
from revisionllm.grounding.frame_spans import Pieces
from revisionllm.grounding.scores import unit_rows
from revisionllm.library.frames import FramedFilm
from revisionllm.library.store import Library, LibraryFilm, is_library

ABOUT, FILMS, PIECES = "about", "films", "pieces"
FORMAT = "revisionllm-shared-library"
NEAREST_PIECES, MOST_FILMS = 2000, 100  # per sentence
STORES = ("s3://", "gs://", "az://")
HELD_FILMS = 256  # whose pieces are kept in memory
INDEX_FROM = 1_000_000  # pieces from which on they are searched through an index
READ_AGAIN = 20  # times as many candidates of the index are compared exactly


def is_shared(place: str | os.PathLike) -> bool:
    """Whether a place is, or by its look can only be, a shared library."""
    return is_url(place) or (Path(place) / f"{PIECES}.lance").is_dir()


def is_url(place: str | os.PathLike) -> bool:
    """Whether a place is in an object store."""
    return os.fspath(place).startswith(STORES)


class SharedLibrary:
    """The shared form of a library, opened; it is read film by film, where a search looks.

    Args:
        place: a folder or an object store's URL.

    Raises:
        UserError: there is none, or LanceDB is missing.
    """

    folder = None  # nothing of it lies on this machine

    def __init__(self, place: str | os.PathLike) -> None:
        self.place = os.fspath(place)
        self._base = _connect(self.place)
        about = _about(self._base, self.place)
        if about is None:
            raise UserError(
                f"{self.place} is no shared library; `revisionllm library share LIBRARY"
                f" {self.place}` makes one"
            )
        self.encoder, self.fingerprint = str(about["encoder"]), str(about["fingerprint"])
        self.feature_fps = float(about["feature_fps"])
        self._pieces = self._base.open_table(PIECES)
        self.framed = lru_cache(maxsize=HELD_FILMS)(self._framed)

    def films(self) -> list[LibraryFilm]:
        """All films, by path."""
        rows = self._base.open_table(FILMS).to_arrow().to_pylist()
        films = [LibraryFilm(r["film"], Path(r["path"]), r["rows"], r["duration_s"]) for r in rows]
        return sorted(films, key=lambda film: (str(film.path), film.film_id))

    def framed_films(self, films: Sequence[LibraryFilm]) -> FilmsOnDemand:
        """`framed` of many, each when it is looked at."""
        return FilmsOnDemand(self, films)

    def _framed(self, film: LibraryFilm) -> FramedFilm:
        """What a search sees of a film.

        Raises:
            UserError: its pieces are not whole.
        """
        found = self._pieces.search().where(f"film = '{film.film_id}'").limit(film.rows + 1)
        table = found.select(["piece", "end", "vector"]).to_arrow().sort_by("piece")
        ends = table["end"].to_numpy()
        if not len(ends) or int(ends[-1]) != film.rows:
            raise UserError(f"{self.place}: film {film.path} is not whole; share the library again")
        means = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(ends), -1)
        return FramedFilm(
            film.path.stem,
            Pieces(np.ascontiguousarray(means), np.concatenate([[0], ends]).astype(np.int64)),
            self.feature_fps,
            film.duration_s,
            video_path=film.path,
        )

    def promising(self, features: np.ndarray) -> set[str]:
        """Films that hold the nearest pieces of any of the sentences [Q, D], by their ids."""
        chosen: set[str] = set()
        for sentence in unit_rows(features).astype(np.float32):
            search = self._pieces.search(sentence).distance_type("dot").limit(NEAREST_PIECES)
            search = search.refine_factor(READ_AGAIN).select(["film", "_distance"])
            films = dict.fromkeys(search.to_arrow()["film"].to_pylist())
            chosen |= set(list(films)[:MOST_FILMS])
        return chosen


def open_library(place: str | os.PathLike) -> Library | SharedLibrary | None:
    """A library or the shared form of one; None if a place is neither.

    Raises:
        UserError: it is damaged, or cannot be reached.
    """
    if is_library(place):
        return Library(place)
    return SharedLibrary(place) if is_shared(place) else None


def share(library: Library, place: str) -> tuple[int, int]:
    """Bring a shared library up to its library: films that are missing are added, others removed.

    A film is seen once all of it is there; a killed call is gone on with by the next.

    Returns:
        Films added, and removed.

    Raises:
        UserError: something else is there, or it was made by another encoder.
    """
    from tqdm import tqdm

    if not is_url(place) and os.path.isdir(place) and os.listdir(place) and not is_shared(place):
        raise UserError(f"{place} holds something else; give another folder")
    with locked(library.folder / "share.lock", f"shares {library.folder}"):
        base, films = _connect(place), library.films()
        if not films:
            raise UserError(f"{library.folder} holds no film yet")
        told = {"encoder": library.encoder, "fingerprint": library.fingerprint}
        told |= {"feature_fps": library.feature_fps, "format": FORMAT}
        dim = library.framed(films[0]).pieces.means.shape[1]
        about = _about(base, place)
        if about is not None and about | {"encoder": library.encoder} != told:
            raise UserError(f"{place} was made by encoder {about['fingerprint']}; give another")
        pieces, known = _tables(base, dim)
        there = set(known.to_arrow()["film"].to_pylist())
        wanted = {film.film_id: film for film in films}
        for film_id in sorted(there - wanted.keys()):
            known.delete(f"film = '{film_id}'")
            pieces.delete(f"film = '{film_id}'")
        new = [film for film in films if film.film_id not in there]
        for film in tqdm(new, unit="film", desc="share", disable=not new):
            pieces.delete(f"film = '{film.film_id}'")  # of a killed call
            pieces.add(_rows(library, film, pieces.schema))
            row = {"film": film.film_id, "path": str(film.path), "rows": film.rows}
            known.add([row | {"duration_s": film.duration_s}])
        if about is None:
            base.create_table(ABOUT, [{"about": json.dumps(told)}])
        for table in (pieces, known):
            table.optimize(cleanup_older_than=timedelta(days=1))
        if pieces.count_rows() >= INDEX_FROM and not pieces.list_indices():
            pieces.create_index(metric="dot")
    return len(new), len(there - wanted.keys())


def _connect(place: str) -> Any:
    check_installed("a shared library needs LanceDB", "lancedb")
    import lancedb

    try:
        return lancedb.connect(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} cannot be reached: {_line(error)}") from error


def _about(base: Any, place: str) -> dict[str, Any] | None:
    """What a shared library says of itself; None: there is none."""
    try:
        names = set(base.table_names(limit=100))
        if not {ABOUT, FILMS, PIECES} <= names:
            return None
        (row,) = base.open_table(ABOUT).to_arrow().to_pylist()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} cannot be read: {_line(error)}") from error
    about = json.loads(row["about"])
    if about.get("format") != FORMAT:
        raise UserError(f"{place} holds tables of something else")
    return about


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _tables(base: Any, dim: int) -> tuple[Any, Any]:
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dim)
    pieces = [("film", pa.string()), ("piece", pa.int32()), ("end", pa.int64()), ("vector", vector)]
    films = [("film", pa.string()), ("path", pa.string()), ("rows", pa.int64())]
    return tuple(
        base.create_table(name, schema=pa.schema(schema), exist_ok=True)
        for name, schema in ((PIECES, pieces), (FILMS, [*films, ("duration_s", pa.float64())]))
    )


def _rows(library: Library, film: LibraryFilm, schema: Any) -> Any:
    import pyarrow as pa

    pieces = library.framed(film).pieces
    means = np.ascontiguousarray(pieces.means, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(means.reshape(-1)), means.shape[1])
    columns = {
        "film": [film.film_id] * len(means),
        "piece": np.arange(len(means), dtype=np.int32),
        "end": np.asarray(pieces.ends[1:], dtype=np.int64),
        "vector": vectors,
    }
    return pa.table(columns, schema=schema)


class FilmsOnDemand(Sequence):
    """The films of a shared library, each read when it is looked at."""

    def __init__(self, library: SharedLibrary, films: Sequence[LibraryFilm]) -> None:
        self._library, self._films = library, films

    def __len__(self) -> int:
        return len(self._films)

    def __getitem__(self, at: int) -> FramedFilm:
        return self._library.framed(self._films[at])
