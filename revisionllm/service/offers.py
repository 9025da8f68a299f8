"""What a library offers to other programs; `serve.py` and `mcp_tools.py` hand it on.

Films are named by their ids: nothing that a caller says becomes a path.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError

if TYPE_CHECKING:
    from revisionllm.library.find import LibrarySearch
    from revisionllm.library.store import LibraryFilm

MOST_SENTENCES, MOST_MOMENTS, MOST_FRAMES = 20, 50, 16
LONGEST_CLIP_S = 600.0
FRAME_SIDE = 640  # pixels, of a frame's longer side


class NoSuchFilm(UserError):
    """The library has no film of that id."""


class Offers:
    """A library's films, what is found in them, their frames and clips. Safe for many threads.

    Args:
        searching: the opened library.
    """

    def __init__(self, searching: LibrarySearch) -> None:
        self.searching = searching
        self._number_of = {film.film_id: at for at, film in enumerate(searching.known)}
        self._id_of = {film.path: film.film_id for film in searching.known}
        self._searching = threading.Lock()  # one search at a time: they share models
        self._reading = threading.Lock()

    def films(self) -> list[dict[str, Any]]:
        """All films: `film_id`, `film` (its path), `duration_s`, and whether it is still there."""
        return [
            {
                "film_id": film.film_id,
                "film": str(film.path),
                "duration_s": film.duration_s,
                "is_there": film.path.is_file(),
            }
            for film in self.searching.known
        ]

    def find(
        self,
        sentences: Sequence[str],
        *,
        films: Sequence[str] | None = None,
        top_k: int = 5,
        threshold: float = 0.5,
    ) -> list[list[dict[str, Any]]]:
        """Per sentence its films, the best first, each as a line of `find --json` (docs/json.md)
        with the film's id.

        Args:
            films: ids; None: all.

        Raises:
            UserError: a sentence is empty or too long, there are too many, or a film is not known.
        """
        from revisionllm.grounder import check_sentences

        check_sentences(sentences)
        if len(sentences) > MOST_SENTENCES or not 0 < top_k <= MOST_MOMENTS:
            raise UserError(f"at most {MOST_SENTENCES} sentences, and {MOST_MOMENTS} moments each")
        among = None if films is None else [self._at(film_id) for film_id in films]
        if among is not None and not among:
            raise UserError("no film is named; leave films out to search all")
        with self._searching:
            found = self.searching.find(sentences, threshold=threshold, top_k=top_k, among=among)
        return [
            [
                answer.to_json() | {"film": str(path), "film_id": self._id_of[path]}
                for path, answer in row
            ]
            for row in found
        ]

    def frames(self, film_id: str, times_s: Sequence[float]) -> list[bytes]:
        """What is on screen at times of a film, as JPEG files.

        Raises:
            UserError: too many, the film has gone, or a time is not in it.
        """
        from revisionllm.data.video import encode_jpeg, frames_at, probe

        film = self._film(film_id)
        if not 0 < len(times_s) <= MOST_FRAMES:
            raise UserError(f"from 1 to {MOST_FRAMES} times")
        for time_s in times_s:
            if not 0 <= time_s < film.duration_s:
                raise UserError(f"the film has {film.duration_s:.1f} s; nothing at {time_s:g} s")
        with self._reading:
            size = probe(film.path).size_within(FRAME_SIDE)
            return [encode_jpeg(frames_at(film.path, [time_s], size=size)[0]) for time_s in times_s]

    def clip(self, film_id: str, start_s: float, end_s: float, folder: Path) -> Path:
        """A part of a film as a new MP4 file in a folder, exact to the frame, with sound.

        Raises:
            UserError: too long, the film has gone, or the part is not in it.
        """
        from revisionllm.library.clips import cut_clip

        film = self._film(film_id)
        if not 0 < end_s - start_s <= LONGEST_CLIP_S:
            raise UserError(f"a clip has more than 0 and at most {LONGEST_CLIP_S:g} seconds")
        if not (0 <= start_s < film.duration_s):
            raise UserError(f"the film has {film.duration_s:.1f} s; nothing at {start_s:g} s")
        handle, name = tempfile.mkstemp(suffix=".mp4", dir=folder)
        os.close(handle)
        try:
            with self._reading:
                cut_clip(film.path, start_s, end_s, Path(name), reencode=True)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def _at(self, film_id: str) -> int:
        if film_id not in self._number_of:
            raise NoSuchFilm(f"no film {film_id[:40]!r} in the library")
        return self._number_of[film_id]

    def _film(self, film_id: str) -> LibraryFilm:
        film = self.searching.known[self._at(film_id)]
        if not film.path.is_file():
            raise UserError(f"film {film_id} has gone from its place")
        return film


def open_offers(args) -> Offers:
    """The library of `library.find.add_library_arguments`.

    Raises:
        UserError: no library, or a model that is none.
    """
    from revisionllm.library.find import LibrarySearch, library_and_model

    library, model = library_and_model(args)
    return Offers(LibrarySearch(library, model, best_films=args.films, device=args.device))
