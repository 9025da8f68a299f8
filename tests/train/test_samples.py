"""Which windows, which labels: against brute force and the laws of the contracts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from tiny_data import FRAMES, WINDOW_S, spec

from revisionllm.errors import UserError
from revisionllm.formats.annotations import Annotation
from revisionllm.grounding.windows import WindowClock
from revisionllm.train.packed_windows import packed_windows
from revisionllm.train.samples import (
    FilmEvents,
    Target,
    answer_text,
    clear_segments,
    clear_starts_s,
    has_negative_window,
    holding_segments,
    long_plan,
    long_problem,
    make_film,
    negative_start_s,
    positive_start_s,
    segment_grid,
    window_plan,
)

RNG = np.random.default_rng


def film_of(*events, duration_s: float = 600.0, alike: bool = False) -> FilmEvents:
    annotations = [
        Annotation(str(i), "film", "same" if alike else f"event {i}", s, e, duration_s)
        for i, (s, e) in enumerate(events)
    ]
    return make_film("film", duration_s, annotations, range(len(events)))


def overlaps(event, start_s, window_s=WINDOW_S) -> bool:
    return event[0] < start_s + window_s and event[1] > start_s


@pytest.mark.parametrize("event", [(0.0, 3.0), (597.0, 600.0), (100.0, 104.0), (20.0, 80.0)])
def test_positive_windows_hold_the_event_at_random_places(event):
    starts = [positive_start_s(event, 600.0, WINDOW_S, RNG(seed)) for seed in range(200)]
    assert all(0 <= s <= event[0] and event[1] <= s + WINDOW_S + 1e-9 <= 600 + 1e-9 for s in starts)
    room = min(event[0], 600 - WINDOW_S) - max(0, event[1] - WINDOW_S)
    assert max(starts) - min(starts) >= 0.9 * room


def test_an_event_longer_than_the_window_fills_half_of_it():
    for seed in range(100):
        start = positive_start_s((100.0, 300.0), 600.0, WINDOW_S, RNG(seed))
        assert min(300, start + WINDOW_S) - max(100, start) >= WINDOW_S / 2 - 1e-9


def test_a_film_shorter_than_a_window_starts_at_zero():
    assert positive_start_s((10.0, 20.0), 45.0, WINDOW_S, RNG(0)) == 0.0


def test_clear_starts_against_brute_force():
    rng = RNG(0)
    for _ in range(200):
        duration_s = float(rng.uniform(30, 400))
        spans = []
        for _ in range(int(rng.integers(1, 5))):
            start = float(rng.uniform(0, duration_s))
            spans.append((start, min(duration_s, start + float(rng.uniform(0, 50)))))
        ranges = clear_starts_s(spans, duration_s, WINDOW_S)
        for start in np.linspace(0, max(0.0, duration_s - WINDOW_S), 301):
            free = not any(overlaps(span, start) for span in spans)
            inside = any(low - 1e-9 <= start <= high + 1e-9 for low, high in ranges)
            assert free == inside, (spans, start, ranges)


def test_negatives_touch_neither_the_event_nor_its_like():
    film = film_of((100, 104), (400, 420), duration_s=600.0, alike=True)
    for seed in range(300):
        plan = window_plan(film, 0, "dense", spec(), RNG(seed), present=False)
        (start,) = plan.starts_s
        assert plan.targets == (Target(0, None),) and 0 <= start <= 540
        assert not overlaps((100, 104), start) and not overlaps((400, 420), start)


def test_negatives_spread_over_all_the_room():
    ranges = clear_starts_s([(100, 104)], 600.0, WINDOW_S)
    starts = np.array([negative_start_s(ranges, RNG(seed)) for seed in range(2000)])
    assert ranges == [(0.0, 40.0), (104.0, 540.0)]
    assert abs((starts < 50).mean() - 40 / 476) < 0.02


def test_no_negative_where_the_event_is_everywhere():
    assert not has_negative_window(film_of((10, 590)), 0, spec())
    assert has_negative_window(film_of((61, 590)), 0, spec())
    assert not has_negative_window(film_of((0, 20), duration_s=45.0), 0, spec())


def test_labels_give_back_the_seconds_within_a_frame():
    film = film_of((200.3, 207.7))
    for seed in range(50):
        plan = window_plan(film, 0, "dense", spec(), RNG(seed), present=True)
        first, last = plan.targets[0].span
        start_s, end_s = WindowClock(WINDOW_S, FRAMES).span(first, last, plan.starts_s[0])
        frame_s = WINDOW_S / FRAMES
        assert start_s <= 200.3 + 1e-6 and 200.3 - start_s < frame_s
        assert end_s >= 207.7 - 1e-6 and end_s - 207.7 < frame_s


def test_short_films_at_double_rate():
    chapters = spec(double_rate_short=True)
    assert (
        window_plan(
            film_of((5, 9), duration_s=100.0), 0, "dense", chapters, RNG(0), present=True
        ).window_s
        == WINDOW_S / 2
    )
    assert chapters.film_window_s(2 * WINDOW_S) == WINDOW_S
    assert spec().film_window_s(100.0) == WINDOW_S


def test_holding_segments_against_their_definition():
    rng = RNG(1)
    for _ in range(300):
        duration_s = float(rng.uniform(100, 900))
        length_s = float(rng.choice([0.0, 3.0, 30.0, 60.0]))
        start = float(rng.uniform(0, duration_s - length_s))
        film = film_of((start, start + length_s), duration_s=duration_s)
        grid = segment_grid(film, spec("long"))
        holding = holding_segments(film.events[0], grid).tolist()
        naive = [
            number
            for number, (a, b) in enumerate(grid)
            if min(b, start + length_s) - max(a, start) >= length_s / 2
        ]
        assert holding == naive and holding == list(range(holding[0], holding[-1] + 1))


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_long_rows(repeat):
    stage = spec("long", segment_repeats=(repeat,), num_segments=40)
    film = film_of((300, 310), (800, 805), duration_s=1800.0, alike=True)
    grid = segment_grid(film, stage)
    places = set()
    for seed in range(100):
        plan = long_plan(film, 0, stage, RNG(seed), present=True)
        assert len(plan.starts_s) * repeat <= 40 and plan.repeat == repeat
        assert len(plan.starts_s) == 40 // repeat
        first, last = plan.targets[0].span
        assert first % repeat == 0 and (last + 1) % repeat == 0
        held = plan.starts_s[first // repeat : (last + 1) // repeat]
        assert held == tuple(grid[holding_segments((300, 310), grid), 0])
        others = plan.starts_s[: first // repeat] + plan.starts_s[(last + 1) // repeat :]
        assert list(others) == sorted(set(others))
        for start in others:
            assert not overlaps((300, 310), start) and not overlaps((800, 805), start)
        places.add(first)
        absent = long_plan(film, 0, stage, RNG(seed), present=False)
        assert absent.targets == (Target(0, None),)
        assert set(absent.starts_s) <= set(grid[clear_segments(film, 0, grid), 0])
    assert len(places) > 2


def test_a_short_film_gives_a_shorter_row():
    film = film_of((100, 104), duration_s=180.0)
    plan = long_plan(film, 0, spec("long"), RNG(0), present=True)
    assert 0 < len(plan.starts_s) < 20
    first, last = plan.targets[0].span
    assert 0 <= first <= last < len(plan.starts_s)


def test_why_an_event_cannot_stand_in_a_row():
    assert long_problem(film_of((10, 590)), 0, spec("long", num_segments=4))
    assert long_problem(film_of((10, 20)), 0, spec("long")) is None


def test_answers():
    span = Target(0, (5, 12))
    none = Target(0, None)
    assert answer_text("dense", span, spec()) == "From 05 to 12."
    assert answer_text("dense", none, spec()) == "Not Present"
    assert answer_text("sparse", span, spec("sparse")) == "yes"
    assert answer_text("sparse", none, spec("sparse")) == "no"
    assert answer_text("sparse", span, spec("sparse", question="frames")) == "From 05 to 12."
    assert answer_text("long", span, spec("long")) == "From 5 to 12."
    assert answer_text("long", span, spec("long", answer_end="exclusive")) == "From 5 to 13."
    assert answer_text("long", none, spec("long")) == "Not Present"


def test_contradictions_are_named_together():
    with pytest.raises(UserError, match=r"stage dense.*segment_repeats"):
        spec("dense", question="video", segment_repeats=(0,))


@pytest.mark.parametrize("per_window", [4, 32])
def test_film_plans_ask_every_event_once_and_its_negatives(per_window):
    stage = spec(questions_per_window=per_window)
    rng = RNG(3)
    lengths = rng.choice([0.0, 3.0, 30.0, 100.0], 150, p=[0.1, 0.6, 0.2, 0.1])
    starts = rng.uniform(0, 600 - lengths)
    film = film_of(*zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
    negatives = {index: index % 3 for index in range(150)}
    plans = packed_windows(film, negatives, stage, RNG(4))
    positives = Counter(a.index for p in plans for a in p.targets if a.span is not None)
    absent = Counter(a.index for p in plans for a in p.targets if a.span is None)
    assert positives == Counter(range(150))
    assert absent == Counter({i: n for i, n in negatives.items() if n})
    for plan in plans:
        (start,) = plan.starts_s
        assert 1 <= len(plan.targets) <= per_window and 0 <= start <= 540
        for ask in plan.targets:
            event = film.events[ask.index]
            if ask.span is None:
                assert not overlaps(event, start)
            elif event[1] - event[0] <= WINDOW_S:
                assert start - 1e-9 <= event[0] and event[1] <= start + WINDOW_S + 1e-9


def test_film_plans_share_windows():
    """At MAD's density (640 sentences of 4 s in two hours) a window has many questions."""
    rng = RNG(0)
    starts = np.sort(rng.uniform(0, 7196, 640))
    film = film_of(*[(s, s + 4.0) for s in starts.tolist()], duration_s=7200.0)
    stage = spec(window_s=125.0, frames_per_window=250)
    plans = packed_windows(film, dict.fromkeys(range(640), 1), stage, RNG(1))
    assert sum(len(plan.targets) for plan in plans) == 1280
    assert 1280 / len(plans) > 10
    assert math.ceil(7200 / 125) <= len(plans)


def test_the_place_of_an_event_in_its_window_tells_nothing():
    rng = RNG(5)
    starts = rng.uniform(0, 7196, 640).tolist()
    film = film_of(*[(s, s + 4.0) for s in starts], duration_s=7200.0)
    firsts = [
        ask.span[0]
        for seed in range(10)
        for plan in packed_windows(film, dict.fromkeys(range(640), 0), spec(), RNG(seed))
        for ask in plan.targets
    ]
    counts, _ = np.histogram(firsts, bins=9, range=(0, 93))
    assert counts.max() < 1.35 * counts.min()
