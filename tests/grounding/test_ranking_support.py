"""Agreement between overlapping windows."""

from __future__ import annotations

import numpy as np

from revisionllm.grounding.ranking import support


def test_support_is_the_best_agreement_of_another_candidate():
    spans = np.array([[0.0, 4.0], [1.0, 4.0], [50.0, 54.0], [50.0, 54.0]])
    presence = np.array([0.9, 0.8, 0.3, 0.5])
    np.testing.assert_allclose(support(spans, presence), [0.6, 0.675, 0.5, 0.3])


def test_a_lone_candidate_has_none():
    np.testing.assert_array_equal(support(np.array([[3.0, 5.0]]), np.array([1.0])), [0.0])
