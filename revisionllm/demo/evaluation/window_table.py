"""What the dense LLM tells in single windows, by what a sentence gets wrong.

Every event is asked in the window that shows it nearest to its middle: as it is, and with one
attribute changed to what another actor of the same shot has, or to what nobody there has. Whoever
sees colours and shapes but not which belong together (illusory conjunctions,
https://doi.org/10.1016/0010-0285(82)90006-8) tells only the second kind. True sentences about a
pair of colour and shape that no training film casts are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from revisionllm.demo.world.language import (
    Description,
    FactIndex,
    change_one,
    describe,
    full_description,
    may_be_asked,
    phrase,
    things_in_shot,
)
from revisionllm.demo.world.plans import COLOURS, SHAPES, SIZES, Fact, FilmPlan, plan_film
from revisionllm.grounding.levels import Question
from revisionllm.records.films import Query

TRUE, KEPT = "true", "true, a pair kept from training"
# attributes of an actor, by their place in `Description.actor`
THINGS = {"shape": (2, SHAPES), "size": (0, SIZES), "colour": (1, COLOURS)}


def changed_sentences(
    index: FactIndex, fact: Fact, shown: set[int], rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """(kind, sentence) of an event: `TRUE` or `KEPT` first, then what is true of nothing that the
    window shows.

    Args:
        shown: ids of the events in the window.
    """
    true_one = describe(index, fact, rng)
    if true_one is None:
        return
    yield TRUE if may_be_asked(true_one, "train") else KEPT, phrase(true_one, rng, "test")
    for kind, wrong in _changed(index.plan, fact, true_one, rng):
        if may_be_asked(wrong, "test") and not index.events(wrong) & shown:
            yield kind, phrase(wrong, rng, "test")


def _changed(
    plan: FilmPlan, fact: Fact, true_one: Description, rng
) -> Iterator[tuple[str, Description]]:
    full = full_description(fact)
    things = things_in_shot(plan, fact)
    for name, (column, values) in THINGS.items():
        if full.actor[column] is None:
            continue
        there = {thing[column] for thing in things}
        for kind, seen in (("in the shot", True), ("not in the shot", False)):
            choices = [v for v in values if v != full.actor[column] and (v in there) == seen]
            if choices:
                actor = list(true_one.actor)
                actor[column] = str(rng.choice(choices))
                yield f"wrong {name}, {kind}", replace(true_one, actor=tuple(actor))
    with_way = replace(true_one, direction=full.direction)
    for name, start in (("direction", with_way), ("action", true_one), ("place", true_one)):
        yield f"wrong {name}", change_one(start, name, rng)


def window_rows(setting, films) -> list[dict]:
    """One row per kind of sentence: share that the dense LLM answers rightly, and how many."""
    told: dict[str, list[bool]] = {TRUE: [], KEPT: []}
    for name in THINGS:
        told |= {f"wrong {name}, in the shot": [], f"wrong {name}, not in the shot": []}
    told |= {f"wrong {name}": [] for name in ("direction", "action", "place")}
    for film, _ in films:
        plan = plan_film(int(film.vid[-5:]), film.duration_s, "test")
        index, rng = FactIndex(plan), np.random.default_rng([plan.seed, 17])
        windows = setting.dense().grid(film.duration_s)
        middles = np.array([(w.start_s + w.end_s) / 2 for w in windows])
        kinds, sentences, questions = [], [], []
        for fact in plan.facts:
            window = windows[int(np.abs(middles - (fact.start_s + fact.end_s) / 2).argmin())]
            if fact.start_s < window.start_s or fact.end_s > window.end_s:
                continue
            window_s = (window.start_s, window.end_s)
            shown = {f.event_id for f in plan.facts if f.overlaps(window_s)}
            for kind, sentence in changed_sentences(index, fact, shown, rng):
                questions.append(Question(len(sentences), (window,)))
                kinds.append(kind)
                sentences.append(sentence)

        engine = setting.engine.engine  # asked once: nothing to remember
        queries = [Query(str(number), sentence) for number, sentence in enumerate(sentences)]
        answers = engine.answer(setting.dense(), questions, film, queries)
        for kind, answer in zip(kinds, answers, strict=True):
            told[kind].append(answer.is_positive == (kind in (TRUE, KEPT)))
    return [
        {"method": kind, "share": 100 * float(np.mean(right)), "asked": len(right)}
        for kind, right in told.items()
        if right
    ]
