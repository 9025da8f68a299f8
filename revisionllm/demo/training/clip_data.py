"""Frames with captions for training and judging the demo's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from revisionllm.demo.world.captions import frame_caption, visible_things
from revisionllm.demo.world.language import Description, phrase
from revisionllm.demo.world.plans import (
    COLOURS,
    FRAME_WIDTH,
    HELD_OUT_PAIRS,
    RADIUS_PX,
    SHAPES,
    Actor,
    Fact,
    FilmPlan,
    Shot,
    plan_film,
    pose_of,
)
from revisionllm.demo.world.render import RGB, as_decoded, draw

FILM_S = 900.0
FRAMES_PER_SHOT = 4  # neighbours in a batch differ in where things are, not only in what they are


@dataclass(frozen=True)
class CaptionedFrame:
    """A frame, one caption, and what the caption could say: place and things.

    shapes: float32 [8 colours, 6 shapes], 1 where such a thing shows, the shares of a thing between
    two colours, -1 where it is cut by the edge of the picture; poses: float32 [8, 5], `pose_values`
    of the one thing (mainly) of that colour, NaN where there is none or more than one.
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


class Tint(NamedTuple):
    """A colour of the world with a share (0..0.5) of a second one; (None, 0) for none."""

    colour: str
    second: str | None = None
    share: float = 0.0

    @property
    def rgb(self) -> tuple[int, int, int]:
        """What to paint."""
        one, two = (np.asarray(RGB[name or self.colour]) for name in (self.colour, self.second))
        return tuple(np.rint(one + self.share * (two - one)).astype(int).tolist())


def mixed_tint(actor: Actor, rng: np.random.Generator) -> Tint:
    """A tint between the actor's colour and another, of which no name is quite true.

    Films keep some pairs of colour and shape from training. An image tower that has seen every
    shape in a few pure colours alone reads a pair it has never seen as another; in these it sees
    all shapes in all tints. A pair kept from training stays kept: at most 0.7 of such a colour, and
    no caption ever names it.
    """
    other = str(rng.choice([colour for colour in COLOURS if colour != actor.colour]))
    most = 0.7 if (other, actor.shape) in HELD_OUT_PAIRS else 1.0
    share = float(rng.uniform(0, most))
    if share <= 0.5:
        return Tint(actor.colour, other, share)
    return Tint(other, actor.colour, 1 - share)


def attributes(
    shot: Shot, time_s: float, tints: Sequence[Tint] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `shapes` and `poses` of a `CaptionedFrame`; without tints, of the actors' own colours."""
    shapes = np.zeros((len(COLOURS), len(SHAPES)), np.float32)
    poses = np.full((len(COLOURS), 5), np.nan, np.float32)
    of_colour = np.zeros(len(COLOURS), int)
    for number, actor in enumerate(shot.actors):
        pose = pose_of(shot, number, time_s)
        radius_px = RADIUS_PX[actor.size] * pose.scale
        outside = max(-pose.x, pose.x - 1) * FRAME_WIDTH
        if not pose.visible or outside > radius_px:
            continue
        tint = tints[number] if tints else Tint(actor.colour)
        shape = SHAPES.index(actor.shape)
        for name, share in ((tint.colour, 1 - tint.share), (tint.second, tint.share)):
            if name:
                colour = COLOURS.index(name)
                seen = max(shapes[colour, shape], share)
                shapes[colour, shape] = seen if outside < 0 else -1
                of_colour[colour] += 1
        row = pose_values(pose.x, pose.y, radius_px, pose.angle)
        poses[COLOURS.index(tint.colour)] = row
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
    named = all(actor.colour for actor in shot.actors)
    if active and named and rng.random() < 0.35:
        return _event_caption(active[int(rng.integers(len(active)))], rng)
    return frame_caption(shot, time_s, rng)


def sample_frames(
    plans: list[FilmPlan], num_shots: int, rng: np.random.Generator, mixed: float = 0.0
) -> list[CaptionedFrame]:
    """Frames of `num_shots` random shots, up to `FRAMES_PER_SHOT` each, no two of a shot alike.

    Args:
        mixed: share of the shots whose actors may have a `mixed_tint`, which captions do not name.
    """
    frames = []
    for _ in range(num_shots):
        plan = plans[int(rng.integers(len(plans)))]
        shot = plan.shots[int(rng.integers(len(plan.shots)))]
        tints = None
        if mixed and rng.random() < mixed:
            draws = ((actor, rng.random() < 0.7) for actor in shot.actors)
            tints = [mixed_tint(a, rng) if is_mixed else Tint(a.colour) for a, is_mixed in draws]
        seen = set()
        for time_s in rng.uniform(shot.start_s, shot.end_s, FRAMES_PER_SHOT):
            things = tuple(visible_things(shot, time_s))
            if things not in seen:
                seen.add(things)
                shown = attributes(shot, float(time_s), tints)
                image = draw(shot, time_s, tints and [tint.rgb for tint in tints])
                said = shot if tints is None else _unnamed(shot, tints)
                caption = _caption(plan, said, float(time_s), rng)
                frames.append(CaptionedFrame(image, caption, shot.place, things, *shown))
    return frames


def _unnamed(shot: Shot, tints: list[Tint]) -> Shot:
    """The shot without the colours of its actors of a mixed tint."""
    pairs = zip(shot.actors, tints, strict=True)
    actors = (replace(actor, colour=None) if tint.second else actor for actor, tint in pairs)
    return replace(shot, actors=tuple(actors))


def as_films_show(
    frames: list[CaptionedFrame], share: float, rng: np.random.Generator
) -> list[CaptionedFrame]:
    """The frames, `share` of them (in runs) as decoded from an mp4 of random quality."""
    count = round(share * len(frames))
    first = int(rng.integers(len(frames) - count + 1))
    part = frames[first : first + count]
    images = as_decoded([frame.image for frame in part], int(rng.integers(18, 27))) if part else []
    decoded = [replace(frame, image=image) for frame, image in zip(part, images, strict=True)]
    return frames[:first] + decoded + frames[first + count :]
