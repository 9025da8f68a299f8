"""Work counts against numbers counted by hand elsewhere, and against what searches really visit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from revisionllm.grounding.answers import NOT_PRESENT
from revisionllm.grounding.levels import Level, SpanCandidate, WindowAnswer
from revisionllm.grounding.recursion import search_many
from revisionllm.search import cost as c

SMALL = c.ModelShape(hidden=512, layers=8, intermediate=1376)
DENSE = Level("dense", "dense", 125.0, 62.5)
COSINE = Level("cosine", "cosine", 125.0, 25.0, keep_top=4)
LONG_100 = Level("long_100", "segments", 125.0, 25.0, group_size=100)
LONG_33 = dataclasses.replace(LONG_100, name="long_33", group_size=33)
FILM = {"duration_s": 7200.0, "feature_fps": 5.0}


def test_counts_of_the_two_shapes():
    """Counted independently: 25 M parameters; prefix 14 G / 3.7 T, question 1 / 260 G, adapter 11
    G.
    """
    assert SMALL.llm_params == pytest.approx(25e6, rel=0.02)
    assert SMALL.llm_flops(SMALL.prefix_tokens) == pytest.approx(14e9, rel=0.03)
    assert SMALL.llm_flops(20) == pytest.approx(1e9, rel=0.02)
    assert c.VICUNA_7B.llm_flops(c.VICUNA_7B.prefix_tokens) == pytest.approx(3.7e12, rel=0.01)
    assert c.VICUNA_7B.llm_flops(20) == pytest.approx(260e9, rel=0.01)
    assert SMALL.adapter_flops == pytest.approx(11e9, rel=0.01)


def test_exhaustive_dense_on_two_hours():
    """1.7 TFLOP for a first query and 0.1 for each further one; 0.06 GFLOP of cosine per query."""
    plan = c.Plan("exhaustive", (DENSE,), "exhaustive")
    one = c.count_plan(plan, SMALL, num_queries=1, **FILM)
    two = c.count_plan(plan, SMALL, num_queries=2, **FILM)
    assert one.dense_prefixes == one.dense_questions == 115
    assert one.llm_tokens == 115 * 303
    assert one.total_flops == pytest.approx(1.7e12, rel=0.05)
    assert two.total_flops - one.total_flops == pytest.approx(0.1e12, rel=0.2)
    with_cosine = c.Plan("cosine", (COSINE, DENSE))
    cosine = c.count_plan(with_cosine, SMALL, num_queries=1, **FILM).flops["cosine"]
    assert cosine == pytest.approx(0.06e9, rel=0.1)


def test_recursion_at_seven_billion():
    """One query: some 20 TFLOP to look at every segment at 100 and 33, against 430 exhaustive."""
    everything = c.Plan("coarse", (LONG_100, LONG_33), "exhaustive")
    exhaustive = c.Plan("exhaustive", (DENSE,), "exhaustive")
    recursion = c.Plan("recursion", (LONG_100, LONG_33, DENSE))
    coarse, dense, planned = (
        c.count_plan(plan, c.VICUNA_7B, num_queries=1, **FILM).total_flops
        for plan in (everything, exhaustive, recursion)
    )
    assert coarse == pytest.approx(20e12, rel=0.15)
    assert dense == pytest.approx(440e12, rel=0.05)
    assert planned < 0.2 * dense
    coarse, dense = (
        c.count_plan(plan, c.VICUNA_7B, num_queries=640, **FILM).total_flops
        for plan in (everything, exhaustive)
    )
    assert 0.5 < coarse / dense < 1  # at 640 queries per film the two come close


def test_shared_grids_are_encoded_once_and_zooms_are_asked_each():
    zoomed = dataclasses.replace(LONG_100, zooms=(4, 2, 1))
    plan = c.Plan("long", (zoomed, LONG_33), "exhaustive")
    cost = c.count_plan(plan, SMALL, num_queries=3, **FILM)
    assert cost.segments == 3 * 284
    assert cost.long_questions == 3 * (12 + 6 + 3 + 9)


def test_prefixes_are_shared_between_queries():
    plan = c.Plan("planned", (COSINE, DENSE))
    one = c.count_plan(plan, SMALL, num_queries=1, **FILM)
    many = c.count_plan(plan, SMALL, num_queries=200, **FILM)
    assert many.dense_questions == pytest.approx(200 * one.dense_questions)
    assert one.dense_prefixes == pytest.approx(one.dense_questions)
    assert many.dense_prefixes == pytest.approx(115, rel=1e-6)


def test_counts_bound_what_a_search_visits():
    """Scattered cosines, oracle answers: real visits stay at or below the count, same order."""
    rng = np.random.default_rng(0)
    events = rng.uniform(0, 7190, size=50)

    def cosine(query, spans):
        noise = np.random.default_rng(query).uniform(size=len(spans))
        return noise + ((spans[:, 0] <= events[query]) & (events[query] < spans[:, 1]))

    def predict(level, questions):
        answers = []
        for q in questions:
            w, at = q.window, events[q.query]
            present = w.start_s <= at < w.end_s
            text = "From 1 to 2." if present else NOT_PRESENT
            spans = [SpanCandidate(at, at + 5)] if present else []
            answers.append(WindowAnswer(w.index, w.start_s, w.end_s, text, spans, float(present)))
        return answers

    cosine_1 = dataclasses.replace(COSINE, keep_top=8)
    tenth = dataclasses.replace(COSINE, keep_top=round(0.1 * len(COSINE.grid(7200.0))))
    for levels in ((cosine_1, DENSE), (tenth, DENSE)):
        results = search_many(50, 7200.0, levels, predict, cosine=cosine)
        visited = np.mean([r.cost.dense_windows for r in results])
        counted = c.count_plan(c.Plan("p", levels), SMALL, num_queries=50, **FILM)
        assert 0.25 * counted.dense_questions / 50 < visited <= counted.dense_questions / 50


def test_planner_prefers_less_work_and_says_why():
    plans = c.candidate_plans(DENSE, cosine=COSINE, long_levels=[LONG_100, LONG_33])
    assert [p.name for p in plans] == [
        "exhaustive",
        "cosine > dense",
        "long_100 > long_33 > dense",
        "cosine > long_100 > long_33 > dense",
    ]
    choice = c.choose_plan(plans, c.VICUNA_7B, num_queries=1, **FILM)
    assert choice.plan.levels[0] is COSINE
    assert choice.cost.total_flops < 0.3 * 440e12
    assert choice.reason.startswith(choice.plan.name)
    assert "1 query" in choice.reason and "exhaustive" in choice.reason
    small = c.choose_plan([plans[0], plans[2]], SMALL, num_queries=1, **FILM)
    assert small.plan.name == "exhaustive"  # encoding every segment is dearer than all windows
    assert "1.76 TFLOP" in small.reason


@pytest.mark.parametrize("shape", [SMALL, c.VICUNA_7B])
@pytest.mark.parametrize("num_queries", [1, 20, 200, 640])
@pytest.mark.parametrize("duration_s", [20.0, 600.0, 7200.0, 86400.0])
def test_never_dearer_than_exhaustive(shape, num_queries, duration_s):
    plans = c.candidate_plans(DENSE, cosine=COSINE, long_levels=[LONG_33])
    film = {"duration_s": duration_s, "feature_fps": 5.0, "num_queries": num_queries}
    choice = c.choose_plan(plans, shape, **film)
    assert choice.cost.total_flops <= c.count_plan(plans[0], shape, **film).total_flops


def test_plans_without_coarse_levels():
    assert [p.name for p in c.candidate_plans(DENSE)] == ["exhaustive"]
    assert len(c.candidate_plans(DENSE, cosine=COSINE)) == 2
    only = c.choose_plan(c.candidate_plans(DENSE), SMALL, num_queries=2, **FILM)
    assert only.reason == "exhaustive: 1.88 TFLOP for 2 queries on 120 minutes"
    with pytest.raises(ValueError, match="no plan"):
        c.choose_plan([], SMALL, num_queries=1, **FILM)


def test_plans_are_compared_in_seconds_where_a_device_was_measured():
    """Adapters that take ten times as long for their FLOP turn the choice round."""
    plans = c.candidate_plans(DENSE, long_levels=[LONG_33])
    film = FILM | {"num_queries": 1}
    even = dict.fromkeys(("cosine", "adapter", "prefix", "question", "long"), 1.0)
    by_work = c.choose_plan(plans, c.VICUNA_7B, **film)
    assert c.choose_plan(plans, c.VICUNA_7B, **film, speeds=even).plan is by_work.plan is plans[1]
    slow = c.choose_plan(plans, c.VICUNA_7B, **film, speeds=even | {"adapter": 1000.0})
    assert slow.plan is plans[0] and " s for 1 query" in slow.reason


def test_measured_speeds_rank_the_demo_plans_as_they_were_measured():
    """An hour, 40 sentences: cosine then windows 7 s, every window 16 s, all levels 51 s."""
    speeds = c.device_speeds("cpu")
    assert c.device_speeds("abacus") is None
    work = {"cosine": 0.3e9, "adapter": 0.0, "prefix": 103.9e9, "question": 0.0, "long": 0.0}
    planned = c.PlanCost(flops=work | {"question": 111e9})
    everything = c.PlanCost(flops=work | {"question": 471.7e9})
    levels = c.PlanCost(flops=work | {"question": 96e9, "adapter": 1075e9, "long": 316e9})
    seconds = [cost.seconds(speeds) for cost in (planned, everything, levels)]
    assert seconds == pytest.approx([7.1, 15.7, 50.5], rel=0.25)
