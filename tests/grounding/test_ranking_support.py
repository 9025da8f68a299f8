"""What overlapping windows say about each other's candidates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from revisionllm.grounding.levels import Level, SpanCandidate, WindowAnswer
from revisionllm.grounding.ranking import (
    candidates_of,
    joint_ranges,
    log_odds,
    second_looks,
    support,
)


def test_support_is_the_best_agreement_of_another_candidate():
    spans = np.array([[0.0, 4.0], [1.0, 4.0], [50.0, 54.0], [50.0, 54.0]])
    presence = np.array([0.9, 0.8, 0.3, 0.5])
    np.testing.assert_allclose(support(spans, presence), [0.6, 0.675, 0.5, 0.3])


def test_a_lone_candidate_has_none():
    np.testing.assert_array_equal(support(np.array([[3.0, 5.0]]), np.array([1.0])), [0.0])


def test_log_odds_tell_near_certain_from_certain_and_stay_finite():
    presence = np.array([0.0, 0.5, 0.99, 0.9999, 1.0])
    odds = log_odds(presence)
    np.testing.assert_allclose(odds[1:3], [0.0, np.log(99)], atol=2e-3)
    assert odds[3] - odds[2] > 4 and np.isfinite(odds).all()


def test_second_look_is_the_other_window_that_shows_most_of_the_span():
    """Ten random films against a loop over windows."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        answers = []
        for number in range(int(rng.integers(1, 7))):
            start_s = 30.0 * number
            spans = [
                SpanCandidate(start_s + a, start_s + b)
                for a, b in np.sort(rng.uniform(0, 60, (int(rng.integers(0, 3)), 2)))
            ]
            chance = float(rng.uniform(0, 1))
            answers.append(WindowAnswer(number, start_s, start_s + 60, "", spans, chance))
        found = candidates_of(answers, 1000.0)
        says, share = second_looks(found, answers)
        for i, (start_s, end_s) in enumerate(found.spans_s):
            best = (0.0, 0.0)
            for number, answer in enumerate(answers):
                shown = min(end_s, answer.end_s) - max(start_s, answer.start_s)
                shown = max(0.0, shown) / (end_s - start_s)
                if number != found.answer[i] and shown > best[0]:
                    best = (shown, shown * float(log_odds(np.array(answer.presence))))
            assert (share[i], says[i]) == pytest.approx(best)


JOINT = Level("long", "segments", 60.0, 10.0, group_size=33, keep_top=3, min_score=0.0)
JOINT = dataclasses.replace(JOINT, cosine_weight=2.0, zooms=(2, 1))


def test_joint_ranges_are_the_best_stretches_by_answers_and_cosine():
    """Ten random films against a loop over stretches."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        duration_s = float(rng.uniform(80, 400))
        answers = []
        for _ in range(int(rng.integers(0, 5))):
            spans = [
                SpanCandidate(float(a), float(b), float(w))
                for (a, b), w in zip(
                    np.sort(rng.uniform(0, duration_s, (3, 2))), rng.uniform(0.1, 1, 3), strict=True
                )
            ]
            answers.append(WindowAnswer(0, 0.0, 60.0, "", spans, float(rng.uniform(0, 1))))
        seen = [(0.0, 50.0), (60.0, duration_s)]
        stretches, chances, scores = [], [], []
        for start_s in [5.0 * i for i in range(int(np.ceil((duration_s - 10) / 5)))] + [
            duration_s - 10
        ]:
            if start_s + 10 <= 60 and start_s >= 50:
                continue  # not seen
            middle_s, chance = start_s + 5, 0.0
            for answer in answers:
                total = sum(span.score for span in answer.spans)
                for span in answer.spans:
                    if span.start_s <= middle_s < span.end_s:
                        chance += answer.presence * span.score / total / 2  # two zooms
            stretches.append((start_s, start_s + 10))
            chances.append(min(chance, 1.0))
            scores.append(np.log(chances[-1] + 1e-4) + 2.0 * np.sin(start_s))
        ranges, kept = joint_ranges(
            JOINT, answers, seen, duration_s, lambda spans_s: np.sin(spans_s[:, 0])
        )
        best = np.argsort(scores)[::-1][:3]
        np.testing.assert_allclose(ranges, [stretches[i] for i in best])
        np.testing.assert_allclose(kept, [chances[i] for i in best])


def test_joint_ranges_without_answers_go_by_cosine():
    silent = [WindowAnswer(0, 0.0, 60.0, "Not Present", [], 0.2)]
    ranges, chances = joint_ranges(
        JOINT, silent, [(0.0, 30.0)], 30.0, lambda spans_s: -spans_s[:, 0]
    )
    assert ranges == [(0.0, 10.0), (5.0, 15.0), (10.0, 20.0)]
    assert chances == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("change", [{"cosine_weight": -1.0}, {"keep_top": None}, {"kind": "dense"}])
def test_levels_refuse_weights_that_mean_nothing(change):
    with pytest.raises(ValueError, match="cosine_weight"):
        dataclasses.replace(JOINT, **change)
