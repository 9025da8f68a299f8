"""Questions that single frames answer: true exactly while the thing is drawn in the place."""

from __future__ import annotations

import numpy as np
import pytest

from revisionllm.demo.world.captions import visible_things
from revisionllm.demo.world.frame_questions import (
    BRIDGED_S,
    MOST_SPANS,
    frame_questions,
    seen_in,
)
from revisionllm.demo.world.plans import FILM_FPS, plan_film

PLAN = plan_film(5, 1200.0, "val")


def shown(plan, seen, time_s: float) -> bool:
    """By the captions' own account of a frame."""
    colour, shape, place = seen
    shot = plan.shot_at(time_s)
    return shot.place == place and any(
        thing[1:3] == (colour, shape) for thing in visible_things(shot, time_s)
    )


def test_spans_hold_all_frames_that_show_it_and_end_on_such() -> None:
    for seen, spans in list(seen_in(PLAN).items())[:12]:
        times = np.arange(round(PLAN.duration_s * FILM_FPS)) / FILM_FPS
        on = np.array([shown(PLAN, seen, t) for t in times])
        inside = np.zeros(len(times), bool)
        for start_s, end_s in spans:
            rows = (times >= start_s - 1e-6) & (times < end_s - 1e-6)
            inside |= rows
            assert on[rows][0] and on[rows][-1]
            dark = np.diff(np.flatnonzero(on[rows]), prepend=0).max() / FILM_FPS
            assert dark <= BRIDGED_S + 1e-6
        assert not (on & ~inside).any()


def test_questions_are_true_as_often_as_they_say_and_absent_ones_never() -> None:
    questions = frame_questions(PLAN, 10, 6)
    assert questions == frame_questions(PLAN, 10, 6)
    found = seen_in(PLAN)
    for question in questions[:10]:
        assert 1 <= len(question.spans_s) <= MOST_SPANS
        assert list(question.spans_s) == found[question.seen]
    cast = {seen[:2] for seen in found}
    for question in questions[10:]:
        assert question.spans_s == () and question.seen[:2] not in cast
        assert any(question.seen[0] == colour for colour, _ in cast)
    assert all(q.seen[0] in q.sentence for q in questions)
    assert len({q.seen for q in questions}) == 16


def test_too_few_things_are_told() -> None:
    with pytest.raises(ValueError, match="present and"):
        frame_questions(PLAN, 10_000, 1)
