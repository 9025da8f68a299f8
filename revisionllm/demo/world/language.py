"""Sentences of the demo world: a small grammar, and the logic that says what they are true of.

A `Description` names some attributes of an event; it is true of every fact that agrees with all of
them. `describe` adds attributes until a description is true of exactly one event of the film;
`absent` changes one attribute of a true description until it is true of none. `phrase` words a
description; some wordings belong to the test split alone (they recombine words that training has
seen).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from revisionllm.demo.world.plans import (
    COLOURS,
    HELD_OUT_PAIRS,
    PLACES,
    SHAPES,
    SIZES,
    Actor,
    Fact,
    FilmPlan,
)

Thing = tuple[str | None, str, str]  # size (None: not said), colour, shape


@dataclass(frozen=True)
class Description:
    """What a sentence says; None means the sentence does not say."""

    action: str
    actor: Thing
    direction: str | None = None
    other: Thing | None = None
    place: str | None = None


@dataclass(frozen=True)
class EventQuery:
    """A sentence with what it is true of: a span in film seconds, or None if it never happens."""

    sentence: str
    description: Description
    span_s: tuple[float, float] | None
    event_id: int | None


# --- truth ---------------------------------------------------------------------------------------


def _agrees(thing: Thing | None, actor) -> bool:
    if thing is None:
        return True
    if actor is None:
        return False
    size, colour, shape = thing
    return (size in (None, actor.size)) and colour == actor.colour and shape == actor.shape


def differences(description: Description, fact: Fact) -> Iterator[str]:
    """In what the description does not hold for the fact: action, direction, place, actor."""
    if description.action != fact.action:
        yield "action"
    if description.direction not in (None, fact.direction):
        yield "direction"
    if description.place not in (None, fact.place):
        yield "place"
    if not (_agrees(description.actor, fact.actor) and _agrees(description.other, fact.other)):
        yield "actor"


def is_true_of(description: Description, fact: Fact) -> bool:
    """Whether the description holds for the fact."""
    return next(differences(description, fact), None) is None


class FactIndex:
    """The facts of a film, found by action and colour."""

    def __init__(self, plan: FilmPlan) -> None:
        self.plan = plan
        self._by_key: dict[tuple[str, str, str], list[Fact]] = {}
        for fact in plan.facts:
            key = (fact.action, fact.actor.colour, fact.actor.shape)
            self._by_key.setdefault(key, []).append(fact)

    def events(self, description: Description) -> set[int]:
        """Ids of the events that the description is true of."""
        key = (description.action, *description.actor[1:])
        return {f.event_id for f in self._by_key.get(key, []) if is_true_of(description, f)}


# --- descriptions --------------------------------------------------------------------------------

# Growing and shrinking change the size on screen, so their sentences do not mention it.
UNSIZED = ("grow", "shrink")


def full_description(fact: Fact) -> Description:
    """All that a sentence can say about a fact."""
    actor, other = _thing(fact.actor), fact.other and _thing(fact.other)
    if fact.action in UNSIZED:
        actor = (None, *actor[1:])
    return Description(fact.action, actor, fact.direction, other, fact.place)


def things_in_shot(plan: FilmPlan, fact: Fact) -> list[Thing]:
    """Everybody in the shot that a fact is of, as (size, colour, shape)."""
    return [_thing(actor) for actor in plan.shot_at((fact.start_s + fact.end_s) / 2).actors]


def _thing(actor: Actor) -> Thing:
    return actor.size, actor.colour, actor.shape


def _without(description: Description, name: str) -> Description:
    if name == "size":
        return replace(description, actor=(None, *description.actor[1:]))
    if name == "other_size" and description.other:
        return replace(description, other=(None, *description.other[1:]))
    if name in ("direction", "place"):
        return replace(description, **{name: None})
    return description


def describe(index: FactIndex, fact: Fact, rng: np.random.Generator) -> Description | None:
    """A description true of the fact's event alone; None if even the fullest one is ambiguous.

    Attributes are dropped in random order, each only while the description stays unique and only
    some of the time, so that places and directions are mentioned more often than strictly needed.
    """
    description = full_description(fact)
    if index.events(description) != {fact.event_id}:
        return None
    for name in rng.permutation(["size", "other_size", "direction", "place"]):
        shorter = _without(description, str(name))
        if rng.random() < 0.75 and index.events(shorter) == {fact.event_id}:
            description = shorter
    return description


def change_one(description: Description, name: str, rng: np.random.Generator) -> Description:
    """The description with the attribute `name` drawn anew; unchanged if it has no such one."""
    size, colour, shape = description.actor
    if name == "action":
        return replace(description, action=str(rng.choice(sorted(PHRASES))))
    if name == "colour":
        return replace(description, actor=(size, str(rng.choice(COLOURS)), shape))
    if name == "shape":
        return replace(description, actor=(size, colour, str(rng.choice(SHAPES))))
    if name == "place":
        return replace(description, place=str(rng.choice(PLACES)))
    if name == "direction" and description.direction:
        return replace(
            description, direction="left" if description.direction == "right" else "right"
        )
    if name == "size" and size:
        return replace(description, actor=(SIZES[1 - SIZES.index(size)], colour, shape))
    return description


def is_well_formed(description: Description) -> bool:
    """Whether the grammar can word it: a partner where the action needs one, and so on."""
    phrases = PHRASES[description.action]
    other_fits = (description.other is not None) == phrases.needs_other
    sized_fits = description.action not in UNSIZED or description.actor[0] is None
    direction_fits = description.direction is None or bool(phrases.directed)
    different = description.other is None or description.other[1:] != description.actor[1:]
    return other_fits and sized_fits and direction_fits and different


def may_be_asked(description: Description, split: str) -> bool:
    """Whether a sentence of a split may say it: well formed, and in the training split without the
    pairs kept from it, which would otherwise be asked there and never be true."""
    things = [thing[1:] for thing in (description.actor, description.other) if thing]
    kept = split == "train" and not HELD_OUT_PAIRS.isdisjoint(things)
    return is_well_formed(description) and not kept


def absent(index: FactIndex, rng: np.random.Generator, tries: int = 50) -> Description | None:
    """A near miss: a true description with one attribute changed, true of nothing in the film."""
    facts = index.plan.facts
    for _ in range(tries):
        true_one = describe(index, facts[int(rng.integers(len(facts)))], rng)
        if true_one is None:
            continue
        name = str(
            rng.choice(["action", "action", "colour", "shape", "place", "direction", "size"])
        )
        wrong = change_one(true_one, name, rng)
        if may_be_asked(wrong, index.plan.split) and not index.events(wrong):
            return wrong
    return None


# --- wording -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phrases:
    """Verb phrases of one action. {way}: the direction of motion, {origin}: where it comes from,
    {it}: the other actor. `test` phrases are used by the test split only, `MORE` by training only.
    """

    plain: tuple[str, ...]
    directed: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    test_directed: tuple[str, ...] = ()
    needs_other: bool = False


PHRASES = {
    "enter": Phrases(
        ("enters", "comes in", "comes into view", "enters the picture"),
        (
            "enters from the {origin}",
            "comes in from the {origin}",
            "appears from the {origin} side",
        ),
        ("comes into the picture",),
        ("comes into the picture from the {origin}", "enters from the {origin} side"),
    ),
    "leave": Phrases(
        ("leaves", "goes out", "leaves the picture"),
        ("leaves to the {way}", "goes out to the {way}", "disappears to the {way} side"),
        ("goes out of the picture",),
        ("goes out of the picture to the {way}", "leaves to the {way} side"),
    ),
    "cross": Phrases(
        ("crosses the picture", "moves all the way across"),
        (
            "crosses from {origin} to {way}",
            "moves all the way to the {way}",
            "goes across to the {way}",
        ),
        ("goes all the way across",),
        ("moves from {origin} to {way}", "goes all the way to the {way}"),
    ),
    "stop": Phrases(
        ("moves to the middle and stops", "stops in the middle"),
        (
            "moves from the {origin} to the middle",
            "comes from the {origin} and stops in the middle",
        ),
        ("goes to the middle and stops",),
        ("goes from the {origin} to the middle",),
    ),
    "rise": Phrases(("rises", "moves up", "goes up slowly"), test=("slowly moves up",)),
    "fall": Phrases(("sinks", "moves down", "goes down slowly"), test=("slowly moves down",)),
    "bounce": Phrases(
        ("bounces up and down", "is bouncing", "hops up and down"),
        test=("keeps bouncing", "is bouncing up and down"),
    ),
    "shake": Phrases(
        ("shakes from side to side", "is shaking", "trembles"), test=("keeps shaking",)
    ),
    "spin": Phrases(
        ("spins", "is spinning around", "keeps turning around and around"),
        test=("keeps spinning", "keeps turning around"),
    ),
    "grow": Phrases(("grows", "is getting bigger", "becomes larger"), test=("is getting larger",)),
    "shrink": Phrases(("shrinks", "gets smaller", "becomes tiny"), test=("is getting smaller",)),
    "blink": Phrases(
        ("blinks on and off", "is blinking", "flickers"), test=("keeps blinking on and off",)
    ),
    "circle": Phrases(
        ("is moving in a circle", "goes round in circles", "flies around in a loop"),
        test=("keeps moving in circles",),
    ),
    "follow": Phrases(
        ("follows {it}", "goes after {it}"),
        ("follows {it} to the {way}", "goes after {it} to the {way}"),
        ("moves after {it}",),
        ("moves after {it} to the {way}",),
        needs_other=True,
    ),
    "meet": Phrases(
        ("meets {it}", "comes up to {it}"),
        ("comes from the {origin} to meet {it}", "comes up to {it} from the {origin}"),
        ("goes up to {it}",),
        ("goes up to {it} from the {origin}",),
        needs_other=True,
    ),
    "jump": Phrases(
        ("jumps over {it}", "leaps over {it}"),
        ("jumps over {it} to the {way}", "leaps over {it} from {origin} to {way}"),
        ("hops over {it}",),
        ("hops over {it} to the {way}",),
        needs_other=True,
    ),
}
# A language model that has read nothing else takes three wordings of an action for idioms. Many
# more, which share their words among actions, teach it what each word does to a sentence.
MORE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # plain, directed
    "enter": (
        ("is coming in", "moves into the picture", "is coming into view", "moves in", "appears"),
        (
            "comes into view from the {origin}",
            "moves into the picture from the {origin}",
            "comes in from the {origin} side",
            "enters the picture from the {origin}",
            "is coming in from the {origin}",
        ),
    ),
    "leave": (
        ("is going out", "moves out of the picture", "goes out of view", "is leaving", "moves out"),
        (
            "goes out of view to the {way}",
            "moves out of the picture to the {way}",
            "goes out to the {way} side",
            "leaves the picture to the {way}",
            "moves out to the {way}",
            "is leaving to the {way}",
        ),
    ),
    "cross": (
        ("goes across the picture", "is moving across", "crosses", "moves across the picture"),
        (
            "crosses the picture to the {way}",
            "moves across from {origin} to {way}",
            "goes across from {origin} to {way}",
            "moves across to the {way} side",
            "crosses from the {origin} to the {way} side",
            "goes from {origin} to {way}",
            "flies from {origin} to {way}",
        ),
    ),
    "stop": (
        ("comes in and stops in the middle", "moves in and stops", "goes in and stops"),
        (
            "comes from the {origin} side to the middle",
            "moves to the middle from the {origin}",
            "goes to the middle from the {origin} and stops",
            "comes in from the {origin} and stops",
            "goes in from the {origin} and stops in the middle",
        ),
    ),
    "rise": (("slowly rises", "is rising", "is moving up", "keeps rising", "slowly goes up"), ()),
    "fall": (("slowly sinks", "is sinking", "is going down", "keeps sinking", "goes down"), ()),
    "bounce": (
        ("bounces", "is hopping", "keeps hopping up and down", "is hopping up and down"),
        (),
    ),
    "shake": (("shakes", "is trembling", "keeps trembling", "is shaking from side to side"), ()),
    "spin": (("spins around", "is spinning", "turns around", "is turning around and around"), ()),
    "grow": (("is growing", "keeps growing", "becomes bigger", "gets larger", "slowly grows"), ()),
    "shrink": (
        ("is shrinking", "keeps shrinking", "becomes smaller", "is getting tiny", "slowly shrinks"),
        (),
    ),
    "blink": (("blinks", "is flickering", "keeps flickering", "flickers on and off"), ()),
    "circle": (
        ("moves in a circle", "is flying around in a loop", "keeps going round", "goes in circles"),
        (),
    ),
    "follow": (
        (
            "is following {it}",
            "keeps following {it}",
            "comes along after {it}",
            "is going after {it}",
            "flies after {it}",
            "moves along behind {it}",
        ),
        (
            "comes after {it} to the {way}",
            "is following {it} to the {way}",
            "keeps going after {it} to the {way}",
            "flies after {it} to the {way}",
        ),
    ),
    "meet": (
        (
            "comes to meet {it}",
            "moves up to {it}",
            "is meeting {it}",
            "is coming up to {it}",
            "goes over to {it}",
            "goes close to {it}",
        ),
        (
            "moves up to {it} from the {origin}",
            "comes from the {origin} up to {it}",
            "goes from the {origin} to meet {it}",
        ),
    ),
    "jump": (
        ("is jumping over {it}", "bounces over {it}", "goes over {it}", "is leaping over {it}"),
        (
            "jumps over {it} from {origin} to {way}",
            "bounces over {it} to the {way}",
            "goes over {it} to the {way}",
        ),
    ),
}
WORDS = {
    "small": ("small", "little", "tiny"),
    "big": ("big", "large", "huge"),
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "beach": ("on the beach", "at the beach", "on the sand by the sea"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "desert": ("in the desert", "among the cactus plants", "on the dunes"),
    "city": ("in the city", "in town", "in front of the houses"),
    "snow": ("in the snow", "on the snowy hills", "in winter"),
    "meadow": ("in the meadow", "on the grass", "among the flowers"),
    "cave": ("in the cave", "underground", "inside the dark cave"),
    "ocean": ("in the ocean", "under water", "in the deep sea"),
    "room": ("in the room", "indoors", "inside the house"),
    "space": ("in space", "among the planets", "in the night sky"),
}
TRAIN_FRAMES = (
    "{who} {does}{where}",
    "{where_first}, {who} {does}",
    "we see how {who} {does}{where}",
    "this is when {who} {does}{where}",
    "here is {who} that {does}{where}",
)
TEST_FRAMES = ("{where_first} we see how {who} {does}", "this is {who} that {does}{where}")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def noun_phrase(thing: Thing, rng: np.random.Generator) -> str:
    """A wording of size, colour and shape, such as "the little red ball"."""
    size, colour, shape = thing
    words = [_pick(rng, ("a", "the")), size and _pick(rng, WORDS[size]), colour]
    text = " ".join(word for word in [*words, _pick(rng, WORDS[shape])] if word)
    return "an" + text[1:] if text.startswith("a orange") else text


def phrase(description: Description, rng: np.random.Generator, split: str = "train") -> str:
    """Word a description as one sentence, lower case, without a final full stop.

    In the test split half of the sentences use a verb phrase or a sentence frame that training
    never uses; in the training split half of them one of `MORE`.
    """
    phrases = PHRASES[description.action]
    train_verbs = phrases.directed if description.direction else phrases.plain
    if split == "train" and rng.random() < 0.5:
        train_verbs = MORE[description.action][bool(description.direction)]
    test_verbs = phrases.test_directed if description.direction else phrases.test
    held_out = split == "test" and rng.random() < 0.5
    verbs = test_verbs if held_out and test_verbs else train_verbs
    frames = TEST_FRAMES if held_out and rng.random() < 0.5 else TRAIN_FRAMES
    way = description.direction or ""
    does = _pick(rng, verbs).format(
        way=way,
        origin={"left": "right", "right": "left", "": ""}[way],
        it=description.other and noun_phrase(description.other, rng),
    )
    where = _pick(rng, WORDS[description.place]) if description.place else ""
    frame = _pick(rng, [f for f in frames if where or "where_first" not in f])
    return frame.format(
        who=noun_phrase(description.actor, rng),
        does=does,
        where=f" {where}" if where else "",
        where_first=where,
    )


def event_query(
    index: FactIndex, fact: Fact, rng: np.random.Generator, split: str = "train"
) -> EventQuery | None:
    """A sentence true of the fact's event alone, or None if no description singles it out."""
    description = describe(index, fact, rng)
    if description is None:
        return None
    sentence = phrase(description, rng, split)
    return EventQuery(sentence, description, (fact.start_s, fact.end_s), fact.event_id)


def absent_query(
    index: FactIndex, rng: np.random.Generator, split: str = "train"
) -> EventQuery | None:
    """A sentence that is true of nothing in the film, though nearly."""
    description = absent(index, rng)
    return description and EventQuery(phrase(description, rng, split), description, None, None)


def film_queries(
    plan: FilmPlan, num_present: int, num_absent: int, seed: int
) -> tuple[list[EventQuery], list[EventQuery]]:
    """Draw `num_present` events, each singled out by its sentence, and `num_absent` near misses.

    Raises:
        ValueError: the film has too few events for that.
    """
    rng = np.random.default_rng([seed, plan.seed, 1])
    index = FactIndex(plan)
    present: dict[int, EventQuery] = {}
    for position in rng.permutation(len(plan.facts)):
        if len(present) == num_present:
            break
        query = event_query(index, plan.facts[position], rng, plan.split)
        if query and query.event_id not in present:
            present[query.event_id] = query
    absent_ones: dict[str, EventQuery] = {}
    for _ in range(20 * num_absent):
        query = absent_query(index, rng, plan.split)
        if query and len(absent_ones) < num_absent:
            absent_ones.setdefault(query.sentence, query)
    if len(present) < num_present or len(absent_ones) < num_absent:
        raise ValueError(
            f"film {plan.film_id} of {plan.duration_s:g} s has {len(present)} events to ask about "
            f"and {len(absent_ones)} near misses; {num_present} and {num_absent} were wanted"
        )
    return list(present.values()), list(absent_ones.values())
