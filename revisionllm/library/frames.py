"""Films searched by an encoder alone: sentences to predictions, from frame similarity.

Paper of such encoders: https://arxiv.org/abs/2103.00020. The spans are those of
`grounding.frame_spans`; confidence is a calibration kept beside the encoder's weights. An encoder
without one ranks moments, and does not say that something is not there.

Of many films only the promising ones are cut into spans: what the rest could score at most is known
from their highest piece. The answer is the same as if all of them were.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.grounding.calibration import Calibration
from revisionllm.grounding.frame_spans import (
    BACKGROUND_TIMES,
    Pieces,
    backgrounds,
    frame_spans,
    pieces_of,
)
from revisionllm.grounding.levels import Moment
from revisionllm.grounding.scores import unit_rows
from revisionllm.model.config import read_calibration
from revisionllm.records.films import Film
from revisionllm.records.predictions import Prediction

CALIBRATION = "frames_calibration.json"
CALIBRATE = "`python revisionllm/demo/frame_benchmark.py --write` makes the demo's again"
LEVEL = "frames"
FEATURE_FPS = 1.0


@dataclass(frozen=True)
class FramedFilm:
    """A film as the search by an encoder alone sees it.

    Attributes:
        vid: name used in predictions.
        feature_fps: rows per second that its pieces were cut from.
        video_path: the file, if there is one.
    """

    vid: str
    pieces: Pieces
    feature_fps: float
    duration_s: float
    video_path: Path | None = None


def read_frames_calibration(encoder: str | Path) -> Calibration | None:
    """The calibration beside an encoder's weights; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_calibration(encoder, CALIBRATION, CALIBRATE)


def search_films(
    films: Sequence[FramedFilm],
    sentences: Sequence[str],
    features: np.ndarray,
    *,
    threshold: float = 0.5,
    run: str = "",
    **options: Any,
) -> list[list[tuple[FramedFilm, Prediction]]]:
    """Find every sentence in many films.

    Args:
        features: of the sentences [Q, D], by the encoder of the films' frames.
        threshold: a sentence is found in a film if its best moment there scores at least this. An
            encoder without a calibration finds everything.
        run: what predictions are signed with.
        options: see `find_moments`.

    Returns:
        Per sentence the films of its best moments, the best first, each with a prediction of those
        of these moments that lie in it. If nothing stands out anywhere: the first, with none.
    """
    found = find_moments(films, features, **options)
    is_sure = options.get("calibration") is None
    answers = []
    for number, (sentence, ranked) in enumerate(zip(sentences, found, strict=True)):
        of_film: dict[int, list[Moment]] = {} if ranked else {0: []}
        for at, moment in ranked:
            of_film.setdefault(at, []).append(moment)
        row = []
        for at, moments in of_film.items():
            film = films[at]
            prediction = Prediction(
                qid=f"{film.vid}_{number:03d}",
                vid=film.vid,
                query=sentence,
                duration_s=film.duration_s,
                found=bool(moments) and (is_sure or moments[0].score >= threshold),
                moments=moments,
                run=run,
            )
            row.append((film, prediction))
        answers.append(row)
    return answers


def ground_frames(
    film: Film, sentences: Sequence[str], features: np.ndarray, *, run: str = "", **options: Any
) -> list[Prediction]:
    """Find every sentence in a film; see `search_films`.

    Returns:
        One prediction per sentence, in order.
    """
    pieces = pieces_of(film.features)
    framed = FramedFilm(film.vid, pieces, film.feature_fps, film.duration_s, film.video_path)
    found = search_films([framed], sentences, features, run=run, **options)
    return [prediction for ((_, prediction),) in found]


def find_moments(
    films: Sequence[FramedFilm],
    features: np.ndarray,
    *,
    calibration: Calibration | None = None,
    tokens_per_word: Sequence[float] | None = None,
    top_k: int = 5,
    per_film: int | None = None,
) -> list[list[tuple[int, Moment]]]:
    """The best moments of every sentence in many films.

    Args:
        features: of the sentences [Q, D].
        calibration: of `read_frames_calibration`. None: the score is the height h above the film's
            background as h / (1 + h).
        tokens_per_word: `ClipFeatures.tokens_per_word` of the sentences, which it may weigh.
        top_k: moments per sentence at most, of all films together.
        per_film: and of one film; None: `top_k`.

    Returns:
        Per sentence (number of the film, moment), by falling score.
    """
    features = unit_rows(features).astype(np.float32)
    cosines = [film.pieces.means @ features.T for film in films]
    shown = np.empty((BACKGROUND_TIMES, len(films), len(features)), np.float32)
    for at, (film, values) in enumerate(zip(films, cosines, strict=True)):
        shown[:, at] = values[film.pieces.background]
    medians, spreads = backgrounds(shown)
    found = []
    for number in range(len(features)):
        known = {}
        if tokens_per_word is not None:
            known = {"tokens_per_word": float(tokens_per_word[number])}
        searches = [
            _FilmSearch(
                film,
                values[:, number],
                (float(medians[at, number]), float(spreads[at, number])),
                calibration,
                known,
            )
            for at, (film, values) in enumerate(zip(films, cosines, strict=True))
        ]
        found.append(_best_moments(searches, top_k, per_film or top_k))
    return found


def _best_moments(
    searches: Sequence[_FilmSearch], top_k: int, per_film: int
) -> list[tuple[int, Moment]]:
    """The best of all films' moments, each film asked only while it may have a better one."""
    waiting = [(-search.at_most(), at) for at, search in enumerate(searches)]
    heapq.heapify(waiting)
    best: list[tuple[float, int, int, Moment]] = []  # a heap, the worst of them first
    count = itertools.count()
    while waiting and (len(best) < top_k or -waiting[0][0] > best[0][0]):
        _, at = heapq.heappop(waiting)
        moment = searches[at].next(per_film)
        if moment is None:
            continue
        heapq.heappush(waiting, (-searches[at].at_most(), at))
        heapq.heappush(best, (moment.score, -at, -next(count), moment))
        if len(best) > top_k:
            heapq.heappop(best)
    return [(-at, moment) for _, at, _, moment in sorted(best, reverse=True)]


class _FilmSearch:
    """A sentence's moments in one film, found one after the other, and what the next may score."""

    def __init__(
        self,
        film: FramedFilm,
        cosines: np.ndarray,
        background: tuple[float, float],
        calibration: Calibration | None,
        known: dict[str, float],
    ) -> None:
        self._film, self._cosines, self._known = film, cosines, known
        self._background, self._calibration = background, calibration
        self._height = (float(cosines.max()) - background[0]) / background[1]
        self._spans: Iterator | None = None
        self._taken = 0

    def at_most(self) -> float:
        """No moment to come scores more: heights fall, and no span's cosine exceeds its peak's.

        A calibration rises or falls with each part, so its greatest value is at a corner.
        """
        if self._calibration is None:
            return _without_calibration(self._height)
        median, spread = self._background
        heights = (0.0, self._height)
        cosines = (float(self._cosines.min()), median + spread * self._height)
        corners = itertools.product(heights, cosines)
        return max(
            float(self._calibration.confidence(self._parts(height, cosine)))
            for height, cosine in corners
        )

    def _parts(self, height: float, cosine: float) -> dict[str, float]:
        return {"cosine": cosine, "height": height} | self._known

    def next(self, most: int) -> Moment | None:
        """The next moment by height; None after so many, or if there is none."""
        film = self._film
        if self._spans is None:
            self._spans = frame_spans(
                self._cosines, film.pieces, film.feature_fps, self._background
            )
        span = next(self._spans, None) if self._taken < most else None
        if span is None:
            return None
        self._taken += 1
        self._height = span.height
        parts = self._parts(span.height, span.cosine)
        score = _without_calibration(span.height)
        if self._calibration is not None:
            score = float(self._calibration.confidence(parts))
        end_s = min(span.end_s, film.duration_s)
        return Moment(span.start_s, end_s, score, parts, LEVEL)


def _without_calibration(height: float) -> float:
    return height / (1 + height) if height > 0 else 0.0
