"""The demo world: plans of films in which coloured shapes do things that take time.

A film is a run of shots. A shot shows one place and one to three actors (size x colour x shape) of
the film's small cast, who do things one after the other. Because the cast and the places of a film
are few, most events have neighbours that share the actor, the action or the place: a single frame
does not tell them apart. `plan_film` decides everything; drawing (`render`) and wording
(`language`) only read the plan.

Places on screen are fractions of the frame: x grows to the right, y grows downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

# Of plans and pixels together: whatever is kept of films (files, features) is kept under it, so
# raise it with every change of a picture (tests/demo/test_render.py notices).
WORLD_VERSION = 1
FILM_FPS = 5.0
FRAME_WIDTH, FRAME_HEIGHT = 192, 144
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "big")
PLACES = ("beach", "forest", "desert", "city", "snow", "meadow", "cave", "ocean", "room", "space")
RADIUS_PX = {"small": 14.0, "big": 23.0}
LEFT, MIDDLE, RIGHT = 0.15, 0.5, 0.85
LANES_Y = (0.27, 0.51, 0.75)
OFF_SCREEN = {"left": -0.2, "right": 1.2}
SIDE_X = {"left": LEFT, "right": RIGHT}
OPPOSITE = {"left": "right", "right": "left"}
CAST_SIZE = 11
PLACES_PER_FILM = 7
SCENERIES = 40  # different pictures of each place
# Pairs that no training film casts: films of the other splits may.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("green", "ring"),
        ("blue", "triangle"),
        ("yellow", "cross"),
        ("pink", "square"),
        ("purple", "circle"),
    }
)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Actor:
    """One of the cast; two actors of a film differ in colour or shape."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Pose:
    """Where and how an actor is at one moment; angle in turns, scale relative to its size."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0
    visible: bool = True


@dataclass(frozen=True)
class Event:
    """Something an actor does from start_s to end_s (film seconds).

    `direction` is the way it moves ("left" or "right"), `other` the index of the second actor
    within the shot; `begin` and `end` are the actor's poses at both ends.
    """

    action: str
    actor: int
    start_s: float
    end_s: float
    begin: Pose
    end: Pose
    direction: str | None = None
    other: int | None = None


@dataclass(frozen=True)
class Shot:
    """A stretch of film in one place. `first_poses[i]` is actor i's pose at start_s."""

    start_s: float
    end_s: float
    place: str
    scenery: int
    actors: tuple[Actor, ...]
    first_poses: tuple[Pose, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Fact:
    """One true statement about the film: `actor` did `action` during [start_s, end_s) in `place`.

    An event can make several facts true (who follows somebody to the middle also runs to the
    middle).
    """

    event_id: int
    action: str
    actor: Actor
    direction: str | None
    other: Actor | None
    place: str
    start_s: float
    end_s: float

    def overlaps(self, window_s: tuple[float, float]) -> bool:
        """Whether some of it happens in [start, end) seconds."""
        return self.start_s < window_s[1] and self.end_s > window_s[0]


@dataclass(frozen=True)
class FilmPlan:
    """Everything that happens in one film."""

    film_id: str
    seed: int
    split: str
    duration_s: float
    shots: tuple[Shot, ...]
    facts: tuple[Fact, ...] = field(repr=False)

    def shot_at(self, time_s: float) -> Shot:
        """The shot on screen at time_s; the first or last one outside the film."""
        starts = [shot.start_s for shot in self.shots]
        return self.shots[max(0, int(np.searchsorted(starts, time_s, side="right")) - 1)]


# --- motion: the pose of an actor during and after its events ------------------------------------


def _repeats(duration_s: float, period_s: float, minimum: int) -> int:
    return max(minimum, round(duration_s / period_s))


def _between(begin: Pose, end: Pose, u: float) -> Pose:
    return replace(
        begin,
        x=begin.x + (end.x - begin.x) * u,
        y=begin.y + (end.y - begin.y) * u,
        scale=begin.scale + (end.scale - begin.scale) * u,
    )


def pose_during(event: Event, time_s: float) -> Pose:
    """Pose of the event's actor at time_s in [start_s, end_s)."""
    duration_s = event.end_s - event.start_s
    elapsed_s = time_s - event.start_s
    u = elapsed_s / duration_s
    pose = _between(event.begin, event.end, u)
    if event.action == "bounce":
        hops = _repeats(duration_s, 1.4, 2)
        return replace(pose, y=pose.y - 0.2 * abs(math.sin(math.pi * hops * u)))
    if event.action == "shake":
        swings = _repeats(duration_s, 1.2, 2)
        return replace(pose, x=pose.x + 0.08 * math.sin(2 * math.pi * swings * u))
    if event.action == "spin":
        return replace(pose, angle=pose.angle + _repeats(duration_s, 2.4, 1) * u)
    if event.action == "blink":
        return replace(pose, visible=int(elapsed_s / 0.6) % 2 == 1)
    if event.action == "circle":
        turn = 2 * math.pi * _repeats(duration_s, 3.0, 1) * u
        return replace(
            pose, x=pose.x + 0.12 * math.sin(turn), y=pose.y - 0.16 * (1 - math.cos(turn)) / 1.5
        )
    if event.action == "jump":
        return replace(pose, y=pose.y - 0.42 * math.sin(math.pi * u))
    return pose


def pose_of(shot: Shot, actor: int, time_s: float) -> Pose:
    """Pose of actor number `actor` of the shot at time_s."""
    pose = shot.first_poses[actor]
    for event in shot.events:
        if event.actor != actor or event.start_s > time_s:
            continue
        if time_s < event.end_s:
            return pose_during(event, time_s)
        pose = event.end
    return pose


# --- planning ------------------------------------------------------------------------------------


def _event_duration_s(rng: np.random.Generator) -> float:
    """2 to 20 s, seven in ten between 3 and 6 s (the mean moment of MAD lasts 4.1 s)."""
    low_s, high_s = [(3, 6), (2, 3), (6, 10), (10, 20)][rng.choice(4, p=[0.7, 0.13, 0.13, 0.04])]
    return round(float(rng.uniform(low_s, high_s)) * FILM_FPS) / FILM_FPS


def _spot(pose: Pose) -> str:
    if pose.x < 0 or pose.x > 1:
        return "off"
    return "left" if pose.x < 0.3 else "right" if pose.x > 0.7 else "middle"


def _moves(pose: Pose) -> list[tuple[str, str | None, Pose]]:
    """(action, direction, final pose) of everything a lone actor can do from here."""
    spot = _spot(pose)
    if spot == "off":
        side = "left" if pose.x < 0 else "right"
        return [("enter", OPPOSITE[side], replace(pose, x=x)) for x in (LEFT, MIDDLE, RIGHT)]
    moves = [(name, None, pose) for name in ("bounce", "shake", "spin", "blink", "circle")]
    moves += [("grow", None, replace(pose, scale=1.7)), ("shrink", None, replace(pose, scale=0.55))]
    moves += [("leave", side, replace(pose, x=x)) for side, x in OFF_SCREEN.items()]
    if pose.y > 0.45:
        moves.append(("rise", None, replace(pose, y=pose.y - 0.33)))
    if pose.y < 0.55:
        moves.append(("fall", None, replace(pose, y=pose.y + 0.33)))
    if spot != "middle":
        target = OPPOSITE[spot]
        moves.append(("cross", target, replace(pose, x=SIDE_X[target])))
        moves.append(("stop", target, replace(pose, x=MIDDLE)))
    return moves


def _pair_moves(pose: Pose, other: Pose) -> list[tuple[str, str, Pose, Pose]]:
    """(action, direction, final pose, other's final pose) of what two actors can do together."""
    spot = _spot(pose)
    if spot not in SIDE_X or _spot(other) != "middle":
        return []
    way = OPPOSITE[spot]
    beside = replace(pose, x=MIDDLE + (-0.17 if spot == "left" else 0.17), y=other.y)
    return [
        ("follow", way, replace(pose, x=MIDDLE), replace(other, x=SIDE_X[way])),
        ("meet", way, beside, other),
        ("jump", way, replace(pose, x=SIDE_X[way]), other),
    ]


class _ShotPlanner:
    """Fills one shot with events, keeping each actor's pose and when it is free again."""

    def __init__(self, rng: np.random.Generator, cast: list[Actor], start_s: float) -> None:
        self.rng = rng
        count = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
        self.actors = tuple(cast[i] for i in rng.choice(len(cast), count, replace=False))
        lanes = rng.permutation(LANES_Y)[:count]
        self.poses = [self._first_pose(float(y)) for y in lanes]
        self.first_poses = tuple(self.poses)
        self.resting = [False] * count  # grew or shrank: its size word no longer fits, so it rests
        self.events: list[Event] = []
        self.clock_s = round(start_s + float(rng.integers(3, 9)) / FILM_FPS, 1)

    def _first_pose(self, y: float) -> Pose:
        rng = self.rng
        off = rng.random() < 0.22
        x = (
            OFF_SCREEN[str(rng.choice(["left", "right"]))]
            if off
            else rng.choice([LEFT, MIDDLE, RIGHT])
        )
        return Pose(float(x), y, angle=float(rng.integers(8)) / 8)

    def add_event(self) -> None:
        """Let one actor, or two together, do something after a short pause."""
        free = [i for i in range(len(self.actors)) if not self.resting[i]]
        if not free:
            return
        actor = int(self.rng.choice(free))
        pairs = [
            (other, move)
            for other in free
            if other != actor
            for move in _pair_moves(self.poses[actor], self.poses[other])
        ]
        start_s, end_s = self.clock_s, round(self.clock_s + _event_duration_s(self.rng), 1)
        if pairs and self.rng.random() < 0.65:
            self._pair_event(actor, pairs[self.rng.integers(len(pairs))], start_s, end_s)
        else:
            moves = _moves(self.poses[actor])
            names = sorted({move[0] for move in moves})
            name = names[self.rng.integers(len(names))]
            options = [move for move in moves if move[0] == name]
            action, direction, end = options[self.rng.integers(len(options))]
            self._store(Event(action, actor, start_s, end_s, self.poses[actor], end, direction))
            self.resting[actor] = action in ("grow", "shrink")
        self.clock_s = round(end_s + float(self.rng.integers(3, 13)) / FILM_FPS, 1)

    def _pair_event(self, actor: int, pair: tuple, start_s: float, end_s: float) -> None:
        other, (action, way, end, other_end) = pair
        if action == "follow":  # the one in front moves too, as part of the same event
            walk = Event("lead", other, start_s, end_s, self.poses[other], other_end, way, actor)
            self._store(walk)
        self._store(Event(action, actor, start_s, end_s, self.poses[actor], end, way, other))

    def _store(self, event: Event) -> None:
        self.events.append(event)
        self.poses[event.actor] = event.end


def _facts_of(event: Event, event_id: int, shot: Shot) -> list[Fact]:
    """What an event makes true; more than its own name where one thing implies another."""
    other = None if event.other is None else shot.actors[event.other]
    implied = {"follow": ["stop"], "meet": ["stop"], "jump": ["cross"]}
    facts = []
    for action in [event.action, *implied.get(event.action, [])]:
        facts.append(
            Fact(
                event_id,
                action,
                shot.actors[event.actor],
                event.direction,
                other if action == event.action else None,
                shot.place,
                event.start_s,
                event.end_s,
            )
        )
    return facts


def _cast(rng: np.random.Generator, split: str) -> list[Actor]:
    pairs = [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if split != "train" or (colour, shape) not in HELD_OUT_PAIRS
    ]
    # Few colours and shapes, met in many combinations, make near misses common.
    colours, shapes = rng.permutation(COLOURS)[:6], rng.permutation(SHAPES)[:5]
    pairs = [pair for pair in pairs if pair[0] in colours and pair[1] in shapes]
    chosen = rng.choice(len(pairs), min(CAST_SIZE, len(pairs)), replace=False)
    return [Actor(str(rng.choice(SIZES)), *pairs[i]) for i in chosen]


def plan_film(seed: int, duration_s: float, split: str = "train") -> FilmPlan:
    """Plan one film.

    Args:
        seed: same seed, duration and split give the same film.
        duration_s: length in seconds, at least 20.
        split: "train", "val" or "test"; training films never cast `HELD_OUT_PAIRS`.

    Raises:
        ValueError: unknown split or a film shorter than 20 s.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if not 20 <= duration_s < math.inf:
        raise ValueError(f"duration_s ({duration_s}) must be at least 20")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    cast = _cast(rng, split)
    places = [str(place) for place in rng.permutation(PLACES)[:PLACES_PER_FILM]]
    shots: list[Shot] = []
    facts: list[Fact] = []
    clock_s, event_id = 0.0, 0
    while clock_s < duration_s:
        planner = _ShotPlanner(rng, cast, clock_s)
        for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))):
            planner.add_event()
        last_place = shots[-1].place if shots else None
        place = str(rng.choice([name for name in places if name != last_place]))
        end_s = planner.clock_s if planner.clock_s <= duration_s - 8 else duration_s
        events = tuple(event for event in planner.events if event.end_s <= duration_s)
        shot = Shot(
            clock_s,
            end_s,
            place,
            int(rng.integers(SCENERIES)),
            planner.actors,
            planner.first_poses,
            events,
        )
        for event in events:
            if event.action != "lead":
                facts += _facts_of(event, event_id, shot)
                event_id += 1
        shots.append(shot)
        clock_s = end_s
    return FilmPlan(f"{split}_{seed:05d}", seed, split, duration_s, tuple(shots), tuple(facts))
