"""Scores against naive oracles and against statistics recorded from the released code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.grounding import released as r
from revisionllm.grounding import scores as s
from revisionllm.grounding.answers import parse_released_span

ASSETS = Path(__file__).parents[1] / "assets" / "grounding"
RELEASED = np.load(ASSETS / "parity_scores.npz")


@pytest.mark.parametrize("case", ["a", "b", "c", "peaked", "inf"])
def test_released_entropies(case):
    stats = r.released_entropy_stats(RELEASED[f"ent_{case}_logits"])
    np.testing.assert_allclose(stats, RELEASED[f"ent_{case}_stats"], atol=1e-5)


def test_masked_entropy_against_a_naive_sum():
    rng = np.random.default_rng(0)
    logits, allowed = rng.normal(size=40), np.array([3, 5, 8])
    weights = [math.exp(logits[i]) for i in allowed]
    probs = [x / sum(weights) for x in weights]
    naive = -sum(p * math.log(p) for p in probs)
    assert s.token_entropy(logits, allowed) == pytest.approx(naive)
    assert s.presence(logits, allowed, 5) == pytest.approx(1 - probs[1])
    assert s.token_entropy(logits, np.array([7])) == 0.0


def test_all_masked_is_refused():
    with pytest.raises(ValueError, match="finite"):
        s.token_entropy(np.full(4, -np.inf))


def test_mean_entropy():
    assert s.mean_entropy([0.5, 1.5]) == 1.0
    assert s.mean_entropy([]) == 0.0


def test_span_cosine_against_a_naive_loop():
    rng = np.random.default_rng(1)
    frames, sentences = rng.normal(size=(50, 16)), rng.normal(size=(2, 16))
    cosine = s.span_cosine_of(s.frame_cosines(frames, sentences), feature_fps=5.0)
    spans = np.array([[0.0, 10.0], [1.0, 2.0], [3.05, 3.1], [9.9, 40.0], [50.0, 60.0]])
    rows = [range(0, 50), range(5, 10), [15], [49], [49]]
    for query in range(2):
        for got, row in zip(cosine(query, spans), rows, strict=True):
            values = [
                float(frames[i] @ sentences[query])
                / float(np.linalg.norm(frames[i]) * np.linalg.norm(sentences[query]))
                for i in row
            ]
            assert got == pytest.approx(np.mean(sorted(values)[-3:]), abs=1e-6)


def test_zero_features_have_no_direction():
    assert s.frame_cosines(np.zeros((2, 4)), np.ones((1, 4))).tolist() == [[0.0, 0.0]]


def test_released_cosine_by_hand():
    frames = np.array([[3.0, 0.0], [4.0, 1.0]])
    scaled = [[0.6, 0.0], [0.8, 1.0]]
    sentence = np.array([2.0, 1.0])
    products = [sum(a * b for a, b in zip(row, sentence, strict=True)) for row in scaled]
    assert r.released_cosine(frames, sentence) == pytest.approx(sum(products))
    assert r.released_cosine(frames, sentence, count=1) == pytest.approx(max(products))


@pytest.mark.parametrize("query", ["7001", "7002", "7003"])
def test_released_scores_of_a_whole_query(query):
    """Recorded from the released evaluation: answers, mean entropies and the scores it logged."""
    film = np.load(ASSETS / "released_film_scores.npz")
    record = json.loads((ASSETS / "released_film_scores.json").read_text())[query]
    steps = np.arange(record["num_features"])[:, None] * 7 + np.arange(768) + record["offset"]
    features = film["base"].astype(np.float32)[steps]
    for first, last in record["bumps"]:
        features[first : last + 1] += np.float32(0.35) * film["bump"]
    features = features.astype(np.float16).astype(np.float32)
    table = r.released_window_table(len(features), window_s=125, feature_fps=5.0).tolist()
    cosines, entropies = [], []
    for row, text, entropy in zip(table, record["answers"], record["mean_entropy"], strict=True):
        span = parse_released_span(text)
        if span:
            frames = features[r.released_indices(*row, 250, len(features))]
            cosines.append(r.released_span_cosine(frames, *span, film[f"cls_{query}"]))
            entropies.append(entropy)
    scores = r.merge_scores(r.normalise_by_max(cosines), r.normalise_by_max(entropies), "multiply")
    np.testing.assert_allclose(scores, record["scores"], atol=1e-5)


def test_normalise_and_merge():
    assert r.normalise_by_max(np.array([1.0, 4.0])).tolist() == [0.25, 1.0]
    assert r.normalise_by_max(np.zeros(2)).tolist() == [0.0, 0.0]
    assert r.merge_scores([1.0], [0.25], "add").tolist() == [0.75]
    assert r.merge_scores([1.0], [0.25], "multiply").tolist() == [4.0]
    assert np.isfinite(r.merge_scores([1.0], [0.0], "multiply")).all()
    with pytest.raises(ValueError, match="how"):
        r.merge_scores([1.0], [1.0], "mean")


def naive_iou(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - shared
    return shared / union if union > 0 else 0.0


def naive_suppress(spans, scores, threshold):
    kept = []
    for i in sorted(range(len(spans)), key=lambda i: (-scores[i], i)):
        if all(naive_iou(spans[k], spans[i]) <= threshold for k in kept):
            kept.append(i)
    return kept


span_lists = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 5)), max_size=30
)


@settings(max_examples=150, deadline=None)
@given(rows=span_lists, threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_suppress_against_naive(rows, threshold):
    spans = np.array([(a, a + length) for a, length, _ in rows], dtype=float).reshape(-1, 2)
    scores = np.array([score for _, _, score in rows], dtype=float)
    got = s.suppress(spans, scores, iou_threshold=threshold)
    assert got.tolist() == naive_suppress(spans, scores, threshold)
    assert s.suppress(spans, scores, iou_threshold=threshold, top_k=2).tolist() == got[:2].tolist()


def test_iou_over_the_hull_is_exact_where_peers_are():
    """A sum of lengths gives 0.49999999999999994 here."""
    assert float(s.span_iou(np.array([0.0, 3.2]), np.array([0.1, 6.2]))) == 0.5
    rng = np.random.default_rng(0)
    spans = np.sort(rng.uniform(0, 20, (500, 2, 2)), axis=2).round(1)
    for first, second in spans:
        start, end = max(first[0], second[0]), min(first[1], second[1])
        hull = max(first[1], second[1]) - min(first[0], second[0])
        wanted = (end - start) / hull if end > start else 0.0
        assert float(s.span_iou(first, second)) == wanted
