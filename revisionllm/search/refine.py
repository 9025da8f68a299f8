"""Below dense: asks again about found spans, in a shorter window that shows every frame feature.

A dense window shows its frames more thinly than they are stored (a 125 s window sees 2 of MAD's 5
frames per second). A window of `frames_per_window / feature_fps` seconds around a found span shows
all of them, so its answer can place the span more finely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.grounding.levels import Level, Moment, Question
from revisionllm.grounding.scores import span_iou
from revisionllm.grounding.windows import Window
from revisionllm.records.films import Film, Query

if TYPE_CHECKING:
    from revisionllm.engine.dense import DenseEngine

FILLED = 0.8  # a span longer than this share of the short window stays as it is
MIN_IOU = 0.3  # an answer that overlaps less is about something else


def refine_moments(
    engine: DenseEngine,
    level: Level,
    film: Film,
    queries: Sequence[Query],
    moments: Sequence[Sequence[Moment]],
    *,
    top: int,
) -> list[list[Moment]]:
    """The moments with the spans of each query's best ones refined.

    Args:
        level: the dense level.
        moments: per query, best first.
        top: how many per query to ask about again.

    Returns:
        The same moments in the same order; scores and parts stay. A span is replaced if the model
        names one in the short window that overlaps it.
    """
    window_s = engine.model.config.frames_per_window / film.feature_fps
    refined = [list(row) for row in moments]
    asked, places = [], []
    for query, row in enumerate(refined):
        for rank, moment in enumerate(row[:top]):
            if is_asked_again(moment, engine.model.config, film.feature_fps):
                window = _around(moment, len(asked), window_s, film.duration_s)
                asked.append(Question(query, (window,)))
                places.append((query, rank))
    answers = engine.answer(level, asked, film, queries)
    for (query, rank), answer in zip(places, answers, strict=True):
        moment = refined[query][rank]
        if answer.is_positive and _overlap(answer.spans[0], moment) >= MIN_IOU:
            start_s, end_s = answer.spans[0].start_s, min(answer.spans[0].end_s, film.duration_s)
            refined[query][rank] = replace(moment, start_s=start_s, end_s=end_s)
    return refined


def is_asked_again(moment: Moment, config, feature_fps: float) -> bool:
    """Whether a shorter window can place the moment more finely."""
    window_s = config.frames_per_window / feature_fps
    return window_s < config.window_s and moment.end_s - moment.start_s < FILLED * window_s


def _around(moment: Moment, index: int, window_s: float, duration_s: float) -> Window:
    """A window with the moment in its middle, moved into the film."""
    middle_s = (moment.start_s + moment.end_s) / 2
    start_s = max(0.0, min(middle_s - window_s / 2, duration_s - window_s))
    return Window(index, start_s, start_s + window_s)


def _overlap(span, moment: Moment) -> float:
    found = span_iou(
        np.array([span.start_s, span.end_s]), np.array([[moment.start_s, moment.end_s]])
    )
    return float(found[0])
