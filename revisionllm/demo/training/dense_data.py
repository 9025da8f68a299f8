"""Questions about windows of demo films, packed, for teaching the demo's LLM dense grounding.

One window carries many questions: events it shows, hard negatives (events of elsewhere in the film,
and near misses of what it shows), and captioning questions that teach what frames and frame numbers
mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from revisionllm.demo.training.dense_readout import said, shown_table
from revisionllm.demo.world.captions import frame_caption, on_screen
from revisionllm.demo.world.language import (
    Description,
    EventQuery,
    FactIndex,
    absent_query,
    change_one,
    describe,
    event_query,
    full_description,
    may_be_asked,
    phrase,
    things_in_shot,
)
from revisionllm.demo.world.plans import FILM_FPS, Fact, FilmPlan, plan_film, pose_of
from revisionllm.formats.questions import question_text
from revisionllm.grounding.answers import NOT_PRESENT, format_segments, format_span
from revisionllm.grounding.windows import WindowClock
from revisionllm.train.collator import PackedCollator, padded_rows

WINDOW_S = 60.0
STRIDE_S = 30.0
FRAMES_PER_WINDOW = 100
FEATURE_FPS = 5.0
FEATURE_STEP = 3  # a window looks at every third feature: 100 of 300
FRAME_S = WINDOW_S / FRAMES_PER_WINDOW
CLOCK = WindowClock(WINDOW_S, FRAMES_PER_WINDOW)
CAPTION_QUESTION = "Frame {frame:02d} shows"
# How often `_confusable` sentences differ in each column of `TrainingFilm.attributes`: in what they
# do, which way, where, in size, colour, shape, and in size, colour and shape of the other one
CONFUSED = np.array([4, 4, 0.5, 1, 1.5, 3, 0.5, 1, 1])
# attributes that near misses change, as often as they stand here
NEAR_MISSES = (
    *("action", "action", "action", "shape", "shape", "shape"),
    *("direction", "direction", "size", "size", "colour", "place"),
)
SPAN_QUESTION = "From {first:02d} to {last:02d} we see"


@dataclass(frozen=True)
class DemoQuestion:
    """One question of a window. `span` is (first, last) frame, None for "Not Present" and captions;
    `grounds` tells the dense stage's questions from all others; `shown` are the frames in which
    whom it asks about can be seen where it says, whatever they do there; `description` is what it
    says, None for captions; `sentence` is that in words."""

    text: str
    answer: str
    span: tuple[int, int] | None
    grounds: bool
    shown: tuple[int, ...] = ()
    description: Description | None = None
    sentence: str = ""


@dataclass
class TrainingFilm:
    """A film's plan, its facts by description, and the features of every third frame."""

    plan: FilmPlan
    index: FactIndex
    features: np.ndarray  # float16 [T, D], T = every FEATURE_STEP-th frame from `phase`
    phase: int

    def time_s(self, number: int) -> float:
        """When feature number `number` was seen."""
        return (self.phase + FEATURE_STEP * number) / FILM_FPS

    def window_start_s(self, first: int) -> float:
        """Start of the window whose first frame is feature number `first` (frame centres)."""
        return self.time_s(first) - FRAME_S / 2

    def window_s(self, first: int) -> tuple[float, float]:
        """Start and end of that window."""
        start_s = self.window_start_s(first)
        return start_s, start_s + WINDOW_S

    def shown_in(self, window_s: tuple[float, float]) -> np.ndarray:
        """Which of the plan's facts a window shows some of, bool `[N]`."""
        return np.array([fact.overlaps(window_s) for fact in self.plan.facts], bool)

    def facts_in(self, window_s: tuple[float, float]) -> list[Fact]:
        """The facts that a window shows some of."""
        return [self.plan.facts[i] for i in np.flatnonzero(self.shown_in(window_s))]

    @cached_property
    def attributes(self) -> np.ndarray:
        """What sentences can say of each of the plan's facts, `[N, 9]` of str: a column per
        attribute, "" where there is nothing to say."""
        rows = []
        for full in map(full_description, self.plan.facts):
            things = (*full.actor, *(full.other or (None,) * 3))
            rows.append((full.action, full.direction, full.place, *things))
        return np.array([[value or "" for value in row] for row in rows])

    @cached_property
    def seen(self) -> list[tuple[str, list]]:
        """Place and visible actors of each frame that has a feature."""
        seen = []
        for number in range(len(self.features)):
            shot = self.plan.shot_at(self.time_s(number))
            poses = (pose_of(shot, i, self.time_s(number)) for i in range(len(shot.actors)))
            seen.append(
                (shot.place, [a for a, p in zip(shot.actors, poses, strict=True) if on_screen(p)])
            )
        return seen

    @cached_property
    def table(self) -> np.ndarray:
        """What each frame that has a feature shows (`shown_table`)."""
        times_s = np.array([self.time_s(number) for number in range(len(self.features))])
        return shown_table(self.seen, self.plan.facts, times_s)


def load_film(seed: int, duration_s: float, split: str, features: np.ndarray) -> TrainingFilm:
    """A training film from its seed and the features that `film_features` computed for it."""
    plan = plan_film(seed, duration_s, split)
    return TrainingFilm(plan, FactIndex(plan), features, seed % FEATURE_STEP)


def _share_inside(start_s: float, end_s: float, window_s: tuple[float, float]) -> float:
    return (min(end_s, window_s[1]) - max(start_s, window_s[0])) / (end_s - start_s)


def _grounding(query: EventQuery, span: tuple[int, int] | None, cast: list[tuple]) -> DemoQuestion:
    answer = NOT_PRESENT if span is None else format_span(*span)
    shown = tuple(frame for frame, seen in enumerate(cast) if shows(seen, query.description))
    text = question_text(query.sentence, "frames")
    return DemoQuestion(text, answer, span, True, shown, query.description, query.sentence)


def in_other_words(question: DemoQuestion, wording: str) -> DemoQuestion:
    """A grounding question as the other stages ask and answer it: the base LLM knows them all.

    A frame stands for the "video" (segment) of the long stage.
    """
    if wording == "yes_no":
        answer = "no" if question.span is None else "yes"
    else:
        answer = NOT_PRESENT if question.span is None else format_segments(*question.span)
    text = question_text(question.sentence, wording)
    return replace(question, text=text, answer=answer, span=None, grounds=False)


def shows(seen: tuple[str, list], description: Description) -> bool:
    """Whether a frame shows the description's actor, in its place if it names one."""
    place, actors = seen
    if description.place not in (None, place):
        return False
    size, colour, shape = description.actor
    return any(a.colour == colour and a.shape == shape and size in (None, a.size) for a in actors)


class WindowSampler:
    """Draws the questions of a window.

    Args:
        questions_per_window: in all; a third to a half of them are present.
        captions: how many of them are captioning questions.
        split: wording ("train" never uses test phrases).
        other_stages: share of the others that are asked as in the sparse and long stages, 0..1.
        negatives: also ask for what the window does not show (otherwise captions take their place,
            for the ablation).
    """

    def __init__(
        self,
        questions_per_window: int,
        captions: int,
        split: str = "train",
        other_stages: float = 0.0,
        negatives: bool = True,
    ) -> None:
        self.negatives = negatives
        self.questions_per_window = questions_per_window
        self.other_stages = other_stages
        self.captions = captions
        self.split = split

    def window(self, film: TrainingFilm, first: int, rng: np.random.Generator) -> DemoWindow:
        """The window that starts at feature number `first`, with its questions."""
        start_s, _ = window_s = film.window_s(first)
        wanted = self.questions_per_window - self.captions
        cast = film.seen[first : first + FRAMES_PER_WINDOW]
        questions = [self._caption(film, start_s, rng) for _ in range(self.captions)]
        present = wanted // 2 if self.negatives else wanted
        questions += self._present(film, window_s, present, cast, rng)
        while len(questions) < self.questions_per_window:
            if self.negatives:
                questions.append(self._negative(film, window_s, cast, rng))
            else:
                questions.append(self._caption(film, start_s, rng))
        for number, question in enumerate(questions):
            if question.grounds and rng.random() < self.other_stages:
                wording = ("yes_no", "video")[int(rng.integers(2))]
                questions[number] = in_other_words(question, wording)
        return DemoWindow(
            film.features[first : first + FRAMES_PER_WINDOW],
            [questions[i] for i in rng.permutation(len(questions))],
            film.table[first : first + FRAMES_PER_WINDOW],
        )

    def event_of(self, film: TrainingFilm, first: int, rng) -> EventQuery | None:
        """A sentence about an event of the window that starts at feature number `first`; None: it
        shows at least half of none that a sentence singles out."""
        return next(self._events(film, film.window_s(first), rng), None)

    def asked_of(self, film: TrainingFilm, first: int, query: EventQuery) -> DemoQuestion:
        """A sentence as a question about the window that starts at feature number `first`."""
        window_s = film.window_s(first)
        cast = film.seen[first : first + FRAMES_PER_WINDOW]
        start_s, end_s = query.span_s
        is_there = start_s < window_s[1] and window_s[0] < end_s
        labels = CLOCK.labels(query.span_s, window_s[0]) if is_there else None
        return _grounding(query, labels, cast)

    def _present(self, film, window_s, count, cast, rng) -> list[DemoQuestion]:
        found = itertools.islice(self._events(film, window_s, rng), count)
        return [_grounding(query, CLOCK.labels(query.span_s, window_s[0]), cast) for query in found]

    def _events(self, film, window_s, rng) -> Iterator[EventQuery]:
        """Sentences about events of which the window shows at least half, in random order."""
        facts = film.facts_in(window_s)
        for position in rng.permutation(len(facts)):
            fact = facts[position]
            if _share_inside(fact.start_s, fact.end_s, window_s) >= 0.5:
                query = event_query(film.index, fact, rng, self.split)
                if query:
                    yield query

    def _negative(self, film: TrainingFilm, window_s, cast, rng) -> DemoQuestion:
        while True:
            kind = rng.random()
            if kind < 0.3:
                query = self._confusable(film, window_s, rng)
            elif kind < 0.6:
                query = self._conjoined(film, window_s, rng)
            elif kind < 0.7:
                query = self._swapped(film, window_s, rng)
            elif kind < 0.85:
                query = self._near_miss(film, window_s, rng)
            elif kind < 0.96:
                query = self._from_elsewhere(film, window_s, rng)
            else:
                query = absent_query(film.index, rng, self.split)
            if query:
                return _grounding(query, None, cast)

    def _confusable(self, film, window_s, rng) -> EventQuery | None:
        """A true sentence about elsewhere that differs in one attribute from what the window shows.

        What a search over the whole film gets wrong: sentences say just what tells their event from
        the film's others, so that a direction decides as an action does.
        """
        facts, inside = film.plan.facts, film.shown_in(window_s)
        if not inside.any():
            return None
        table, away = film.attributes, np.flatnonzero(~inside)
        shown = table[inside][int(rng.integers(inside.sum()))]
        differs = table[away] != shown
        near = differs.sum(1) == 1
        if not near.any():
            return None
        columns = np.unique(differs[near].argmax(1))
        weights = CONFUSED[columns] / CONFUSED[columns].sum()
        chosen = away[near & differs[:, rng.choice(columns, p=weights)]]
        fact = facts[chosen[int(rng.integers(len(chosen)))]]
        return event_query(film.index, fact, rng, self.split)

    def _conjoined(self, film, window_s, rng) -> EventQuery | None:
        """What the window shows, with a size, a colour or a shape of somebody else in that shot.

        Whoever sees all attributes and not which belong together (illusory conjunctions,
        https://doi.org/10.1016/0010-0285(82)90006-8) takes it for true.
        """
        drawn = self._shown_fact(film, window_s, rng)
        if drawn is None:
            return None
        facts, fact, true_one = drawn
        full = full_description(fact)
        of_partner = full.other is not None and rng.random() < 0.4
        whom = full.other if of_partner else full.actor
        choices = [
            (column, value)
            for thing in things_in_shot(film.plan, fact)
            for column, value in enumerate(thing)
            if whom[column] not in (None, value)
        ]
        if not choices:
            return None
        column, value = choices[int(rng.integers(len(choices)))]
        said = list(true_one.other if of_partner else true_one.actor)
        said[column] = value
        part = {"other" if of_partner else "actor": tuple(said)}
        return self._untrue(film, facts, replace(true_one, **part), rng)

    def _swapped(self, film, window_s, rng) -> EventQuery | None:
        """What the window shows, said of somebody else who is there: another actor, half of the
        time of the same colour or shape, or of two that act together each in the other's part."""
        facts = film.facts_in(window_s)
        if len(facts) < 2:
            return None
        one = facts[int(rng.integers(len(facts)))]
        others = [f.actor for f in facts if f.actor != one.actor]
        alike = [a for a in others if a.colour == one.actor.colour or a.shape == one.actor.shape]
        if alike and rng.random() < 0.5:
            others = alike
        true_one = describe(film.index, one, rng)
        if true_one is None or not others:
            return None
        actor = others[int(rng.integers(len(others)))]
        size = true_one.actor[0] and actor.size
        wrong = replace(true_one, actor=(size, actor.colour, actor.shape))
        if true_one.other and rng.random() < 0.5:
            wrong = replace(true_one, actor=true_one.other, other=true_one.actor)
        return self._untrue(film, facts, wrong, rng)

    def _near_miss(self, film, window_s, rng) -> EventQuery | None:
        """What the window shows with one attribute changed, and true of nothing in the window."""
        drawn = self._shown_fact(film, window_s, rng)
        if drawn is None:
            return None
        facts, fact, true_one = drawn
        name = NEAR_MISSES[int(rng.integers(len(NEAR_MISSES)))]
        full = full_description(fact)  # descriptions seldom name directions and sizes
        if name == "direction":
            true_one = replace(true_one, direction=full.direction)
        if name == "size":
            true_one = replace(true_one, actor=full.actor)
        return self._untrue(film, facts, change_one(true_one, name, rng), rng)

    def _shown_fact(self, film, window_s, rng) -> tuple[list[Fact], Fact, Description] | None:
        """All facts that the window shows, one of them, and what a sentence says of that one."""
        facts = film.facts_in(window_s)
        if not facts:
            return None
        fact = facts[int(rng.integers(len(facts)))]
        description = describe(film.index, fact, rng)
        return description and (facts, fact, description)

    def _untrue(self, film, facts, wrong: Description, rng) -> EventQuery | None:
        """Words for it, if it may be asked and is true of none of the facts."""
        shown = {fact.event_id for fact in facts}
        if not may_be_asked(wrong, self.split) or film.index.events(wrong) & shown:
            return None
        return EventQuery(phrase(wrong, rng, self.split), wrong, None, None)

    def _from_elsewhere(self, film, window_s, rng) -> EventQuery | None:
        """A true sentence about another part of the film, at best about what the window shows."""
        facts = film.plan.facts
        shown = {f.actor for f in film.facts_in(window_s)}
        for _ in range(4):
            fact = facts[int(rng.integers(len(facts)))]
            if not fact.overlaps(window_s) and fact.actor in shown:
                return event_query(film.index, fact, rng, self.split)
        return None

    def _caption(self, film: TrainingFilm, start_s: float, rng) -> DemoQuestion:
        if rng.random() < 0.5:
            shown = [
                f
                for f in film.plan.facts
                if _share_inside(f.start_s, f.end_s, (start_s, start_s + WINDOW_S)) >= 0.99
            ]
            if shown:
                fact = shown[int(rng.integers(len(shown)))]
                first, last = CLOCK.labels((fact.start_s, fact.end_s), start_s)
                query = event_query(film.index, fact, rng, self.split)
                if query:
                    text = SPAN_QUESTION.format(first=first, last=last)
                    return DemoQuestion(text, query.sentence, None, False)
        frame = int(rng.integers(FRAMES_PER_WINDOW))
        time_s = start_s + (frame + 0.5) * FRAME_S
        caption = frame_caption(film.plan.shot_at(time_s), time_s, rng)
        return DemoQuestion(CAPTION_QUESTION.format(frame=frame), caption, None, False)


@dataclass(frozen=True)
class DemoWindow:
    """A window's features [F, D], its questions, and what its frames show (`shown_table`)."""

    features: np.ndarray
    questions: list[DemoQuestion]
    table: np.ndarray


@dataclass
class PackedBatch:
    """Windows with their packed questions (torch tensors; see `model.packing`).

    ids, positions, owners, visible: [B, N]; labels [B, N] (ignore index where not supervised); ask
    [B, Q]: packed index of each question's last prompt token, spans [B, Q, 2] (-1: not present),
    grounds [B, Q], shown bool [B, Q, F]; said [B, Q, S] and table bool [B, F, C, N] of
    `dense_readout`.
    """

    features: object
    ids: object
    owners: object
    positions: object
    visible: object
    labels: object
    ask: object
    spans: object
    grounds: object
    shown: object
    said: object
    table: object


class Packer(PackedCollator):
    """Turns windows and questions into a `PackedBatch`."""

    @property
    def prefix_length(self) -> int:
        """P: tokens before the video, the frames, and the words all grounding questions share."""
        return len(self.before) + FRAMES_PER_WINDOW + len(self.shared)

    def batch(self, windows: list[DemoWindow]) -> PackedBatch:
        """Pack windows, which all have the same number of questions."""
        import torch

        asked = [window.questions for window in windows]
        rows = [self.pack([(q.text, q.answer) for q in row], FRAMES_PER_WINDOW) for row in asked]
        shown = np.zeros((len(windows), len(asked[0]), FRAMES_PER_WINDOW), bool)
        for row, questions in enumerate(asked):
            for number, question in enumerate(questions):
                shown[row, number, list(question.shown)] = True
        spans = [[q.span or (-1, -1) for q in questions] for questions in asked]
        return PackedBatch(
            features=torch.from_numpy(np.stack([w.features for w in windows]).astype(np.float32)),
            **padded_rows(rows),
            ask=torch.tensor([row["ask"] for row in rows]),
            spans=torch.tensor(spans),
            grounds=torch.tensor([[q.grounds for q in questions] for questions in asked]),
            shown=torch.from_numpy(shown),
            said=torch.tensor([[said(q.description) for q in questions] for questions in asked]),
            table=torch.from_numpy(np.stack([w.table for w in windows])),
        )


def random_window(films: list[TrainingFilm], rng: np.random.Generator) -> tuple[TrainingFilm, int]:
    """A film and the number of a window's first feature, drawn uniformly."""
    film = films[int(rng.integers(len(films)))]
    return film, int(rng.integers(math.ceil(len(film.features) - FRAMES_PER_WINDOW + 1)))
