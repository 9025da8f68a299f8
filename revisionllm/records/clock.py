"""The film's clock in words."""

from __future__ import annotations

import math


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
