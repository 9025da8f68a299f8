"""Round axis ticks, shared by the HTML page and the PNG timeline."""

from __future__ import annotations

import math

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)


def ticks(duration_s: float, max_ticks: int = 13) -> list[int]:
    """Round seconds from 0 to `duration_s`, at most `max_ticks` of them.

    Steps are those a clock reader expects (1, 2, 5, 10, 15, 30 s, 1, 2, 5, 10, 15, 30 min, hours);
    beyond half a day the last step is multiplied.
    """
    fits = (step_s for step_s in _STEPS_S if duration_s // step_s + 1 <= max_ticks)
    longest_s = _STEPS_S[-1]
    step_s = next(fits, longest_s * math.ceil(duration_s / longest_s / (max_ticks - 1)))
    return list(range(0, math.floor(duration_s) + 1, step_s))
