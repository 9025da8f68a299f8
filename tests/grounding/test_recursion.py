"""The search: oracles find the event, liars and random predictors end within bounds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revisionllm.grounding.answers import NOT_PRESENT, format_segments, format_span
from revisionllm.grounding.calibration import fit_isotonic
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.ranking import VETO_FACTOR, voted_ranges
from revisionllm.grounding.recursion import ORDERS, search_many
from revisionllm.grounding.windows import Window, WindowClock, merge_ranges

FRAMES = 100

DENSE = Level("dense", "dense", window_s=60.0, stride_s=30.0)
COSINE = Level("cosine", "cosine", window_s=60.0, stride_s=12.0, keep_top=8)
LONG_100 = Level("long_100", "segments", window_s=60.0, stride_s=12.0, group_size=100)
LONG_33 = dataclasses.replace(LONG_100, name="long_33", group_size=33)


def search(duration_s, levels, predict, **options):
    """`search_many` for one query."""
    return search_many(1, duration_s, levels, predict, **options)[0]


class Oracle:
    """Answers truthfully for events[query] = (start_s, end_s) or None; keeps the calls it got."""

    def __init__(self, events, frames=FRAMES):
        self.events, self.frames = events, frames
        self.calls = []

    def __call__(self, level, questions):
        self.calls.append((level.name, list(questions)))
        ask = self.dense if level.kind == "dense" else self.long
        return [ask(level, q, self.events[q.query]) for q in questions]

    def dense(self, level, question, event):
        w = question.window
        shared = event and min(event[1], w.end_s) - max(event[0], w.start_s)
        if not event or shared <= 0:
            return WindowAnswer(w.index, w.start_s, w.end_s, NOT_PRESENT, [], 0.0)
        clock = WindowClock(level.window_s, self.frames)
        labels = clock.labels(event, w.start_s)
        span = SpanCandidate(*clock.span(*labels, w.start_s))
        presence = shared / (event[1] - event[0])
        return WindowAnswer(w.index, w.start_s, w.end_s, format_span(*labels), [span], presence)

    def long(self, level, question, event):
        first_window = question.windows[0]
        head = (first_window.index, first_window.start_s, first_window.end_s)
        middle = event and (event[0] + event[1]) / 2
        holds = [bool(event) and w.start_s <= middle < w.end_s for w in question.windows]
        if not any(holds):
            return WindowAnswer(*head, NOT_PRESENT, [], 0.0)
        first = last = holds.index(True)
        while last + 1 < len(holds) and holds[last + 1]:
            last += 1
        shown = (first * question.repeat, (last + 1) * question.repeat - 1)
        ranges = question.ranges(*shown, narrow=level.narrow)
        spans = [SpanCandidate(*r) for r in ranges]
        return WindowAnswer(*head, format_segments(*shown), spans, 1.0)

    def cosine(self, query, spans_s):
        event = self.events[query]
        if not event:
            return np.zeros(len(spans_s))
        middle = (event[0] + event[1]) / 2
        return ((spans_s[:, 0] <= middle) & (middle < spans_s[:, 1])).astype(float)


def check_result(result, duration_s, levels):
    """What holds for any predictor."""
    for moment in result.moments:
        assert 0 <= moment.start_s < moment.end_s <= duration_s
        assert math.isfinite(moment.score)
        assert all(math.isfinite(v) for v in moment.parts.values())
    scores = [m.score for m in result.moments]
    assert scores == sorted(scores, reverse=True)
    for report, level in zip(result.levels, levels, strict=True):
        count = len(level.grid(duration_s))
        assert set(report.visited) <= set(range(count))
        most = max(Counter(report.visited).values(), default=0)
        assert most <= len(level.zooms)
    if result.levels[-1].visited:
        assert result.moments


def check_visits(calls, levels):
    """No (level, query, zoom, window) is asked twice, no level more than twice."""
    seen = Counter(
        (name, q.query, q.repeat, w.index) for name, qs in calls for q in qs for w in q.windows
    )
    assert max(seen.values(), default=0) <= 1
    assert max(Counter(name for name, _ in calls).values(), default=0) <= 2
    sizes = {level.name: level.group_size for level in levels}
    assert all(q.num_positions <= max(sizes[n], q.repeat) for n, qs in calls for q in qs)


@st.composite
def layouts(draw):
    """Any number of coarse levels over any grid, a dense level at the end."""
    window_s = draw(st.floats(2, 300))
    dense = Level("dense", "dense", window_s, window_s / draw(st.sampled_from([1, 2, 5])))
    levels = []
    for i in range(draw(st.integers(0, 3))):
        segment_s = draw(st.floats(2, 600))
        stride_s = segment_s / draw(st.sampled_from([1, 2.5, 5]))
        if draw(st.booleans()):
            keep = draw(st.integers(1, 9))
            levels.append(Level(f"cos{i}", "cosine", segment_s, stride_s, keep_top=keep))
            continue
        zooms = draw(st.sampled_from([(1,), (2, 1), (4, 2, 1)]))
        joint = {"keep_top": 12, "min_score": 0.0, "cosine_weight": 20.0}
        levels.append(
            Level(
                f"long{i}",
                "segments",
                segment_s,
                stride_s,
                group_size=draw(st.sampled_from([1, 33, 100, 1000])),
                zooms=zooms,
                min_votes=draw(st.integers(1, len(zooms))),
                narrow=draw(st.booleans()),
                fill_groups=draw(st.booleans()),
                **draw(st.sampled_from([{}, joint])),
            )
        )
    return [*levels, dense]


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    levels=layouts(),
    order=st.sampled_from(ORDERS),
    seed=st.sampled_from([None, 3]),
)
def test_an_oracle_finds_the_event(data, levels, order, seed):
    window_s = levels[-1].window_s
    duration_s = data.draw(st.floats(0.04, 100 * window_s))
    begin = data.draw(st.floats(0, 0.99)) * duration_s
    end = begin + data.draw(st.floats(0.01, 1)) * (min(duration_s - begin, 2 * window_s))
    oracle = Oracle([(begin, end)])
    result = search(
        duration_s, levels, oracle, order=order, cosine=oracle.cosine, shuffle_seed=seed
    )
    check_result(result, duration_s, levels)
    check_visits(oracle.calls, levels)
    assert not any(report.fell_back for report in result.levels)
    best, frame_s = result.moments[0], window_s / FRAMES
    assert best.start_s < end and begin < best.end_s
    if end - begin <= window_s - levels[-1].stride_s:
        assert result.found
        assert best.start_s == pytest.approx(begin, abs=frame_s * 1.001)
        assert best.end_s == pytest.approx(end, abs=frame_s * 1.001)


@pytest.mark.parametrize("num_segments", [1, 33, 100, 1000])
@pytest.mark.parametrize("zooms", [(1,), (2,), (4, 2, 1)])
def test_segments_only(num_segments, zooms):
    """A search may end in segments; the moment is the segments that hold the event."""
    level = dataclasses.replace(LONG_100, group_size=num_segments, zooms=zooms)
    oracle = Oracle([(500.0, 510.0)])
    result = search(3600.0, [level], oracle)
    assert result.found
    assert result.moments[0].start_s <= 505.0 < result.moments[0].end_s
    assert result.cost.segments == len(level.grid(3600.0))
    assert result.levels[0].questions == sum(
        math.ceil(result.cost.segments / max(1, num_segments // z)) for z in zooms
    )


@settings(max_examples=80, deadline=None)
@given(
    levels=layouts(),
    order=st.sampled_from(ORDERS),
    duration_s=st.floats(0.04, 4000),
    seed=st.integers(0, 2**31),
    fallback_top=st.integers(0, 6),
    most_windows=st.sampled_from([None, 1, 3, 20]),
)
def test_random_predictors_end(levels, order, duration_s, seed, fallback_top, most_windows):
    if order == "coarse_to_fine":
        levels[-1] = dataclasses.replace(levels[-1], most_windows=most_windows)
    rng = np.random.default_rng(seed)
    calls = []

    def predict(level, questions):
        calls.append((level.name, list(questions)))
        return [liar(q) for q in questions]

    def liar(question):
        w = question.windows[0]
        ends = rng.normal(duration_s / 2, duration_s, size=(rng.integers(0, 3), 2)).tolist()
        spans = [SpanCandidate(a, b, float(rng.uniform())) for a, b in ends]
        text = rng.choice([NOT_PRESENT, "From 1 to 2.", "yes", "", "From 9 to", "7"])
        presence = float(rng.choice([0.0, 1.0, rng.uniform()]))
        return WindowAnswer(w.index, w.start_s, w.end_s, str(text), spans, presence, 1.0)

    options = {
        "order": order,
        "cosine": lambda query, spans: rng.normal(size=len(spans)),
        "fallback_top": fallback_top,
        "top_k": 5,
    }
    results = search_many(2, duration_s, levels, predict, **options)
    check_visits(calls, levels)
    for result in results:
        check_result(result, duration_s, levels)
        visited = len(result.levels[-1].visited)
        assert levels[-1].most_windows is None or visited <= levels[-1].most_windows
        assert len(result.moments) <= 5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("says", [NOT_PRESENT, "From 00 to 99."])
def test_constant_liars_end(order, says):
    def predict(level, questions):
        present = says != NOT_PRESENT
        return [
            WindowAnswer(
                q.windows[0].index,
                q.windows[0].start_s,
                q.windows[-1].end_s,
                says,
                [SpanCandidate(q.windows[0].start_s, q.windows[-1].end_s)] if present else [],
                float(present),
            )
            for q in questions
        ]

    levels = [LONG_100, LONG_33, DENSE]
    result = search(86_400.0, levels, predict, order=order)
    check_result(result, 86_400.0, levels)
    assert result.found == (says != NOT_PRESENT)
    if order == "coarse_to_fine" and says == NOT_PRESENT:
        assert all(report.fell_back for report in result.levels)
        assert result.cost.dense_windows < 40


def test_pruning_skips_work_and_counts_it():
    oracle = Oracle([(5000.0, 5020.0)])
    levels = [COSINE, LONG_33, DENSE]
    result = search(7200.0, levels, oracle, cosine=oracle.cosine)
    assert result.found
    assert result.cost.cosine_spans == len(COSINE.grid(7200.0)) == 596
    assert result.cost.segments < 40
    assert result.cost.dense_windows == 7
    assert result.cost.questions == sum(len(qs) for _, qs in oracle.calls)
    assert [r.questions for r in result.levels] == [0, 1, 7]
    exhaustive = search(7200.0, [DENSE], Oracle([(5000.0, 5020.0)]))
    assert exhaustive.cost.dense_windows == 239
    assert exhaustive.moments[0].start_s == result.moments[0].start_s


def test_narrow_ranges_visit_less():
    def dense_windows(narrow):
        level = dataclasses.replace(LONG_100, narrow=narrow)
        return search(7200.0, [level, DENSE], Oracle([(5000.0, 5020.0)])).cost.dense_windows

    assert dense_windows(True) < dense_windows(False)


def test_many_queries_are_one_call_per_level_and_equal_one_by_one():
    events = [(100.0 * i + 7, 100.0 * i + 19) for i in range(30)] + [None]
    oracle = Oracle(events)
    levels = [COSINE, LONG_33, DENSE]
    many = search_many(31, 3600.0, levels, oracle, cosine=oracle.cosine)
    assert [name for name, _ in oracle.calls] == ["long_33", "dense", "dense"]
    for i, event in enumerate(events):
        alone = Oracle([event])
        assert search(3600.0, levels, alone, cosine=alone.cosine) == many[i]
    assert [r.found for r in many] == [True] * 30 + [False]


def test_not_found_still_has_candidates_and_takes_a_bounded_second_look():
    oracle = Oracle([None])
    result = search(3600.0, [COSINE, DENSE], oracle, cosine=oracle.cosine, fallback_top=3)
    assert not result.found
    assert result.levels[1].fell_back
    assert len(oracle.calls[1][1]) == 3
    assert 0 < len(result.moments) <= 3
    without = search(3600.0, [COSINE, DENSE], Oracle([None]), cosine=oracle.cosine, fallback_top=0)
    assert without.cost.dense_windows == result.cost.dense_windows - 3


def test_second_look_recovers_what_a_coarse_level_lost():
    """The long level points to the wrong place; cosine knows better once dense finds nothing."""
    truth = Oracle([(3000.0, 3010.0)])
    liar = Oracle([(600.0, 610.0)])

    def predict(level, questions):
        return (liar if level.kind == "segments" else truth)(level, questions)

    result = search(3600.0, [LONG_33, DENSE], predict, cosine=truth.cosine, fallback_top=2)
    assert result.found
    assert result.moments[0].start_s == pytest.approx(3000.0, abs=0.6)
    assert result.levels[1].fell_back


def test_fine_to_coarse_vetoes_what_the_coarse_level_does_not_name():
    """Dense sees the event twice; the long level names the second place only."""

    def predict(level, questions):
        real, fake = Oracle([(3000.0, 3010.0)]), Oracle([(600.0, 610.0)])
        answers = real(level, questions)
        if level.kind == "segments":
            return answers
        return [a if a.spans else b for a, b in zip(answers, fake(level, questions), strict=True)]

    plain = search(3600.0, [DENSE], predict)
    assert [round(m.start_s / 600) for m in plain.moments[:2]] == [1, 5]
    for order in ("fine_to_coarse", "exhaustive"):
        result = search(3600.0, [LONG_33, DENSE], predict, order=order)
        assert [round(m.start_s / 600) for m in result.moments[:2]] == [5, 1]
        assert [m.score for m in result.moments[:2]] == [1.0, pytest.approx(VETO_FACTOR)]
        assert result.cost.dense_windows == 119
    assert result.cost.segments == len(LONG_33.grid(3600.0))
    inverse = search(3600.0, [LONG_33, DENSE], predict, order="fine_to_coarse")
    assert inverse.cost.segments < 40


def test_silent_coarse_levels_do_not_filter():
    def predict(level, questions):
        return Oracle([None if level.kind == "segments" else (600.0, 610.0)])(level, questions)

    for order in ("fine_to_coarse", "exhaustive"):
        assert search(3600.0, [LONG_33, DENSE], predict, order=order).moments[0].score == 1.0


def test_scores_are_calibrated_presence_times_weight():
    def predict(level, questions):
        return [
            WindowAnswer(
                q.window.index,
                q.window.start_s,
                q.window.end_s,
                "From 1 to 2.",
                [SpanCandidate(0.0, 10.0, 1.0), SpanCandidate(30.0, 35.0, 0.5)],
                presence=0.8,
                entropy=0.3,
            )
            for q in questions
        ]

    plain = search(60.0, [DENSE], predict)
    assert [m.score for m in plain.moments] == [0.8, 0.4]
    parts = {"presence": 0.8, "entropy": 0.3, "support": 0.0, "second_look": 0.0, "seen_twice": 0.0}
    assert plain.moments[0].parts == pytest.approx(parts | {"log_odds": math.log(4)}, abs=1e-4)
    assert plain.moments[0].level == "dense"
    calibration = fit_isotonic("presence", [0.0, 0.8, 0.8], [False, True, False])
    calibrated = search(
        60.0, [DENSE], predict, calibration=calibration, cosine=lambda q, s: np.ones(len(s))
    )
    assert [m.score for m in calibrated.moments] == [0.5, 0.25]
    assert calibrated.moments[0].parts["cosine"] == 1.0
    assert calibrated.confidence == 0.5 and calibrated.found
    assert not search(60.0, [DENSE], predict, calibration=calibration, threshold=0.6).found


def test_overlapping_moments_are_suppressed():
    def predict(level, questions):
        spans = [SpanCandidate(0.0, 10.0, 0.9), SpanCandidate(2.0, 12.0, 0.3)]
        return [WindowAnswer(0, 0.0, 60.0, "From 1 to 2.", spans, 1.0) for _ in questions]

    assert [(m.start_s, m.end_s) for m in search(60.0, [DENSE], predict).moments] == [(0, 10)]


def test_min_score_replaces_the_greedy_decision():
    """A hesitant level (presence 0.3, answers Not Present) survives when its score is enough."""

    def predict(level, questions):
        answers = Oracle([(3000.0, 3010.0)])(level, questions)
        if level.kind == "dense":
            return answers
        return [
            dataclasses.replace(a, answer=NOT_PRESENT, presence=0.3 if a.spans else 0.1)
            for a in answers
        ]

    lenient = dataclasses.replace(LONG_33, min_score=0.2)
    result = search(3600.0, [lenient, DENSE], predict)
    assert result.found and not result.levels[0].fell_back
    assert search(3600.0, [LONG_33, DENSE], predict).levels[0].fell_back


def test_seeded_order_is_seeded():
    def orders(seed):
        oracle = Oracle([(3000.0, 3010.0)])
        search(3600.0, [LONG_33, DENSE], oracle, shuffle_seed=seed)
        return [[w.index for w in q.windows] for q in oracle.calls[0][1]]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert [sorted(group) for group in orders(1)] == orders(None)


def test_groups_are_balanced_and_can_be_filled():
    oracle = Oracle([(3000.0, 3010.0)])
    search(60.0 + 12.0 * 100, [LONG_100, DENSE], Oracle([None]))
    search(60.0 + 12.0 * 100, [LONG_100, DENSE], oracle)
    assert [len(q.windows) for q in oracle.calls[0][1]] == [51, 50]
    filled = dataclasses.replace(LONG_33, fill_groups=True)
    oracle = Oracle([(3000.0, 3010.0)])
    search(3600.0, [COSINE, filled, DENSE], oracle, cosine=oracle.cosine)
    assert [len(q.windows) for q in oracle.calls[0][1]] == [33]


def test_question_ranges():
    windows = tuple(Window(i, 10.0 * i, 10.0 * i + 30.0) for i in (4, 1, 2))
    question = Question(0, windows, repeat=2)
    assert question.num_positions == 6
    assert question.ranges(0, 5) == [(10.0, 50.0), (40.0, 70.0)]
    assert question.ranges(0, 5, narrow=True) == [(20.0, 40.0), (40.0, 70.0)]
    assert question.ranges(3, 3) == [(10.0, 40.0)]
    with pytest.raises(ValueError, match="positions"):
        question.ranges(0, 6)


def test_votes():
    zooms = [[(0.0, 10.0)], [(5.0, 20.0)], [(30.0, 40.0)]]
    assert voted_ranges(zooms, 1) == [(0.0, 20.0), (30.0, 40.0)]
    assert voted_ranges(zooms, 2) == [(5.0, 10.0)]
    assert voted_ranges(zooms, 3) == [(5.0, 10.0)]
    assert voted_ranges([[], []], 2) == []


@settings(max_examples=100, deadline=None)
@given(
    zooms=st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=4), max_size=4
    ),
    min_votes=st.integers(1, 4),
)
def test_votes_against_counting_every_second(zooms, min_votes):
    ranges = [merge_ranges([(a, a + length) for a, length in rows]) for rows in zooms]
    count = [sum(any(a <= s < b for a, b in named) for named in ranges) for s in range(40)]
    needed = max(1, min(min_votes, max(count)))
    got = voted_ranges(ranges, min_votes)
    inside = [any(a <= s < b for a, b in got) for s in range(40)]
    assert inside == [c >= needed for c in count]
    assert got == merge_ranges(got)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"stride_s": 61.0},
        {"zooms": (0,)},
        {"zooms": (1, 1)},
        {"kind": "dense"},
        {"kind": "cosine"},
    ],
)
def test_contradicting_levels_are_refused(changes):
    with pytest.raises(ValueError, match="level 'long_33'"):
        dataclasses.replace(LONG_33, **changes)


def test_contradicting_searches_are_refused():
    predict = Oracle([None])
    for levels, options, match in [
        ([], {}, "levels"),
        ([DENSE, DENSE], {}, "levels"),
        ([COSINE, DENSE], {}, "cosine"),
        ([COSINE], {"cosine": predict.cosine}, "last"),
        ([DENSE], {"order": "sideways"}, "order"),
    ]:
        with pytest.raises(ValueError, match=match):
            search(600.0, levels, predict, **options)


def test_broken_predictors_are_named():
    with pytest.raises(ValueError, match="answers"):
        search(600.0, [DENSE], lambda level, questions: [])
    for span, presence in [((0.0, math.nan), 1.0), ((0.0, 1.0), math.nan), ((0.0, 1.0), 1.5)]:
        answer = WindowAnswer(0, 0.0, 60.0, "From 1 to 2.", [SpanCandidate(*span)], presence)
        with pytest.raises(ValueError, match=r"finite|0\.\.1"):
            search(60.0, [DENSE], lambda level, qs, a=answer: [a] * len(qs))
    with pytest.raises(ValueError, match="cosines"):
        search(600.0, [COSINE, DENSE], Oracle([None]), cosine=lambda q, s: np.zeros(1))


def test_results_are_plain_data():
    oracle = Oracle([(100.0, 110.0)])
    result = search(3600.0, [COSINE, LONG_33, DENSE], oracle, cosine=oracle.cosine)
    json.dumps(dataclasses.asdict(result))


def test_few_windows_go_to_the_best_ranges_first() -> None:
    """Each range gets the window that shows it most in the middle, then the others in turn."""
    dense = dataclasses.replace(DENSE, most_windows=3)
    cosine = Level("cosine", "cosine", 12.0, 12.0, keep_top=4, margin_s=0.0)
    oracle = Oracle([(1810.0, 1815.0)])
    marks = {600.0: 0.9, 1800.0: 0.7, 2400.0: 0.8}

    def score(query, spans_s):
        return np.array([marks.get(round(float(start)), 0.0) for start in spans_s[:, 0]])

    result = search(3600.0, [cosine, dense], oracle, cosine=score)
    starts = [dense.grid(3600.0)[index].start_s for index in result.levels[-1].visited]
    assert starts == [570.0, 1770.0, 2370.0]  # of two that touch a range the one around its middle
    assert result.found and result.cost.dense_windows == 3
