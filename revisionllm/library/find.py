"""Sentences in a library: the encoder's level over all films, then the levels above in the best.

The encoder's level reads no film. What the levels above look at is read on demand and kept in the
library, so that the next sentence about the same minutes reads nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.library.store import Library, LibraryFilm
from revisionllm.library.words import AUTO, LEVELS, Said, hints_of, merge, open_words
from revisionllm.model.hub import check_encoder
from revisionllm.records.predictions import Prediction

if TYPE_CHECKING:
    import numpy as np

    from revisionllm.grounder import Grounder
    from revisionllm.library.frames import FramedFilm
    from revisionllm.library.model_file import ModelFile
    from revisionllm.library.shared import SharedLibrary

BEST_FILMS = 3
Answer = tuple[Path, Prediction]  # a film, and what was found in it


def add_library_arguments(parser: argparse.ArgumentParser) -> None:
    """Which library, and what searches it; for `library_and_model`."""
    add = parser.add_argument
    add("library", type=Path, nargs="?", default=Path("library"), help="an index (%(default)s)")
    add("--model", help="a folder with a model.json, or demo: levels above the library's encoder")
    add("--films", type=int, default=BEST_FILMS, help="films that those levels read, per sentence")
    add("--device", default="auto", help="auto, cpu or cuda")


def library_and_model(args: argparse.Namespace) -> tuple[Library, ModelFile | None]:
    """What `add_library_arguments` was given; nothing is loaded yet.

    Raises:
        UserError: no library, or a model that is none or an encoder alone.
    """
    from revisionllm.library.model_file import read_model

    library = Library(args.library)
    model = read_model(args.model) if args.model else None
    if model and model.is_alone:
        raise UserError(f"--model {args.model} names an encoder alone; the library has its own")
    return library, model


@dataclass(frozen=True)
class _Asked:
    """Sentences with their features [Q, D] and tokens per word [Q], and the films to search."""

    sentences: Sequence[str]
    features: np.ndarray
    tokens_per_word: np.ndarray
    among: Sequence[int]


class LibrarySearch:
    """An opened library, for one sentence after the other.

    Args:
        library: the library, or a shared one.
        model: whose levels stand above the library's encoder; None: the encoder alone.
        best_films: how many films those levels look at, per sentence.
        device: of the models.
        options: of `Grounder.ground`, for those levels.
        words: see `words.open_words`.
        snap: moments, and windows of another model, begin and end with shots (`shots.snap`).

    Raises:
        UserError: the library is empty or damaged, or its encoder is not there any more.
    """

    def __init__(
        self,
        library: Library | SharedLibrary,
        model: ModelFile | None = None,
        *,
        best_films: int = BEST_FILMS,
        device: str = "auto",
        options: dict[str, Any] | None = None,
        words: str = AUTO,
        snap: bool = False,
    ) -> None:
        if model is not None and library.folder is None:
            raise UserError("levels above the encoder read films: give the library's own folder")
        self.library, self.best_films, self._snap = library, best_films, snap
        self.options = options or {}
        self.known = library.films()
        if not self.known:
            raise UserError(
                f"{library.folder} holds no film yet; `revisionllm index FILMS` adds some"
            )
        check_encoder(library.encoder)
        from revisionllm.library.frames import read_frames_calibration
        from revisionllm.model.clip import load_clip

        self.calibration = read_frames_calibration(library.encoder)
        self.films: Sequence[FramedFilm] = library.framed_films(self.known)
        self.clip = load_clip(library.encoder, device=device)
        if self.clip.fingerprint() != library.fingerprint:
            raise UserError(
                f"{library.folder} was made by encoder {library.fingerprint}, {library.encoder} is"
                f" {self.clip.fingerprint()}; put the old one back, or index the films again"
            )
        folder = library.folder
        paths = [] if folder is None else [folder / name for name in LEVELS]
        opened = [open_words(path, words, device=device) for path in paths if path.is_file()]
        self.words = [index for index in opened if index is not None]
        self.grounder: Grounder | None = None
        if model is not None:
            from revisionllm.library.model_file import open_levels

            self.grounder = open_levels(
                model, clip=self.clip, device=device, kept_in=library.folder, snap=snap
            )

    def find(
        self,
        sentences: Sequence[str],
        *,
        threshold: float = 0.5,
        top_k: int = 5,
        among: Sequence[int] | None = None,
    ) -> list[list[Answer]]:
        """The best moments of every sentence.

        Args:
            threshold: a sentence is found in a film if its best moment there scores at least this.
            top_k: moments per sentence at most, of all films together.
            among: numbers of the films to search, in `films`; None: all.

        Returns:
            Per sentence its films, the best first, each with its share of the moments.
        """
        _, encoded = self.clip.encode_texts(list(sentences))
        features = encoded.numpy()
        among = range(len(self.films)) if among is None else among
        likely = self.library.promising(features)
        if likely is not None:
            among = [at for at in among if self.known[at].film_id in likely] or among
        asked = _Asked(sentences, features, self.clip.tokens_per_word(sentences), among)
        said = [self._said(sentence, among) for sentence in sentences]
        if self.grounder is None:
            rows = self._by_frames(asked, threshold, top_k)
        else:
            rows = self._above(asked, said, threshold, top_k)
        # an uncalibrated presence is a probability, too, as the model tells it
        is_calibrated = self.grounder is not None or self.calibration is not None
        found = [
            self._merged(row, spoken, is_calibrated, threshold, top_k)
            for row, spoken in zip(rows, said, strict=True)
        ]
        if self._snap:
            from revisionllm.library.shots import snap

            for path, answer in itertools.chain.from_iterable(found):
                snap(path, answer.moments)
        return found

    def _by_frames(self, asked: _Asked, threshold: float, top_k: int) -> list[list[Answer]]:
        """What the encoder finds in all films."""
        from revisionllm.library.frames import search_films

        found = search_films(
            [self.films[at] for at in asked.among],
            asked.sentences,
            asked.features,
            calibration=self.calibration,
            tokens_per_word=asked.tokens_per_word,
            threshold=threshold,
            top_k=top_k,
            run=f"clip:{self.library.encoder}",
        )
        return [[(film.video_path, answer) for film, answer in row] for row in found]

    def _said(self, sentence: str, among: Sequence[int]) -> dict[int, list[Said]]:
        """What is said in films that may be meant, by the film's number."""
        numbers = {self.known[at].film_id: at for at in among}
        found: dict[int, list[Said]] = {}
        some = None if len(numbers) == len(self.known) else numbers
        said = [one for index in self.words for one in index.search(sentence, among=some)]
        for one in sorted(said, key=lambda one: -one.chance):
            if one.passage.film_id in numbers:
                found.setdefault(numbers[one.passage.film_id], []).append(one)
        return found

    def _merged(
        self,
        answers: list[Answer],
        said: dict[int, list[Said]],
        is_calibrated: bool,
        threshold: float,
        top_k: int,
    ) -> list[Answer]:
        """A sentence's films by picture and by words."""
        if not said:
            return answers
        by_path = dict(answers)
        sentence, run = answers[0][1].query, answers[0][1].run
        number = answers[0][1].qid.rsplit("_", 1)[1]
        for at in said:
            film = self.known[at]
            if film.path not in by_path:
                vid = film.path.stem
                qid = f"{vid}_{number}"
                by_path[film.path] = Prediction(qid, vid, sentence, film.duration_s, False, run=run)
        numbers = {self.known[at].path: at for at in said}
        scores = [moment.score for _, answer in answers for moment in answer.moments]
        shown = max(scores, default=0.0) if is_calibrated else None
        options = {"is_calibrated": is_calibrated, "shown": shown}
        for path, answer in by_path.items():
            spoken = said.get(numbers.get(path, -1), [])
            merge(answer, spoken, threshold=threshold, top_k=top_k, **options)
        return best_of(list(by_path.items()), top_k)

    def _above(
        self, asked: _Asked, said: list[dict[int, list[Said]]], threshold: float, top_k: int
    ) -> list[list[Answer]]:
        """Ask the levels above about each sentence in the films that look best."""
        from revisionllm.library.frames import find_moments

        among = asked.among
        ranked = find_moments(
            [self.films[at] for at in among],
            asked.features,
            calibration=self.calibration,
            tokens_per_word=asked.tokens_per_word,
            top_k=self.best_films,
            per_film=1,
        )
        of_film: dict[int, list[int]] = {}  # the numbers of its sentences
        for number, (row, spoken) in enumerate(zip(ranked, said, strict=True)):
            seen = [among[at] for at, _ in row]
            in_turn = [at for pair in itertools.zip_longest(spoken, seen) for at in pair]
            best = [at for at in dict.fromkeys(in_turn) if at is not None][: self.best_films]
            for at in best or [among[0]]:
                of_film.setdefault(at, []).append(number)
        answers: list[list[Answer]] = [[] for _ in asked.sentences]
        for at, numbers in of_film.items():
            film = self.known[at]
            texts = [asked.sentences[number] for number in numbers]
            hints = [hints_of(said[number].get(at, [])) for number in numbers]
            found = self._ask(film, texts, hints, threshold, top_k)
            for number, answer in zip(numbers, found, strict=True):
                answer.qid = f"{answer.vid}_{number:03d}"
                answers[number].append((film.path, answer))
        return [best_of(row, top_k) for row in answers]

    def _ask(
        self,
        film: LibraryFilm,
        sentences: list[str],
        hints: list[list[tuple[float, float]]],
        threshold: float,
        top_k: int,
    ) -> list[Prediction]:
        grounder = self.grounder
        opened = self.library.film(film, grounder.clip, grounder.feature_fps)
        options = self.options | {"threshold": threshold, "top_k": top_k, "hints": hints}
        found = grounder.ground(opened, sentences, **options)
        rows = opened.features
        print(f"{film.path}: read {rows.num_read} of {len(rows)} frames", file=sys.stderr)
        return found


def best_of(answers: Sequence[Answer], top_k: int) -> list[Answer]:
    """The films of a sentence's best moments, the best first; moments beyond `top_k` go.

    If there is no moment at all: the first film.
    """
    scores = sorted((m.score for _, answer in answers for m in answer.moments), reverse=True)
    bar = scores[min(top_k, len(scores)) - 1] if scores else 0.0
    kept = []
    for path, answer in answers:
        answer.moments = [moment for moment in answer.moments if moment.score >= bar]
        if answer.moments:
            kept.append((path, answer))
    kept.sort(key=lambda pair: -pair[1].moments[0].score)
    return kept or list(answers[:1])
