"""Frames with captions for training and judging the demo's CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revisionllm.demo.captions import frame_caption, visible_things
from revisionllm.demo.language import Description, phrase
from revisionllm.demo.render import draw
from revisionllm.demo.world import (
    COLOURS,
    FRAME_WIDTH,
    RADIUS_PX,
    SHAPES,
    Fact,
    FilmPlan,
    Shot,
    plan_film,
    pose_of,
)

FILM_S = 900.0
FRAMES_PER_SHOT = 4  # neighbours in a batch differ in where things are, not only in what they are


@dataclass(frozen=True)
class CaptionedFrame:
    """A frame, one caption, and what the caption could say: place and things.

    shapes: float32 [8 colours, 6 shapes], 1 where such a thing shows, -1 where it is cut by the
    edge of the picture; poses: float32 [8, 5], `pose_values` of the one thing of that colour, NaN
    where there is none or more than one.
    """

    image: np.ndarray  # uint8 [height, width, 3]
    caption: str
    place: str
    things: tuple
    shapes: np.ndarray
    poses: np.ndarray


def pose_values(x: float, y: float, radius_px: float, angle: float) -> tuple[float, ...]:
    """A pose as five numbers of like size: place, size and turn (as a point on the circle)."""
    turn = 2 * np.pi * angle
    return 4 * x - 2, 4 * y - 2, 2 * np.log(radius_px / 18), np.sin(turn), np.cos(turn)


def attributes(shot: Shot, time_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The `shapes` and `poses` of a `CaptionedFrame`."""
    shapes = np.zeros((len(COLOURS), len(SHAPES)), np.float32)
    poses = np.full((len(COLOURS), 5), np.nan, np.float32)
    of_colour = np.zeros(len(COLOURS), int)
    for number, actor in enumerate(shot.actors):
        pose = pose_of(shot, number, time_s)
        radius_px = RADIUS_PX[actor.size] * pose.scale
        outside = max(-pose.x, pose.x - 1) * FRAME_WIDTH
        if not pose.visible or outside > radius_px:
            continue
        colour = COLOURS.index(actor.colour)
        shapes[colour, SHAPES.index(actor.shape)] = 1 if outside < 0 else -1
        of_colour[colour] += 1
        poses[colour] = pose_values(pose.x, pose.y, radius_px, pose.angle)
    poses[of_colour != 1] = np.nan
    return shapes, poses


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
                shown = attributes(shot, float(time_s))
                image = draw(shot, time_s)
                frames.append(CaptionedFrame(image, caption, shot.place, things, *shown))
    return frames
