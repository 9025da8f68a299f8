"""A library: one folder with the frames' features of many films, which can be copied as a whole.

    <library>/library.json          encoder, its fingerprint, rate, `dtype`, `skip_same`
    <library>/films/<id>.npy        features [T, D] float16, with their description in <id>.json
    <library>/films/<id>.pieces.safetensors  what a search reads (`grounding.frame_spans.Pieces`)
    <library>/films/<id>.film.json  where the film lies; written last
    <library>/words.sqlite          what is said in the films (`words.py`), where something is
    <library>/screen.sqlite         what is written on their screens, where that was read
    <library>/read/<encoder>-<rate>/<id>.rows  what levels above the encoder have read of it so far

A film's id is a digest of its bytes: a film that was renamed or moved is the same film. Adding or
removing one touches no other's files, so several processes may index at once, and what a killed one
had begun is continued (`data.feature_extraction.frames`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import read_json, sha256_of, write_json
from revisionllm.grounding.frame_spans import Pieces, pieces_of
from revisionllm.library.frames import FramedFilm
from revisionllm.library.words import LEVELS, WordsIndex
from revisionllm.records.films import Film

if TYPE_CHECKING:
    from revisionllm.model.clip import ClipFeatures

ABOUT, FILMS, READ, PIECES = "library.json", "films", "read", ".pieces.safetensors"
FORMAT = "revisionllm-library"
ID_LENGTH = 16


@dataclass(frozen=True)
class LibraryFilm:
    """A film of a library.

    Attributes:
        film_id: digest of its bytes.
        path: where it was indexed; it may have gone since.
        rows: number of its feature rows.
        duration_s: its length.
    """

    film_id: str
    path: Path
    rows: int
    duration_s: float


class Library:
    """An opened library; see the module.

    Attributes:
        folder: where it is.
        encoder: what `model.clip.load_clip` is given.
        fingerprint: of that encoder.
        feature_fps: feature rows per second.
        dtype: arithmetic of the encoder.
        skip_same: frames like the one before are not encoded.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Open one.

        Raises:
            UserError: there is none, or it is damaged.
        """
        self.folder = Path(folder)
        path = self.folder / ABOUT
        if not path.is_file():
            raise UserError(f"{folder} is no library; `revisionllm index FILMS --library {folder}`")
        about = read_json(path, kind=dict)
        if about.get("format") != FORMAT:
            raise UserError(f"{path} is not of a library")
        try:
            self.encoder = str(about["encoder"])
            self.fingerprint = str(about["fingerprint"])
            self.feature_fps = float(about["feature_fps"])
            self.dtype = str(about.get("dtype", "float32"))
            self.skip_same = about.get("skip_same", False) is True
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: no {error}; index the films again") from error

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        encoder: str,
        clip: ClipFeatures,
        feature_fps: float,
        *,
        skip_same: bool = False,
    ) -> Library:
        """Open a library, or make a new one in a folder that is empty or not there.

        Args:
            skip_same: of a new one; one that is there keeps to its own way.

        Raises:
            UserError: something else is in the folder, or the library has another encoder or rate.
        """
        from revisionllm.data.feature_extraction.frames import arithmetic_of

        folder = Path(folder)
        if not is_library(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"{folder} holds something else; give another --library")
            place = os.path.abspath(encoder) if Path(encoder).exists() else encoder
            about = {"format": FORMAT, "encoder": place, "fingerprint": clip.fingerprint()}
            (folder / FILMS).mkdir(parents=True, exist_ok=True)
            about |= {"feature_fps": feature_fps, "dtype": arithmetic_of(clip)}
            about |= {"skip_same": True} if skip_same else {}
            write_json(folder / ABOUT, about)
        found = cls(folder)
        if (found.fingerprint, found.feature_fps) != (clip.fingerprint(), feature_fps):
            raise UserError(
                f"{folder} was made by {found.encoder} at {found.feature_fps:g} frames per second,"
                f" not by {encoder} at {feature_fps:g}; give its own, or another --library"
            )
        if found.dtype != arithmetic_of(clip):
            raise UserError(f"{folder} was made in {found.dtype}; give another --library")
        if skip_same and not found.skip_same:
            raise UserError(f"{folder} has every frame encoded; give another --library")
        return found

    def films(self) -> list[LibraryFilm]:
        """All films that are indexed whole, by path."""
        return sorted(self._films(), key=lambda film: (str(film.path), film.film_id))

    def _films(self) -> Iterator[LibraryFilm]:
        for path in sorted((self.folder / FILMS).glob("*.film.json")):
            film_id = path.name.removesuffix(".film.json")
            about, place = self._rows_of(film_id), read_json(path, kind=dict).get("path")
            if about is not None and isinstance(place, str):
                yield LibraryFilm(
                    film_id,
                    Path(os.path.normpath(self.folder.resolve() / place)),
                    int(about["num_frames"]),
                    float(about["duration_s"]),
                )

    def _rows_of(self, film_id: str) -> dict[str, Any] | None:
        suffixes = (".json", ".npy", PIECES)
        is_whole = all(self._file(film_id, suffix).is_file() for suffix in suffixes)
        return read_json(self._file(film_id, ".json"), kind=dict) if is_whole else None

    def framed(self, film: LibraryFilm) -> FramedFilm:
        """What a search sees of a film, mapped from disk: it takes no memory and no open file.

        Raises:
            UserError: the file is damaged.
        """
        from revisionllm.model.tensors import read_tensors

        path = self._file(film.film_id, PIECES)
        tensors = read_tensors(path)
        if tensors.keys() != {"means", "ends"} or int(tensors["ends"][-1]) != film.rows:
            raise UserError(f"{path} is damaged; remove the film and index it again")
        pieces = Pieces(tensors["means"].numpy(), tensors["ends"].numpy())
        return FramedFilm(
            film.path.stem, pieces, self.feature_fps, film.duration_s, video_path=film.path
        )

    def framed_films(self, films: Sequence[LibraryFilm]) -> list[FramedFilm]:
        """`framed` of many."""
        return [self.framed(film) for film in films]

    def promising(self, features: np.ndarray) -> set[str] | None:
        """Ids of films that sentences [Q, D] may be about; None: all are searched."""
        return None

    def film(self, film: LibraryFilm, clip: ClipFeatures, feature_fps: float) -> Film:
        """A film for levels above the encoder; its features are read where they look, and kept.

        Args:
            clip, feature_fps: of the runs that look.

        Raises:
            UserError: the film has gone, or is not the one that was indexed.
        """
        from revisionllm.data.feature_extraction.on_demand import RowsOnDemand

        if not self._is_untouched(film) and (
            not film.path.is_file() or sha256_of(film.path)[:ID_LENGTH] != film.film_id
        ):
            raise UserError(f"{film.path} has gone or changed since; index it again")
        folder = self.folder / READ / f"{clip.fingerprint()}-{feature_fps:g}fps"
        rows = RowsOnDemand(film.path, clip, feature_fps, folder / f"{film.film_id}.rows")
        coarse = None
        if clip.fingerprint() == self.fingerprint:
            indexed = self._file(film.film_id, ".npy")
            coarse = (np.load(indexed, mmap_mode="r", allow_pickle=False), self.feature_fps)
        return Film(
            film.path.stem,
            rows,
            feature_fps,
            film.duration_s,
            key=f"{film.film_id} {folder.name}",
            video_path=film.path,
            coarse=coarse,
        )

    def fits(self, film: LibraryFilm) -> bool:
        """Whether a film's pieces are those of its rows.

        Raises:
            UserError: a file is damaged.
        """
        kept, new = self.framed(film).pieces, self._new_pieces(film.film_id)
        return np.array_equal(kept.ends, new.ends) and np.allclose(kept.means, new.means, atol=1e-5)

    def _new_pieces(self, film_id: str) -> Pieces:
        return pieces_of(np.load(self._file(film_id, ".npy"), mmap_mode="r", allow_pickle=False))

    def write_pieces(self, film_id: str) -> None:
        """Cut a film's rows, which are there, into the pieces that a search reads."""
        import torch

        from revisionllm.model.tensors import write_tensors

        pieces = self._new_pieces(film_id)
        ends = torch.from_numpy(pieces.ends.astype(np.int64))
        tensors = {"means": torch.from_numpy(pieces.means), "ends": ends}
        write_tensors(tensors, self._file(film_id, PIECES))

    def _file(self, film_id: str, suffix: str) -> Path:
        return self.folder / FILMS / f"{film_id}{suffix}"

    def untouched(self) -> set[str]:
        """Absolute paths of the films that are as they were when they were indexed."""
        return {str(film.path) for film in self._films() if self._is_untouched(film)}

    def _is_untouched(self, film: LibraryFilm) -> bool:
        if not film.path.is_file():
            return False
        told, stat = read_json(self._file(film.film_id, ".film.json"), kind=dict), film.path.stat()
        return (told.get("bytes"), told.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)

    def add(self, video: Path, clip: ClipFeatures, *, progress: bool = True) -> tuple[str, bool]:
        """Index a film, or go on where a killed run was.

        Returns:
            The film's id, and whether its features were there already.

        Raises:
            UserError: not a readable video, the disk is full, or another process is at this film.
        """
        from revisionllm.data.feature_extraction.frames import extract_features
        from revisionllm.data.video import probe

        probe(video)
        film_id = sha256_of(video)[:ID_LENGTH]
        is_there = self._rows_of(film_id) is not None  # under another name, perhaps
        if not is_there:
            extract_features(
                video,
                clip,
                feature_fps=self.feature_fps,
                out_path=self._file(film_id, ".npy"),
                skip_same=self.skip_same,
                progress=progress,
            )
            self.write_pieces(film_id)
        self.note_place(film_id, video)
        return film_id, is_there

    def note_place(self, film_id: str, video: Path) -> None:
        """Write down where a film lies."""
        stat, place = video.stat(), os.path.abspath(video)
        beside = os.path.relpath(place, self.folder.resolve())
        # what lies with the library moves with it
        kept = place if beside.startswith(os.path.join("..", "..", "..")) else beside
        note = {"path": kept, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        write_json(self._file(film_id, ".film.json"), note)

    def has_size_of(self, film: LibraryFilm, video: Path) -> bool:
        """Whether a file has as many bytes as the film when it was indexed."""
        told = read_json(self._file(film.film_id, ".film.json"), kind=dict)
        return told.get("bytes") == video.stat().st_size

    def remove(self, film: LibraryFilm) -> None:
        """Take a film out with its features; the film itself stays."""
        for suffix in (".film.json", ".json", PIECES, ".npy"):
            self._file(film.film_id, suffix).unlink(missing_ok=True)
        for path in (self.folder / READ).glob(f"*/{film.film_id}.rows*"):
            path.unlink(missing_ok=True)
        for name in LEVELS:
            if (self.folder / name).is_file():
                WordsIndex(self.folder / name).remove(film.film_id)


def is_library(folder: str | os.PathLike) -> bool:
    """Whether a folder is a library."""
    return (Path(folder) / ABOUT).is_file()
