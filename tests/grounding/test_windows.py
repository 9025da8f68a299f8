"""Window arithmetic: round trips, edges of the film, and the released evaluation's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.grounding import released as r
from revisionllm.grounding import windows as w
from revisionllm.grounding.answers import parse_first_integer, parse_released_span

ASSETS = Path(__file__).parents[1] / "assets" / "grounding"
RELEASED = json.loads((ASSETS / "parity_iou_windows.json").read_text())

durations_s = st.floats(0.04, 24 * 3600, allow_nan=False)


def frame_feature_indices(start_s, *, num_features, **clock):
    return w.WindowClock(**clock).feature_indices(start_s, num_features)


def span_to_labels(start_s, end_s, window_start_s, **clock):
    return w.WindowClock(**clock).labels((start_s, end_s), window_start_s)


def labels_to_span(first, last, window_start_s, **clock):
    return w.WindowClock(**clock).span(first, last, window_start_s)


def test_windows_of_a_two_hour_film():
    films = w.dense_windows(7200.0, window_s=125.0, stride_s=62.5)
    assert len(films) == 115
    assert films[1] == w.Window(1, 62.5, 187.5)
    assert films[-1] == w.Window(114, 7075.0, 7200.0)
    assert len(w.segments(7200.0, window_s=125.0, segment_stride_s=25.0)) == 284


def test_short_film_is_one_window():
    assert w.dense_windows(0.04, window_s=60.0, stride_s=30.0) == [w.Window(0, 0.0, 60.0)]
    assert w.dense_windows(60.0, window_s=60.0, stride_s=30.0) == [w.Window(0, 0.0, 60.0)]
    assert w.dense_windows(60.5, window_s=60.0, stride_s=30.0)[1] == w.Window(1, 0.5, 60.5)


@settings(max_examples=200, deadline=None)
@given(duration_s=durations_s, window_s=st.floats(30, 900), hops=st.floats(1, 6))
def test_windows_cover_the_film(duration_s, window_s, hops):
    stride_s = window_s / hops
    films = w.dense_windows(duration_s, window_s=window_s, stride_s=stride_s)
    starts = np.array([x.start_s for x in films])
    assert starts[0] == 0.0
    assert films[-1].end_s == pytest.approx(max(duration_s, window_s))
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= stride_s * (1 + 1e-5)).all()
    assert [x.index for x in films] == list(range(len(films)))


@pytest.mark.parametrize(
    ("duration_s", "stride_s"), [(0.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (9, 0.0), (9, 61)]
)
def test_impossible_windows_are_refused(duration_s, stride_s):
    with pytest.raises(ValueError, match="duration_s"):
        w.dense_windows(duration_s, window_s=60.0, stride_s=stride_s)


def test_centered_indices_against_a_naive_loop():
    for start_s in (0.0, 62.5, 100.0, 7075.0):
        got = frame_feature_indices(
            start_s, window_s=125.0, frames_per_window=250, feature_fps=5.0, num_features=36000
        )
        naive = [math.floor((start_s + (k + 0.5) * 0.5) * 5 + 0.5) for k in range(250)]
        assert got.tolist() == [min(i, 35999) for i in naive]
        assert got.dtype == np.int64


def test_ties_round_up_whatever_the_float_noise():
    got = frame_feature_indices(
        0.3, window_s=0.7, frames_per_window=7, feature_fps=10.0, num_features=100
    )
    assert got.tolist() == [4, 5, 6, 7, 8, 9, 10]  # middles at 3.5, 4.5, ... features


def test_indices_stay_in_the_film():
    got = frame_feature_indices(
        0.0, window_s=60.0, frames_per_window=100, feature_fps=5.0, num_features=1
    )
    assert got.tolist() == [0] * 100


@settings(max_examples=300, deadline=None)
@given(data=st.data(), frames=st.integers(1, 500), window_s=st.floats(1, 900))
def test_labels_round_trip(data, frames, window_s):
    start_s = data.draw(st.floats(0, 86400))
    first = data.draw(st.integers(0, frames - 1))
    last = data.draw(st.integers(first, frames - 1))
    span = labels_to_span(first, last, start_s, window_s=window_s, frames_per_window=frames)
    back = span_to_labels(*span, start_s, window_s=window_s, frames_per_window=frames)
    assert back == (first, last)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), frames=st.integers(2, 500), window_s=st.floats(1, 900))
def test_events_survive_labels_within_one_frame(data, frames, window_s):
    begin = data.draw(st.floats(0, 0.999)) * window_s
    end = begin + max(1e-3, data.draw(st.floats(0, 1))) * (window_s - begin)
    labels = span_to_labels(begin, end, 0.0, window_s=window_s, frames_per_window=frames)
    a, b = labels_to_span(*labels, 0.0, window_s=window_s, frames_per_window=frames)
    frame_s = window_s / frames
    slack = 2e-6 * frame_s
    assert a - slack <= begin < a + frame_s + slack
    assert b - frame_s - slack <= end <= b + slack


def test_events_outside_the_window_are_clipped():
    size = {"window_s": 60.0, "frames_per_window": 100}
    assert span_to_labels(-50.0, 30.0, 0.0, **size) == (0, 49)
    assert span_to_labels(30.0, 900.0, 0.0, **size) == (50, 99)
    assert span_to_labels(31.0, 31.0, 0.0, **size) == (51, 51)


def test_released_labels():
    size = {"window_s": 125.0, "frames_per_window": 250, "time_mapping": "released"}
    assert span_to_labels(5.3, 125.0, 0.0, **size) == (11, 249)
    assert labels_to_span(11, 249, 62.5, **size) == (68.0, 187.0)
    assert labels_to_span(0, 0, 0.0, **size) == (0.0, 0.5)
    with pytest.raises(ValueError, match="time_mapping"):
        labels_to_span(0, 0, 0.0, window_s=1.0, frames_per_window=1, time_mapping="other")


def test_windows_that_touch_ranges():
    grid = w.dense_windows(300.0, window_s=60.0, stride_s=30.0)
    starts_s, ends_s = (np.array([getattr(x, name) for x in grid]) for name in ("start_s", "end_s"))
    assert w.touching_indices(starts_s, ends_s, [(60.0, 90.0)]).tolist() == [1, 2]
    ranges_s = [(60.0, 60.0), (299.0, 300.0)]
    assert w.touching_indices(starts_s, ends_s, ranges_s).tolist() == [1, 2, 8]
    assert w.touching_indices(starts_s, ends_s, []).tolist() == []


def test_merge_and_pad_ranges():
    assert w.merge_ranges([(5, 6), (0, 2), (2, 3), (1, 1.5)]) == [(0, 3), (5, 6)]
    assert w.merge_ranges([(5, 6), (0, 3)], gap_s=2.0) == [(0, 6)]
    assert w.pad_ranges([(5, 6), (9, 12), (30, 40)], 2.0, 10.0) == [(3, 10.0)]


@pytest.mark.parametrize("case", RELEASED["window_table"])
def test_released_window_table(case):
    table = r.released_window_table(
        case["ctx_l"],
        window_s=case["debug_window"],
        feature_fps=case["fps"],
        hops_per_window=case["stride"],
        shift_tail=case["stride"] == 5,
    )
    assert len(table) == case["num_window"]
    assert table[:3].tolist() == case["first"]
    assert table[-3:].tolist() == case["last"]
    assert np.flatnonzero(table[:, 0] < 0).tolist() == case["negative_start"]
    outside = np.flatnonzero(table[:, 0] >= case["ctx_l"])
    assert (outside[0] if outside.size else None) == case["first_out_of_range"]


@pytest.mark.parametrize("name", ["dense_7001", "dense_7003", "retrieval_7101"])
def test_released_frame_indices(name):
    """Recorded from the released evaluation on films of 3600, 3457 and 5000 features."""
    recorded = np.load(ASSETS / "released_indices.npz")
    retrieval = name.startswith("retrieval")
    num_features = int(recorded[f"{name}_num_features"])
    table = r.released_window_table(
        num_features,
        window_s=125,
        feature_fps=5.0,
        hops_per_window=5 if retrieval else 2,
        shift_tail=retrieval,
    )
    ours = [r.released_indices(*row, 250, num_features) for row in table.tolist()]
    np.testing.assert_array_equal(np.array(ours), recorded[f"{name}_indices"])
    if not retrieval:
        film = [
            frame_feature_indices(
                i * 62.5,
                window_s=125.0,
                frames_per_window=250,
                feature_fps=5.0,
                num_features=num_features,
                time_mapping="released",
            )
            for i in range(len(table))
        ]
        np.testing.assert_array_equal(np.array(film), recorded[f"{name}_indices"])


@pytest.mark.parametrize("case", [c for c in RELEASED["grounding"] if not c["plus_baseline"]])
def test_released_span_arithmetic(case):
    frames, ious = {}, []
    for index, text in enumerate(case["outputs"]):
        span = parse_released_span(text)
        film_span = span and r.released_film_span(
            *span,
            index,
            frames_per_window=case["num_frames_clip"],
            num_film_frames=case["num_frames_video"],
        )
        if film_span:
            frames[str(index)] = list(r.released_widen(*span))
            ious.append(_rounded_iou(film_span, case["gt"]))
    assert frames == case["clip_frames"]
    assert ious == case["ious"]


def _rounded_iou(a, b):
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return round(shared / (max(a[1], b[1]) - min(a[0], b[0])), 2)


@pytest.mark.parametrize("case", RELEASED["retrieval"])
def test_released_retrieval_arithmetic(case):
    got = {}
    for i, text in enumerate(case["outputs"]):
        retrieved = r.released_retrieved_segments(
            parse_first_integer(text),
            zoom=case["zooms"][i],
            shuffle=case["indexes"][i],
            batch_start=case["starts"][i],
            segment_ids=case["grounding_windows"],
            batch_size=case["num_frames_video"],
        )
        if retrieved:
            got[str(i)] = list(retrieved)
    assert got == case["clip_frames"]


@pytest.mark.parametrize("case", RELEASED["gt_windows"])
def test_released_truth(case):
    assert r.released_truth_segments(case["start"], case["end"], case["n"]) == case["windows"]


@pytest.mark.parametrize(
    ("start_s", "end_s", "labels"),
    [(1.2, 3.2, (2, 5)), (1.3, 3.3, (3, 6)), (1.05, 1.15, (2, 2)), (1.24, 1.26, (2, 2))],
)
def test_rounded_labels_are_the_nearest_borders_and_at_least_one_frame(start_s, end_s, labels):
    """Frames of 0.5 s."""
    found = span_to_labels(
        start_s, end_s, 0.0, window_s=10.0, frames_per_window=20, time_mapping="rounded"
    )
    assert found == labels


def test_a_perfect_answer_overlaps_more_by_rounded_labels():
    """Mean IoU of events of 2 s at MAD's frames of 0.5 s: at most 0.80 and 0.885."""
    best = {}
    for mapping in ("centered", "rounded"):
        clock = {"window_s": 125.0, "frames_per_window": 250, "time_mapping": mapping}
        ious = []
        for start_s in np.linspace(20, 21, 500, endpoint=False):
            event = np.array([start_s, start_s + 2.0])
            span = labels_to_span(*span_to_labels(*event, 0.0, **clock), 0.0, **clock)
            shared = min(event[1], span[1]) - max(event[0], span[0])
            ious.append(shared / (max(event[1], span[1]) - min(event[0], span[0])))
        best[mapping] = np.mean(ious)
    assert best["centered"] == pytest.approx(0.80, abs=0.005)
    assert best["rounded"] == pytest.approx(0.885, abs=0.005)
