"""What overlapping windows say about each other's candidates."""

from __future__ import annotations

import numpy as np
import pytest

from revisionllm.grounding.levels import SpanCandidate, WindowAnswer
from revisionllm.grounding.ranking import candidates_of, log_odds, second_looks, support


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
