"""Decode what is shown at wanted times alone.

A codec's pictures build on one another, but not on all: those that no other one refers to
(non-reference pictures, most B-frames) need not be decoded unless a wanted time shows them, and of
codecs without references (ProRes, MJPEG) only those that it shows. What comes out for the wanted
times is the same, bit for bit.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

# Pictures are shown in another order than they are stored in; by how many places at most. H.264 and
# HEVC allow 16.
REORDERED = 32

Wanted = Callable[[float, float], bool]  # whether a wanted time lies in [start_s, end_s)


def on_grid(fps: float, tolerance_s: float) -> Wanted:
    """Times `index / fps`; one that is so little before `start_s` lies in it."""

    def wanted(start_s: float, end_s: float) -> bool:
        index = max(0, math.ceil((start_s - tolerance_s) * fps))
        return index / fps < end_s

    return wanted


def at_times(times_s: Sequence[float], tolerance_s: float) -> Wanted:
    """Rising times."""

    def wanted(start_s: float, end_s: float) -> bool:
        at = bisect.bisect_left(times_s, start_s - tolerance_s)
        return at < len(times_s) and times_s[at] < end_s

    return wanted


def needed_packets(
    packets: Iterable[av.Packet], stream: av.VideoStream, wanted: Wanted, zero_s: float
) -> Iterator[av.Packet]:
    """Packets to decode, in order; the decoder is told before each what it may leave out.

    A picture counts as shown from the one before it until the second one after it: whoever rounds
    times, or stores two fields apart, loses nothing. Without a time, or near the end, it is needed.

    Args:
        packets: of `stream`, in decoding order.
        wanted: in seconds from `zero_s` on the container's clock.
    """
    context = stream.codec_context
    is_intra_only = bool(getattr(context.codec, "intra_only", False))
    around = _Times()
    waiting: deque[av.Packet] = deque()
    packets = iter(packets)
    is_open = True
    while is_open or waiting:
        while is_open and len(waiting) <= REORDERED:
            packet = next(packets, None)
            is_open = packet is not None
            if packet is not None:
                waiting.append(packet)
                around.add(packet)
        if not waiting:
            return
        packet = waiting.popleft()
        span_s = around.span_s(packet)
        is_needed = span_s is None or wanted(span_s[0] - zero_s, span_s[1] - zero_s)
        if is_needed or not is_intra_only:
            context.skip_frame = "DEFAULT" if is_needed else "NONREF"
            yield packet


class _Times:
    """Presentation times of the packets around one, past ones and coming ones."""

    def __init__(self) -> None:
        self._ticks: list[int] = []  # sorted
        self._order: deque[int] = deque()  # as they were stored

    def add(self, packet: av.Packet) -> None:
        if packet.pts is None:
            return
        bisect.insort(self._ticks, packet.pts)
        self._order.append(packet.pts)
        if len(self._order) > 2 * REORDERED + 2:
            self._ticks.pop(bisect.bisect_left(self._ticks, self._order.popleft()))

    def span_s(self, packet: av.Packet) -> tuple[float, float] | None:
        """From the picture before it to the second one after it; None: not known."""
        if packet.pts is None or packet.size == 0:
            return None
        at = bisect.bisect_left(self._ticks, packet.pts)
        if at == 0 or at + 2 >= len(self._ticks):
            return None
        base = packet.time_base
        return float(self._ticks[at - 1] * base), float(self._ticks[at + 2] * base)
