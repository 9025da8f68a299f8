"""Calibration: recovers known chances, isotonic against a brute-force oracle, survives JSON."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.grounding import calibration as c
from revisionllm.metrics.detection import calibration


def drawn(num, seed=0):
    rng = np.random.default_rng(seed)
    parts = {"presence": rng.uniform(size=num), "entropy": rng.normal(3.0, 2.0, size=num)}
    chance = 1 / (1 + np.exp(-(4 * parts["presence"] - 1.0 * parts["entropy"] + 1.5)))
    return parts, rng.uniform(size=num) < chance, chance


def test_logistic_recovers_the_model():
    parts, labels, chance = drawn(20_000)
    fitted = c.fit_logistic(parts, labels)
    assert fitted.names == ["entropy", "presence"]
    assert fitted.weights == pytest.approx([-1.0, 4.0], abs=0.15)
    assert np.abs(fitted.confidence(parts) - chance).max() < 0.03
    assert calibration(fitted.confidence(parts), np.array(labels)).ece < 0.01


def test_logistic_is_finite_on_separable_constant_and_one_sided_data():
    for labels in ([False, False, True, True], [True] * 4, [False] * 4):
        fitted = c.fit_logistic({"presence": [0.0, 0.1, 0.9, 1.0], "cosine": [0.3] * 4}, labels)
        confidence = fitted.confidence({"presence": np.array([0.0, 1.0]), "cosine": 0.3})
        assert np.isfinite(confidence).all()
        assert ((confidence > 0) & (confidence < 1)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3)), min_size=1, max_size=6))
def test_pool_adjacent_violators_against_brute_force(rows):
    """The optimum is block means of some partition into runs: try them all."""
    values = np.array([v / 8 for v, _ in rows])
    weights = np.array([float(m) for _, m in rows])
    got = c.pool_adjacent_violators(values, weights)
    assert (np.diff(got) >= -1e-12).all()
    best = np.inf
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        runs = np.split(np.arange(len(values)), np.flatnonzero(cuts) + 1)
        means = [np.average(values[r], weights=weights[r]) for r in runs]
        if np.all(np.diff(means) >= 0):
            fit = np.concatenate([np.full(len(r), m) for r, m in zip(runs, means, strict=True)])
            best = min(best, float((weights * (values - fit) ** 2).sum()))
    assert float((weights * (values - got) ** 2).sum()) == pytest.approx(best, abs=1e-12)


def test_isotonic_interpolates_and_ties_share_a_value():
    fitted = c.fit_isotonic("presence", [0.2, 0.2, 0.6, 0.8], [False, True, True, False])
    assert fitted.knots == [0.2, 0.6, 0.8]
    assert fitted.values == [0.5, 0.5, 0.5]
    fitted = c.fit_isotonic("presence", [0.0, 1.0], [False, True])
    assert fitted.confidence({"presence": np.array([-1.0, 0.25, 2.0])}).tolist() == [0.0, 0.25, 1.0]


def test_expected_calibration_error_by_hand():
    confidences, labels = [0.95, 0.85, 0.15, 0.15, 1.0], [True, False, False, True, True]
    bins = {9: [0, 4], 8: [1], 1: [2, 3]}
    naive = sum(
        abs(sum(labels[i] - confidences[i] for i in members)) / 5 for members in bins.values()
    )
    assert calibration(np.array(confidences), np.array(labels)).ece == pytest.approx(naive)


def test_json_round_trip():
    parts, labels, _ = drawn(200)
    for fitted in (
        c.fit_logistic(parts, labels),
        c.fit_isotonic("presence", parts["presence"], labels),
    ):
        assert c.from_dict(json.loads(json.dumps(c.to_dict(fitted)))) == fitted


@pytest.mark.parametrize("record", [{}, {"kind": "other"}, {"kind": "isotonic", "knots": []}])
def test_foreign_records_are_refused(record):
    with pytest.raises(ValueError, match="calibration"):
        c.from_dict(record)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="labels"):
        c.fit_isotonic("presence", [], [])
    with pytest.raises(ValueError, match="labels"):
        c.fit_logistic({"presence": [0.1]}, [True, False])
    with pytest.raises(ValueError, match="finite"):
        c.fit_logistic({"presence": [np.nan]}, [True])
    with pytest.raises(ValueError, match="cosine"):
        c.LogisticCalibration(["cosine"], [1.0], 0.0).confidence({"presence": 1.0})
