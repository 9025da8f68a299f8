"""Captions of single demo frames: who is where, for teaching CLIP and for the captioning questions.

A caption tells what one frame shows (things, places on screen, which way a thing is turned,
scenery); what happens over time it tells only through the sentence of an event that is under way.
"""

from __future__ import annotations

import numpy as np

from revisionllm.demo.world.language import WORDS, noun_phrase
from revisionllm.demo.world.plans import RADIUS_PX, Pose, Shot, pose_of

X_WORDS = ("at the far left", "on the left", "in the middle", "on the right", "at the far right")
X_EDGES = (0.08, 0.34, 0.66, 0.92)
Y_WORDS = ("at the top", "above the center", "below the center", "at the bottom")
Y_EDGES = (0.2, 0.42, 0.62)
TURN_WORDS = ("upright", "turned right", "upside down", "turned left")
SIZE_EDGES_PX = (11.0, 18.0, 29.0)
SIZE_WORDS = ("tiny", "small", "big", "huge")
MAX_NAMED = 2  # a caption names at most two things, which keeps it short and still true


def on_screen(pose: Pose) -> bool:
    """Whether an actor counts as seen: not blinked away, and at least half of it in the picture."""
    return pose.visible and -0.04 < pose.x < 1.04


def visible_things(shot: Shot, time_s: float) -> list[tuple]:
    """What a frame shows: a tuple (size word, colour, shape, x, y, turn word index) per actor.

    x, y are bins of `X_WORDS`, `Y_WORDS`. Actors that are off screen or blinked away are left out.
    """
    things = []
    for number, actor in enumerate(shot.actors):
        pose = pose_of(shot, number, time_s)
        if not on_screen(pose):
            continue
        size = int(np.searchsorted(SIZE_EDGES_PX, RADIUS_PX[actor.size] * pose.scale))
        x, y = int(np.searchsorted(X_EDGES, pose.x)), int(np.searchsorted(Y_EDGES, pose.y))
        things.append(
            (SIZE_WORDS[size], actor.colour, actor.shape, x, y, round(pose.angle * 4) % 4)
        )
    return things


def frame_caption(shot: Shot, time_s: float, rng: np.random.Generator) -> str:
    """One caption of the frame at time_s; wording and the details mentioned are drawn from rng."""
    things = visible_things(shot, time_s)
    where = WORDS[shot.place][int(rng.integers(len(WORDS[shot.place])))]
    parts = []
    for position in rng.permutation(len(things))[:MAX_NAMED]:
        size, colour, shape, x, y, turn = things[position]
        words = [noun_phrase((None, colour, shape), rng).replace(" ", f" {size} ", 1)]
        if rng.random() < 0.6:
            words.append(TURN_WORDS[turn])
        if rng.random() < 0.8:
            words.append(X_WORDS[x])
        if rng.random() < 0.8:
            words.append(Y_WORDS[y])
        parts.append(" ".join(words))
    text = " and ".join(parts) or "nothing"
    return f"{text} {where}" if rng.random() < 0.7 else text
