"""Questions that single frames answer: "a red ball on the beach" is true while one is on screen.

Unlike the events of `language.py` nothing has to happen: colour, shape and place decide, and a
question may be true of several stretches of the film.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from revisionllm.demo.world.captions import on_screen
from revisionllm.demo.world.language import WORDS, noun_phrase
from revisionllm.demo.world.plans import FILM_FPS, FilmPlan, pose_of

MOST_SPANS = 6  # per hour; a question that is true more often says too little
SHORTEST_S = 2.0
BRIDGED_S = 1.0  # who blinks is still there

Seen = tuple[str, str, str]  # colour, shape, place


@dataclass(frozen=True)
class FrameQuestion:
    """A sentence and the stretches, in film seconds, where it is true; () if nowhere."""

    sentence: str
    seen: Seen
    spans_s: tuple[tuple[float, float], ...]


def seen_in(plan: FilmPlan) -> dict[Seen, list[tuple[float, float]]]:
    """When each colour and shape is on screen in each place of a film, in order."""
    found: dict[Seen, list[tuple[float, float]]] = {}
    for shot in plan.shots:
        first, end = round(shot.start_s * FILM_FPS), round(shot.end_s * FILM_FPS)
        times = [index / FILM_FPS for index in range(first, end)]
        for number, actor in enumerate(shot.actors):
            spans = found.setdefault((actor.colour, actor.shape, shot.place), [])
            for time_s in times:
                if not on_screen(pose_of(shot, number, time_s)):
                    continue
                until_s = min(time_s + 1 / FILM_FPS, plan.duration_s)
                if spans and time_s - spans[-1][1] <= BRIDGED_S and spans[-1][1] > shot.start_s:
                    spans[-1] = (spans[-1][0], round(until_s, 1))
                else:
                    spans.append((round(time_s, 1), round(until_s, 1)))
    return {seen: sorted(spans) for seen, spans in found.items() if spans}


def most_spans(plan: FilmPlan) -> int:
    """How often a question about a film may be true."""
    return round(MOST_SPANS * max(1.0, plan.duration_s / 3600))


def frame_questions(
    plan: FilmPlan, num_present: int, num_absent: int, seed: int = 0
) -> list[FrameQuestion]:
    """Present questions of a film, then absent ones: a colour, a shape and a place that the film
    shows, but never a thing of that colour and shape.

    Raises:
        ValueError: the film shows too little for so many.
    """
    rng = np.random.default_rng([plan.seed, seed, 7])
    found = seen_in(plan)
    askable = [
        seen
        for seen, spans in sorted(found.items())
        if len(spans) <= most_spans(plan) and all(end - start >= SHORTEST_S for start, end in spans)
    ]
    things = {(colour, shape) for colour, shape, _ in found}
    colours, shapes, places = (sorted({seen[i] for seen in found}) for i in range(3))
    missing = [
        (colour, shape, place)
        for colour, shape, place in itertools.product(colours, shapes, places)
        if (colour, shape) not in things
    ]
    if min(len(askable) - num_present, len(missing) - num_absent) < 0:
        raise ValueError(f"{len(askable)} present and {len(missing)} absent questions")
    chosen = [askable[i] for i in rng.choice(len(askable), num_present, replace=False)]
    chosen += [missing[i] for i in rng.choice(len(missing), num_absent, replace=False)]
    return [FrameQuestion(_worded(seen, rng), seen, tuple(found.get(seen, ()))) for seen in chosen]


def _worded(seen: Seen, rng: np.random.Generator) -> str:
    colour, shape, place = seen
    where = WORDS[place][int(rng.integers(len(WORDS[place])))]
    thing = noun_phrase((None, colour, shape), rng)
    return f"{where} {thing}" if rng.random() < 0.25 else f"{thing} {where}"
