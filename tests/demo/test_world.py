"""The demo world: what films contain, and what sentences are true of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from revisionllm.demo.world.language import (
    MORE,
    PHRASES,
    TEST_FRAMES,
    TRAIN_FRAMES,
    WORDS,
    Description,
    EventQuery,
    FactIndex,
    absent_query,
    event_query,
    film_queries,
    phrase,
)
from revisionllm.demo.world.plans import (
    HELD_OUT_PAIRS,
    SPLITS,
    plan_film,
    pose_of,
)

HOUR_S = 3600.0


def facts_true_of(query: EventQuery, plan) -> set[int]:
    """Naive oracle: events of all facts that agree with every attribute the sentence mentions."""
    said = query.description
    events = set()
    for fact in plan.facts:
        size, colour, shape = said.actor
        agrees = (
            fact.action == said.action
            and (fact.actor.colour, fact.actor.shape) == (colour, shape)
            and (size is None or fact.actor.size == size)
            and (said.direction is None or fact.direction == said.direction)
            and (said.place is None or fact.place == said.place)
        )
        if said.other is not None:
            other = fact.other
            agrees = agrees and other is not None
            agrees = agrees and (other.colour, other.shape) == said.other[1:]
            agrees = agrees and said.other[0] in (None, other.size)
        if agrees:
            events.add(fact.event_id)
    return events


@pytest.mark.parametrize("split", SPLITS)
def test_an_hour_has_hundreds_of_events_most_of_them_short(split):
    plan = plan_film(7, HOUR_S, split)
    lengths = {f.event_id: f.end_s - f.start_s for f in plan.facts}
    values = np.array(list(lengths.values()))
    assert 300 < len(values) < 900
    assert values.min() >= 2 and values.max() <= 20
    assert np.mean((values >= 3) & (values <= 6)) > 0.5
    assert {f.action for f in plan.facts} == set(PHRASES)


def test_shots_follow_each_other_and_hold_their_events():
    plan = plan_film(3, HOUR_S, "train")
    assert plan.shots[0].start_s == 0 and plan.shots[-1].end_s == HOUR_S
    for before, after in itertools.pairwise(plan.shots):
        assert before.end_s == after.start_s and before.place != after.place
    for shot in plan.shots:
        assert 1 <= len(shot.actors) <= 3
        assert len({(a.colour, a.shape) for a in shot.actors}) == len(shot.actors)
        for event in shot.events:
            assert shot.start_s <= event.start_s < event.end_s <= shot.end_s


def test_actors_move_without_jumps():
    plan = plan_film(11, 600.0, "test")
    for shot in plan.shots:
        for actor in range(len(shot.actors)):
            times = np.arange(shot.start_s, shot.end_s, 0.1)
            poses = [pose_of(shot, actor, t) for t in times]
            steps = [abs(a.x - b.x) + abs(a.y - b.y) for a, b in itertools.pairwise(poses)]
            assert max(steps, default=0) < 0.2


@pytest.mark.parametrize("split", SPLITS)
def test_a_sentence_is_true_of_exactly_its_event(split):
    plan = plan_film(5, HOUR_S, split)
    index, rng = FactIndex(plan), np.random.default_rng(0)
    queries = [event_query(index, fact, rng, split) for fact in plan.facts]
    queries = [query for query in queries if query]
    assert len(queries) > len(plan.facts) / 3
    for query in queries:
        assert facts_true_of(query, plan) == {query.event_id}
        fact = next(f for f in plan.facts if f.event_id == query.event_id)
        assert query.span_s == (fact.start_s, fact.end_s)


@pytest.mark.parametrize("split", SPLITS)
def test_an_absent_sentence_is_true_of_nothing_but_nearly(split):
    plan = plan_film(6, HOUR_S, split)
    index, rng = FactIndex(plan), np.random.default_rng(0)
    for _ in range(200):
        query = absent_query(index, rng, split)
        assert query and facts_true_of(query, plan) == set()
        near = [f for f in plan.facts if f.actor.colour == query.description.actor[1]]
        near += [f for f in plan.facts if f.action == query.description.action]
        assert near  # something in the film shares the actor's colour or the action


def test_most_events_have_distractors():
    plan = plan_film(8, HOUR_S, "test")
    for fact in plan.facts:
        others = [f for f in plan.facts if f.event_id != fact.event_id]
        assert any(f.action == fact.action for f in others)
        assert any(f.place == fact.place for f in others)
    same_actor = [sum(f.actor == g.actor for g in plan.facts) > 1 for f in plan.facts]
    assert np.mean(same_actor) > 0.95


def test_training_never_casts_held_out_pairs_and_tests_do():
    def pairs(split: str) -> set[tuple[str, str]]:
        actors = [
            a for seed in range(20) for s in plan_film(seed, 600, split).shots for a in s.actors
        ]
        return {(actor.colour, actor.shape) for actor in actors}

    assert not pairs("train") & HELD_OUT_PAIRS
    assert pairs("test") & HELD_OUT_PAIRS


def test_held_out_wording_uses_known_words_only():
    def words(texts) -> set[str]:
        return {word for text in texts for word in text.replace(",", " ").split()}

    known = words(TRAIN_FRAMES) | words(w for ws in WORDS.values() for w in ws) | {"a", "an", "the"}
    trained = [t for p in PHRASES.values() for t in p.plain + p.directed]
    trained += [t for plain, directed in MORE.values() for t in plain + directed]
    known |= words(trained)
    held_out = words(TEST_FRAMES) | words(
        t for p in PHRASES.values() for t in p.test + p.test_directed
    )
    assert held_out <= known
    testing = {t for p in PHRASES.values() for t in p.test + p.test_directed} | set(TEST_FRAMES)
    assert not {*trained, *TRAIN_FRAMES} & testing


def test_only_training_meets_more_wordings_and_each_means_one_action():
    actions = {}
    for action, phrases in PHRASES.items():
        plain, directed = MORE[action]
        assert bool(directed) == bool(phrases.directed)
        for wording in phrases.plain + phrases.directed + plain + directed:
            assert actions.setdefault(wording, action) == action
            assert ("{it}" in wording) == phrases.needs_other
    more = [wording.format(way="left") for wording in MORE["leave"][1]]
    described = Description("leave", (None, "red", "ring"), "left")
    rng = np.random.default_rng(0)
    for split in SPLITS:
        said = " | ".join(phrase(described, rng, split) for _ in range(200))
        assert any(wording in said for wording in more) == (split == "train")


def test_same_seed_same_film_and_sentences():
    first, second = plan_film(9, 900, "val"), plan_film(9, 900, "val")
    assert first == second
    assert film_queries(first, 5, 2, 0) == film_queries(second, 5, 2, 0)
    assert plan_film(10, 900, "val") != first


def test_too_short_a_film_says_so():
    with pytest.raises(ValueError, match="were wanted"):
        film_queries(plan_film(0, 30, "test"), 50, 5, 0)
    with pytest.raises(ValueError, match="at least 20"):
        plan_film(0, 5, "test")
    with pytest.raises(ValueError, match="split"):
        plan_film(0, 60, "training")
