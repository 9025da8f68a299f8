"""Spans out of answers in words: literal ones, and ten thousand that nobody would write."""

from __future__ import annotations

import random
import re

import pytest

from revisionllm.grounding.span_texts import clock_seconds, read_spans

NOT_THERE = [
    "Not Present",
    "The event is not present in the video.",
    "It doesn't happen.",
    "The described event does not occur.",
    "No such event.",
    "none",
    "[]",
    "The dog cannot be seen in this clip.",
    "No.",
]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 1.5 - 2 seconds.", [(1.5, 2)]),
        ("3-7", [(3, 7)]),
        ("From 0:03 to 0:07.5.", [(3, 7.5)]),
        ("01:02:03 - 01:02:13", [(3723, 3733)]),
        ("between 2.5 s and 7 s", [(2.5, 7)]),
        ("It starts at 100 seconds and ends at 110 seconds", [(100, 110)]),
        ("1:30 to 2:05.5 and 200s-210s", [(90, 125.5), (200, 210)]),
        ("[[3, 7.5], [10, 12]]", [(3, 7.5), (10, 12)]),
        ("[3, 7]", [(3, 7)]),
        ('```json\n[{"start": "0:03", "end": "0:07.5"}]\n```', [(3, 7.5)]),
        ('Here: {"timestamps": [["00:01:02", "00:01:09"]], "label": "x"}', [(62, 69)]),
        ('{"start_time": 4, "end_time": 6, "confidence": 0.9}', [(4, 6)]),
        ("[3, 7] and later [3, 7]", [(3, 7)]),
        ("Not in the first part, but from 12 to 15 seconds.", [(12, 15)]),
        ("from 9 to 3", None),
        ("from -3 to 7", None),
        ('{"start": -3, "end": 7}', None),
        ("it happens at 12 s", None),
        ("[1, 2, 3]", None),
        ("[true, 5]", None),
        ("0:75 - 0:80", None),
        ("I see a man with a dog.", None),
        ("", None),
        *((text, []) for text in NOT_THERE),
    ],
)
def test_answers(text, spans) -> None:
    assert read_spans(text) == spans


def test_times() -> None:
    assert [clock_seconds(t) for t in ("12.5", "12 s", "1:02", "1:02:03.5")] == [
        12.5,
        12,
        62,
        3723.5,
    ]
    wrong = ("", "x", "1:75", "1:75:00", "1:2:3:4", "-3", "nan", "inf", "9" * 5000 + ":1:1")
    assert [clock_seconds(t) for t in wrong] == [None] * len(wrong)


def test_ten_thousand_answers_invent_nothing() -> None:
    """No traceback, and no time whose digits do not stand in the answer."""
    drawn = random.Random(0)
    pieces = [
        *"0123456789:.,-~[]{}\"' \n",
        *("to", "from", "and", "between", "starts at", "ends at", "seconds", "s", "1:02:03", "7.5"),
        *(
            '{"start": ',
            '"end": ',
            "[[",
            "]]",
            "not present",
            "null",
            "1e9",
            "1e999",
            "NaN",
            "-Infinity",
        ),
        *("\u2013", "\u00b3", "\u0663", "00:01", "9" * 400, "```json"),
    ]
    for _ in range(10_000):
        text = "".join(drawn.choice(pieces) for _ in range(drawn.randrange(1, 25)))
        for span in read_spans(text) or ():
            assert 0 <= span[0] <= span[1] < float("inf"), text
            for seconds in span:
                assert stands_in(seconds, text), (seconds, text)


def stands_in(seconds: float, text: str) -> bool:
    """Whether a number or clock time of the text has this value."""
    for found in re.findall(r"[0-9]+(?::[0-9]+)*(?:\.[0-9]*)?(?:e[0-9]+)?", text, re.ASCII):
        parts = found.split(":")
        try:
            value = sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
        except OverflowError:
            continue
        if value == seconds:
            return True
    return False


def test_long_answers_cost_little() -> None:
    """The time limit of tests stops what is not linear."""
    for text in ("[" * 10**6, "3" + " " * 10**6, "1" * 10**6, "3 to " * 10**5, "{" * 99_999 + "}"):
        read_spans(text)
