"""Levels and plans from a run's config."""

from __future__ import annotations

import math

import pytest

from revisionllm.grounding.levels import SpanCandidate, WindowAnswer
from revisionllm.grounding.ranking import surviving_ranges
from revisionllm.model.config import RunConfig
from revisionllm.search.cost import ModelShape, count_plan
from revisionllm.search.plans import bounded, long_level, search_plans

CONFIG = RunConfig(window_s=60.0, stride_s=30.0, segment_stride_s=12.0, num_segments=33)


@pytest.mark.parametrize("duration_s, keep", [(3600.0, 1.0), (3600.0, 0.4), (6.0, 1.0)])
def test_bounded_levels_keep_by_the_root_of_their_segments(duration_s, keep):
    (level,) = bounded([long_level(CONFIG)], duration_s, keep)
    wanted = math.ceil(keep * math.sqrt(max(1.0, duration_s / 12.0)))
    assert (level.keep_top, level.budget(1000), level.narrow) == (wanted, wanted, True)
    plain, kept = (
        search_plans(CONFIG, duration_s, keep=None, long_levels=[long_level(CONFIG)], long_keep=k)
        for k in (None, keep)
    )
    assert plain[-1].levels[0] == long_level(CONFIG)
    assert kept[-1].levels[0] == level


def test_what_a_bounded_level_keeps():
    """Best first, "Not Present" answers' ranges too; near repetitions do not count."""
    (level,) = bounded([long_level(CONFIG)], 48.0, 1.0)  # two ranges
    sure = [SpanCandidate(0, 24), SpanCandidate(0, 12, 0.9), SpanCandidate(120, 132, 0.1)]
    answers = [
        WindowAnswer(0, 0, 400, "From 0 to 4.", sure, 0.9),
        WindowAnswer(1, 400, 800, "Not Present", [SpanCandidate(500, 512)], 0.3),
    ]
    ranges, scores = surviving_ranges(level, answers, 800.0)
    assert ranges == [(0, 24), (500, 512)]
    assert scores == pytest.approx([0.9, 0.3])
    named, _ = surviving_ranges(long_level(CONFIG), answers, 800.0)
    assert named == [(0, 24), (0, 12), (120, 132)]


def test_coarser_levels_keep_more():
    coarse, fine = bounded([long_level(CONFIG), long_level(CONFIG)], 1200.0, 0.5)
    assert (coarse.keep_top, fine.keep_top) == (10, 5)


def test_joint_levels_have_no_margin_and_a_wide_cosine_level_before_them():
    options = {"keep": 1.0, "long_levels": [long_level(CONFIG)], "cosine_weight": 80.0}
    plans = search_plans(CONFIG, 3600.0, long_keep=1.0, **options)
    alone, joint, before = plans[1].levels[0], plans[2].levels[0], plans[3].levels
    assert (joint.cosine_weight, joint.margin) == (80.0, 0.0)
    assert (alone.keep_top, before[0].keep_top) == (22, 44)
    assert before[1] == joint
    naming = search_plans(CONFIG, 3600.0, **options)  # without a budget: as the long run names
    assert naming[3].levels[:2] == (alone, long_level(CONFIG))


def test_planned_work_grows_with_what_long_levels_keep():
    costs = [
        count_plan(
            search_plans(
                CONFIG, 3600.0, keep=None, long_levels=[long_level(CONFIG)], long_keep=keep
            )[-1],
            ModelShape(64, 2, 96),
            duration_s=3600.0,
            num_queries=1,
            feature_fps=5.0,
        ).dense_questions
        for keep in (0.2, 1.0, 2.0)
    ]
    assert costs == sorted(costs) and costs[0] < costs[-1]
