"""Tiny films for tests, written with PyAV: frame `n` is a uniform grey of value 5 + 4 * n."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS_PER_S = 1000


def grey_of(number: int) -> int:
    return 5 + 4 * (number % 60)


def number_of(rgb: np.ndarray) -> int:
    """The frame number (modulo 60) that a decoded frame shows."""
    return round((float(rgb.mean()) - 5) / 4)


def write_film(
    path: Path,
    starts_ms: list[int],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    container_format: str | None = None,
    pictures: list[np.ndarray] | None = None,
) -> Path:
    """Write one frame per entry of `starts_ms` (presentation times in milliseconds)."""
    with av.open(
        str(path), "w", options=container_options or {}, format=container_format
    ) as container:
        stream = container.add_stream(codec, rate=25, options=codec_options or {"qp": "4"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        for number, start_ms in enumerate(starts_ms):
            grey = np.full((size[1], size[0], 3), grey_of(number), np.uint8)
            picture = pictures[number] if pictures else grey
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = start_ms, Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def constant_rate(num_frames: int, fps: float, *, start_s: float = 0.0) -> list[int]:
    return [round(1000 * (start_s + number / fps)) for number in range(num_frames)]


def write_sound(path: Path, seconds: int = 2) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, seconds * 8000, 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
