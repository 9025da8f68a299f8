"""Films searched by an encoder alone: sentences to predictions, from frame similarity.

Paper of such encoders: https://arxiv.org/abs/2103.00020. The spans are those of
`grounding.frame_spans`; confidence is a calibration kept beside the encoder's weights. An encoder
without one ranks moments, and does not say that something is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.grounding.calibration import Calibration
from revisionllm.grounding.frame_spans import FrameSpan, frame_spans, piece_ends
from revisionllm.grounding.levels import Moment
from revisionllm.grounding.scores import unit_rows
from revisionllm.library.store import Library
from revisionllm.model.config import read_calibration
from revisionllm.records.films import Film
from revisionllm.records.predictions import Prediction

CALIBRATION = "frames_calibration.json"
CALIBRATE = "`python revisionllm/demo/frame_benchmark.py --write` makes the demo's again"
LEVEL = "frames"
FEATURE_FPS = 1.0


def parts_of(span: FrameSpan) -> dict[str, float]:
    """What the confidence of a span is computed from."""
    return {"cosine": span.cosine, "height": span.height}


def read_frames_calibration(encoder: str | Path) -> Calibration | None:
    """The calibration beside an encoder's weights; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_calibration(encoder, CALIBRATION, CALIBRATE)


def search_library(
    library: Library, sentences: Sequence[str], features: np.ndarray, **options: Any
) -> list[list[tuple[Path, Prediction]]]:
    """Find every sentence in all films of a library.

    Args:
        features, options: see `ground_frames`.

    Returns:
        Per sentence each film's path and prediction, the film with the best moment first.
    """
    found: list[list[tuple[Path, Prediction]]] = [[] for _ in sentences]
    for film in library.films():
        predictions = ground_frames(library.open(film), sentences, features, **options)
        for row, prediction in zip(found, predictions, strict=True):
            row.append((film.path, prediction))
    for row in found:
        row.sort(key=lambda pair: _merit(pair[1]))
    return found


def _merit(prediction: Prediction) -> float:
    """For sorting: the less, the better its best moment."""
    return -prediction.moments[0].score if prediction.moments else 0.0


def ground_frames(
    film: Film,
    sentences: Sequence[str],
    features: np.ndarray,
    *,
    calibration: Calibration | None = None,
    threshold: float = 0.5,
    top_k: int = 5,
    run: str = "",
) -> list[Prediction]:
    """Find every sentence in a film by the similarity of its frames.

    Args:
        features: of the sentences [Q, D], by the encoder of the film's frames.
        calibration: of `read_frames_calibration`. None: the score is the height h above the film's
            background as h / (1 + h), and a sentence counts as found.
        threshold: a sentence is found if its best moment scores at least this.
        top_k: moments per sentence at most.
        run: what predictions are signed with.

    Returns:
        One prediction per sentence, in order.
    """
    rows = unit_rows(film.features)
    ends = piece_ends(rows)
    cosines = unit_rows(features) @ rows.T
    found = []
    for number, sentence in enumerate(sentences):
        moments = []
        for span in frame_spans(cosines[number], ends, film.feature_fps, top_k=top_k):
            parts = parts_of(span)
            score = span.height / (1 + span.height)
            if calibration is not None:
                score = float(calibration.confidence(parts))
            end_s = min(span.end_s, film.duration_s)
            moments.append(Moment(span.start_s, end_s, score, parts, LEVEL))
        moments.sort(key=lambda moment: -moment.score)
        is_found = bool(moments) and (calibration is None or moments[0].score >= threshold)
        found.append(
            Prediction(
                qid=f"{film.vid}_{number:03d}",
                vid=film.vid,
                query=sentence,
                duration_s=film.duration_s,
                found=is_found,
                moments=moments,
                run=run,
            )
        )
    return found
