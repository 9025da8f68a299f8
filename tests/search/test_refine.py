"""Refinement: what is asked, what replaces a span, what stays."""

from __future__ import annotations

import pytest
from tiny_runs import FRAMES, TinyFilm, sentences, tiny_run

from revisionllm.engine.dense import DenseEngine
from revisionllm.grounding.levels import Level, Moment, SpanCandidate, WindowAnswer
from revisionllm.records.films import Film, Query
from revisionllm.search.refine import refine_moments

DENSE = Level("dense", "dense", 12.0, 6.0)
FPS = 4.0  # 24 frames: windows of 6 s instead of 12


class Scripted:
    """An engine that names the second to fourth second of every window, and notes the windows."""

    def __init__(self, model, answer="From 04 to 15."):
        self.model, self.text, self.windows = model, answer, []

    def answer(self, level, questions, film, queries):
        self.windows += [question.window for question in questions]
        return [
            WindowAnswer(
                w.index,
                w.start_s,
                w.end_s,
                self.text,
                [SpanCandidate(w.start_s + 1.0, w.start_s + 4.0)],
                0.9,
            )
            for w in self.windows
        ]


def queries(count):
    return [Query(str(number), text) for number, text in enumerate(sentences(count))]


def refine(engine, moments, top=1, duration_s=100.0):
    film = Film("film", None, FPS, duration_s)
    return refine_moments(engine, DENSE, film, queries(len(moments)), moments, top=top)


def moment(start_s, end_s, score=0.5):
    return Moment(start_s, end_s, score, {"presence": score}, "dense")


def test_best_spans_are_asked_again_in_short_windows():
    engine = Scripted(tiny_run())
    rows = [[moment(50, 53), moment(10, 12)], [moment(0, 2)], [moment(98, 100)], []]
    found = refine(engine, rows)
    assert [(w.start_s, w.end_s) for w in engine.windows] == [(48.5, 54.5), (0, 6), (94, 100)]
    assert (found[0][0].start_s, found[0][0].end_s) == (49.5, 52.5)
    assert found[0][0].score == 0.5 and found[0][1] == rows[0][1]
    assert found[1] == [moment(1, 4)] or found[1] == rows[1]
    assert found[2] == rows[2]  # the answer, 95 to 98 s, is about something else
    assert found[3] == []


@pytest.mark.parametrize("text", ["Not Present", "From 04 to 15."])
def test_long_spans_and_absent_answers_stay(text):
    engine = Scripted(tiny_run(), text)
    rows = [[moment(20, 25)], [moment(40, 42)]]
    found = refine(engine, rows)
    assert found[0] == rows[0] and len(engine.windows) == 1
    assert (found[1] == rows[1]) == (text == "Not Present")


def test_through_the_engine():
    import numpy as np

    model = tiny_run()
    engine = DenseEngine(model, explore=1.0)

    def features(window):
        assert window.end_s - window.start_s == pytest.approx(FRAMES / FPS)
        rng = np.random.default_rng(int(window.start_s * 10))
        return rng.standard_normal((FRAMES, 16)).astype(np.float32) * 3

    rows = [[moment(float(t), t + 3.0)] for t in range(10, 40, 3)]
    film = TinyFilm(features, fps=FPS)
    film.duration_s = 60.0
    found = refine_moments(engine, DENSE, film, queries(10), rows, top=1)
    assert engine.cost.prefixes == 10
    for before, after in zip(rows, found, strict=True):
        assert before[0].score == after[0].score
        assert 0 <= after[0].start_s < after[0].end_s <= 60.0
