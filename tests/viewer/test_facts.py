"""What is said about a prediction, against literal texts."""

from __future__ import annotations

import pytest

from revisionllm.grounding.levels import Moment, WindowAnswer
from revisionllm.viewer import facts


def test_verdicts(predictions):
    said = [facts.verdict(p) for p in predictions]
    span = "0:02:00.0 \N{EN DASH} 0:02:04.0, score 0.90"
    assert [(v.kind, v.text, v.short, v.right) for v in said] == [
        ("found", span, "0:02:00", True),
        ("found", span, "0:02:00", False),
        ("found", span, "0:02:00", False),
        ("absent", "not present, confidence 0.60", "not present 0.60", True),
        ("absent", "not present, confidence 0.60", "not present 0.60", False),
        ("failed", "failed: no memory", "failed", None),
        ("found", span, "0:02:00", None),
    ]
    assert said[0].truth == "true 0:01:59.0 \N{EN DASH} 0:02:03.0, IoU 0.60"
    assert said[2].truth == "false alarm: it never happens"
    assert said[4].truth == "missed: it happens at 0:00:05.0 \N{EN DASH} 0:00:09.0"
    assert said[6].truth == ""


def test_scores_on_another_scale_give_no_confidence_of_absence(make):
    prediction = make("q", found=False, moments=[Moment(1.0, 2.0, 9.87)])
    assert facts.verdict(prediction).text == "not present, best candidate scores 9.87"
    assert facts.shade(9.0, 10.0) == pytest.approx(0.9)
    assert facts.shade(0.3, 0.6) == pytest.approx(0.3)


def test_best_iou_takes_the_true_span_that_fits(make):
    prediction = make("q", gt=[(0.0, 1.0), (122.0, 124.0)])
    assert facts.best_iou(prediction) == pytest.approx(0.5)


def test_cost_names_the_windows_of_the_whole_film(make):
    assert facts.cost_text(make("q"), 119).startswith("3 of 119 windows visited, 20 segments")
    assert facts.cost_text(make("q"), None).startswith("3 windows visited")


def test_searched_spans_are_merged_and_end_with_the_film(predictions, make):
    assert facts.searched_spans(predictions[0], 400.0) == [(90.0, 180.0), (360.0, 400.0)]
    short = make("q", windows=[WindowAnswer(0, 0.0, 60.0, "Not Present")])
    assert facts.searched_spans(short, 20.0) == [(0.0, 20.0)]


def test_one_line():
    assert facts.one_line(" a\n\tb \x00c\u2028d ") == "a b c d"


def test_empty_sentence_is_named(make):
    assert facts.sentence(make("", qid="1")) == "(empty sentence)"


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_film_has_a_length(duration_s):
    with pytest.raises(ValueError, match="duration_s"):
        facts.check_film(duration_s, [])


def test_one_film_and_no_found_without_a_moment(make):
    with pytest.raises(ValueError, match=r"one film.*'film_7', 'other'"):
        facts.check_film(10.0, [make("a"), make("b", vid="other")])
    with pytest.raises(ValueError, match="without a moment"):
        facts.check_film(10.0, [make("a", moments=[])])
