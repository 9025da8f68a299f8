"""The CLIP baseline's merging, and its tuning."""

from __future__ import annotations

import numpy as np

from revisionllm.demo.evaluation.baselines import (
    Merging,
    best_threshold,
    chance_span,
    retrieve,
    smoothed,
    tune,
)


def bump(length: int, first: int, last: int) -> np.ndarray:
    scores = np.random.default_rng(0).normal(0, 0.01, length)
    scores[first : last + 1] += 1
    return scores


def test_retrieve_finds_a_plateau():
    spans = retrieve(bump(500, 200, 229), 5.0, Merging(0.2, 3.0), top_k=3)
    assert spans[0, 0] == 40.0 and spans[0, 1] == 46.0
    assert (spans[:, 1] > spans[:, 0]).all()
    ordered = spans[np.argsort(spans[:, 0])]
    assert (ordered[1:, 0] >= ordered[:-1, 1]).all()  # no two overlap


def test_retrieve_stays_short_and_inside():
    spans = retrieve(np.ones(20), 5.0, Merging(5.0, 3.0, longest_s=2.0), top_k=50)
    assert (spans[:, 1] - spans[:, 0] <= 2.0).all()
    assert spans[:, 0].min() >= 0 and spans[:, 1].max() <= 4.0


def test_smoothing_keeps_length_and_mean_of_constants():
    np.testing.assert_allclose(smoothed(np.full(30, 2.0), 5.0, 1.4), 2.0)
    assert len(smoothed(np.arange(7.0), 5.0, 5.0)) == 7


def test_tune_prefers_what_fits():
    rows = [bump(500, 100, 129), bump(500, 300, 329)]
    merging = tune(rows, [(20.0, 26.0), (60.0, 66.0)], 5.0)
    for row, start_s in zip(rows, (20.0, 60.0), strict=True):
        found = retrieve(row, 5.0, merging, 1)[0]
        assert abs(found[0] - start_s) < 1.5 and abs(found[1] - start_s - 6) < 1.5


def test_threshold_separates():
    threshold = best_threshold(np.array([0.6, 0.7, 0.9]), np.array([0.1, 0.3, 0.65]))
    assert 0.3 < threshold <= 0.6 or threshold == 0.7


def test_chance_is_inside_the_film():
    rng = np.random.default_rng(0)
    for _ in range(100):
        start_s, end_s = chance_span(60.0, 5.0, rng)
        assert start_s >= 0 and end_s <= 60.0
