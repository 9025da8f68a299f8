"""The film's clock in words and round axis ticks, shared by the HTML page and the PNG timeline."""

from __future__ import annotations

import math

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)


def clock(seconds: float, decimals: int = 0) -> str:
    """Write seconds of the film as ``h:mm:ss``, rounded half up.

    Args:
        seconds: finite, >= 0.
        decimals: 0 for axes, 1 for moments (``h:mm:ss.s``).

    Raises:
        ValueError: the time is negative or not finite.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"a time in a film must be finite and >= 0 s, not {seconds}")
    scale = 10**decimals
    units = math.floor(seconds * scale + 0.5)  # rounded before it is split: 59.96 is 1:00.0
    whole_s, fraction = divmod(units, scale)
    text = f"{whole_s // 3600}:{whole_s // 60 % 60:02d}:{whole_s % 60:02d}"
    return f"{text}.{fraction:0{decimals}d}" if decimals else text


def ticks(duration_s: float, max_ticks: int = 13) -> list[int]:
    """Round seconds from 0 to `duration_s`, at most `max_ticks` of them.

    Steps are those a clock reader expects (1, 2, 5, 10, 15, 30 s, 1, 2, 5, 10, 15, 30 min, hours);
    beyond half a day the last step is multiplied.
    """
    fits = (step_s for step_s in _STEPS_S if duration_s // step_s + 1 <= max_ticks)
    longest_s = _STEPS_S[-1]
    step_s = next(fits, longest_s * math.ceil(duration_s / longest_s / (max_ticks - 1)))
    return list(range(0, math.floor(duration_s) + 1, step_s))
