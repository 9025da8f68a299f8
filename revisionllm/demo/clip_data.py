"""Frames with captions for training and judging the demo's CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revisionllm.demo.captions import frame_caption, visible_things
from revisionllm.demo.language import Description, phrase
from revisionllm.demo.render import draw
from revisionllm.demo.world import Fact, FilmPlan, Shot, plan_film

FILM_S = 900.0
FRAMES_PER_SHOT = 4  # neighbours in a batch differ in where things are, not only in what they are


@dataclass(frozen=True)
class CaptionedFrame:
    """A frame, one caption, and what the caption could say: place and things."""

    image: np.ndarray  # uint8 [height, width, 3]
    caption: str
    place: str
    things: tuple


def plan_films(num_films: int, split: str, first_seed: int = 0) -> list[FilmPlan]:
    """Plans of `num_films` short films of a split."""
    return [plan_film(first_seed + number, FILM_S, split) for number in range(num_films)]


def _event_caption(fact: Fact, rng: np.random.Generator) -> str:
    size = fact.actor.size if fact.action not in ("grow", "shrink") and rng.random() < 0.5 else None
    other = fact.other and (None, fact.other.colour, fact.other.shape)
    description = Description(
        fact.action,
        (size, fact.actor.colour, fact.actor.shape),
        fact.direction if rng.random() < 0.5 else None,
        other,
        fact.place if rng.random() < 0.7 else None,
    )
    return phrase(description, rng)


def _caption(plan: FilmPlan, shot: Shot, time_s: float, rng: np.random.Generator) -> str:
    active = [fact for fact in plan.facts if fact.start_s <= time_s < fact.end_s]
    if active and rng.random() < 0.35:
        return _event_caption(active[int(rng.integers(len(active)))], rng)
    return frame_caption(shot, time_s, rng)


def sample_frames(
    plans: list[FilmPlan], num_shots: int, rng: np.random.Generator
) -> list[CaptionedFrame]:
    """Frames of `num_shots` random shots, up to `FRAMES_PER_SHOT` each, no two of a shot alike."""
    frames = []
    for _ in range(num_shots):
        plan = plans[int(rng.integers(len(plans)))]
        shot = plan.shots[int(rng.integers(len(plan.shots)))]
        seen = set()
        for time_s in rng.uniform(shot.start_s, shot.end_s, FRAMES_PER_SHOT):
            things = tuple(visible_things(shot, time_s))
            if things not in seen:
                seen.add(things)
                caption = _caption(plan, shot, float(time_s), rng)
                frames.append(CaptionedFrame(draw(shot, time_s), caption, shot.place, things))
    return frames
