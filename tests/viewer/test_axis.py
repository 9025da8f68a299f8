"""Clock texts and ticks against literal values."""

from __future__ import annotations

import itertools
import math

import pytest

from revisionllm.records.clock import clock
from revisionllm.viewer.axis import ticks


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [
        (0, 0, "0:00:00"),
        (3599.4, 0, "0:59:59"),
        (3599.5, 0, "1:00:00"),
        (59.96, 1, "0:01:00.0"),
        (12.25, 1, "0:00:12.3"),
        (36000.0, 1, "10:00:00.0"),
        (7.005, 2, "0:00:07.01"),
    ],
)
def test_clock_rounds_before_it_splits(seconds, decimals, text):
    assert clock(seconds, decimals) == text


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_clock_refuses_what_is_no_time(seconds):
    with pytest.raises(ValueError, match="finite"):
        clock(seconds)


def test_an_hour_has_a_tick_every_five_minutes():
    assert ticks(3600.0) == list(range(0, 3601, 300))
    assert ticks(3600.0, max_ticks=5) == [0, 900, 1800, 2700, 3600]


@pytest.mark.parametrize("duration_s", [0.5, 1.0, 59.0, 61.0, 3600.0, 5431.7, 86400.0, 1e7])
@pytest.mark.parametrize("max_ticks", [2, 5, 13])
def test_ticks_fit_and_are_even(duration_s, max_ticks):
    marks = ticks(duration_s, max_ticks)
    assert 1 <= len(marks) <= max_ticks
    assert marks[0] == 0 and marks[-1] <= duration_s
    assert len({b - a for a, b in itertools.pairwise(marks)}) <= 1
