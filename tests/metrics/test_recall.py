"""Field metrics against naive oracles that follow the definitions word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.metrics.detection import (
    MAP_THRESHOLDS,
    calibration,
    mean_average_precision,
    merge_spans,
    not_present,
    set_iou,
)
from revisionllm.metrics.recall import (
    IOU_THRESHOLDS,
    RECALL_RANKS,
    bootstrap_interval,
    bootstrap_means,
    iou_table,
    mean_iou,
    paired_difference,
    recall_at_k,
    span_iou,
)

# Small whole seconds make ties, empty spans and an IoU equal to a threshold common.
spans = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).map(tuple)
answers = st.lists(spans, max_size=7)
truths = st.lists(spans, min_size=1, max_size=3)
tasks = st.lists(st.tuples(answers, truths), min_size=1, max_size=8)


def arrays(rows) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 2)


def naive_iou(first, second) -> float:
    overlap = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - overlap
    return overlap / union if union else 0.0


@given(spans, spans)
def test_span_iou(first, second):
    assert span_iou(np.array(first), np.array(second)) == naive_iou(first, second)


@settings(max_examples=150)
@given(tasks)
def test_recall_and_mean_iou(items):
    table = iou_table([arrays(a) for a, _ in items], [arrays(t) for _, t in items])
    recall = recall_at_k(table)
    for threshold in IOU_THRESHOLDS:
        for rank in RECALL_RANKS:
            hits = sum(
                any(naive_iou(a, t) >= threshold for a in answer[:rank] for t in truth)
                for answer, truth in items
            )
            assert recall[f"R{rank}@{threshold:g}"] == pytest.approx(100 * hits / len(items))
    tops = [max(naive_iou(a[0], t) for t in truth) if a else 0.0 for a, truth in items]
    assert mean_iou(table) == pytest.approx(100 * sum(tops) / len(items))


@given(st.sampled_from(IOU_THRESHOLDS))
def test_an_iou_equal_to_the_threshold_is_a_hit_unless_strict(threshold):
    table = iou_table([arrays([(0, 10 * threshold)])], [arrays([(0, 10)])])
    assert recall_at_k(table)[f"R1@{threshold:g}"] == 100.0
    assert recall_at_k(table, strict=True)[f"R1@{threshold:g}"] == 0.0


def test_no_query_gives_nan_not_a_number():
    table = iou_table([], [])
    assert math.isnan(mean_iou(table)) and math.isnan(recall_at_k(table)["R1@0.5"])


def naive_average_precision(answer, truth, threshold) -> float:
    """QVHighlights: greedy matching, precision made monotone from the right, area by steps."""
    taken, hits = set(), []
    for prediction in answer[:10]:
        order = sorted(range(len(truth)), key=lambda j: -naive_iou(prediction, truth[j]))
        free = [j for j in order if j not in taken and naive_iou(prediction, truth[j]) >= threshold]
        taken.update(free[:1])
        hits.append(bool(free))
    precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    best_from = [max(precision[n:]) for n in range(len(hits))]
    return sum(best for best, hit in zip(best_from, hits, strict=True) if hit) / len(truth)


@settings(max_examples=100)
@given(tasks)
def test_mean_average_precision(items):
    got = mean_average_precision([arrays(a) for a, _ in items], [arrays(t) for _, t in items])
    for column, threshold in enumerate(MAP_THRESHOLDS):
        values = [naive_average_precision(a, t, threshold) for a, t in items]
        assert got[column] == pytest.approx(100 * sum(values) / len(items))


@given(answers, answers)
def test_set_iou_counts_seconds(first, second):
    def seconds(rows):
        return {second for start, end in rows for second in range(start, end)}

    together, both = seconds(first) | seconds(second), seconds(first) & seconds(second)
    wanted = len(both) / len(together) if together else 0.0
    assert set_iou(arrays(first), arrays(second)) == pytest.approx(wanted)
    assert np.diff(merge_spans(arrays(first)).ravel()).min(initial=0) >= 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration(items):
    result = calibration(np.array([c for c, _ in items]), np.array([h for _, h in items]))
    error = 0.0
    for index in range(10):
        inside = [(c, h) for c, h in items if min(int(c * 10), 9) == index]
        assert result.bin_counts[index] == len(inside)
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(h for _, h in inside) / len(inside)
            error += len(inside) / len(items) * abs(confidence - accuracy)
            assert result.bin_accuracy[index] == pytest.approx(accuracy)
        else:
            assert result.bin_confidence[index] is None
    assert result.ece == pytest.approx(error, abs=1e-12)


def test_not_present():
    absent = np.array([True, True, True, False, False])
    said = np.array([True, False, False, True, False])
    got = not_present(absent, said)
    assert (got["precision"], got["num_absent"], got["num_said_absent"]) == (50.0, 3, 2)
    assert got["recall"] == pytest.approx(100 / 3)
    assert not_present(absent, np.zeros(5, bool))["precision"] is None


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    interval = bootstrap_interval(values, num_resamples=2000)
    half = 1.96 * values.std() / 20
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.04)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.04)
    assert interval == bootstrap_interval(values, num_resamples=2000)


def test_bootstrap_of_whole_films_equals_a_naive_one():
    values, films = np.array([1.0, 2.0, 3.0, 10.0]), ["a", "a", "b", "c"]
    means = bootstrap_means(values, groups=films, num_resamples=50, seed=7)[:, 0]
    rng, held = np.random.default_rng(7), [[1.0, 2.0], [3.0], [10.0]]
    for mean in means:
        drawn = [value for film in rng.integers(0, 3, 3) for value in held[film]]
        assert mean == pytest.approx(sum(drawn) / len(drawn))


def test_paired_differences_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 10, 300)
    first, second = difficulty + 1 + rng.normal(0, 0.5, 300), difficulty + rng.normal(0, 0.5, 300)
    paired = paired_difference(first, second)
    assert 0 < paired.low < paired.mean < paired.high
    assert paired.high - paired.low < 0.1 * (
        bootstrap_interval(first).high - bootstrap_interval(first).low
    )
    with pytest.raises(ValueError, match="differ in shape"):
        paired_difference(first, second[:-1])
