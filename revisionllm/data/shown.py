"""Decode what wanted times show, and leave out what they do not need.

A codec's pictures build on one another, but not all on all. What is left out: pictures that no
other one refers to (most B-frames), the rest of a group of pictures behind the last one that is
wanted, whole groups without any, and of codecs without references (ProRes, MJPEG) everything else.
What comes out for the wanted times is the same, bit for bit.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

# Pictures are shown in another order than they are stored in; by how many places at most. H.264 and
# HEVC allow 16.
REORDERED = 32
# How far to look for the next group of pictures: packets, and their bytes.
AHEAD, AHEAD_BYTES = 256, 1 << 25
# A key frame of these makes the decoder forget everything before it.
FORGETTING = ("vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "libaom-av1")
# NAL unit types of pictures that do the same (ITU-T H.264 table 7-1, H.265 table 7-1), and how to
# read the type; other key frames may be followed by pictures that refer to what was before them.
SLICES = {
    "h264": (range(1, 6), (5,), lambda byte: byte & 31),
    "hevc": (range(32), (16, 17, 18, 19, 20), lambda byte: byte >> 1 & 63),
}

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


@dataclass
class _Packet:
    """A packet, whether a wanted time shows its picture, and whether a group begins with it."""

    packet: av.Packet
    is_wanted: bool
    begins: bool


def needed_packets(
    packets: Iterable[av.Packet], stream: av.VideoStream, wanted: Wanted, zero_s: float
) -> Iterator[av.Packet]:
    """Packets to decode, in order; the decoder is told before each what it may leave out.

    Args:
        packets: of `stream`, in decoding order.
        wanted: in seconds from `zero_s` on the container's clock.
    """
    context = stream.codec_context
    is_intra_only = bool(getattr(context.codec, "intra_only", False))
    ahead = _Ahead(_known(packets, stream, wanted, zero_s))
    while (one := ahead.pop()) is not None:
        if not one.is_wanted and (is_intra_only or ahead.begins_before_wanted()):
            continue
        context.skip_frame = "DEFAULT" if one.is_wanted else "NONREF"
        yield one.packet


class _Ahead:
    """Packets to come, read as far ahead as it takes to know what comes first."""

    def __init__(self, known: Iterator[_Packet]) -> None:
        self._known = known
        self._packets: deque[_Packet] = deque()
        self._bytes = 0
        self._clear = 0  # so many of them are neither wanted nor begin a group

    def pop(self) -> _Packet | None:
        """The next packet; None at the end."""
        if not self._packets and not self._read():
            return None
        one = self._packets.popleft()
        self._bytes -= one.packet.size
        self._clear = max(0, self._clear - 1)
        return one

    def begins_before_wanted(self) -> bool:
        """Whether a group begins before, or with, the next picture that is wanted."""
        while True:
            if self._clear < len(self._packets):
                first = self._packets[self._clear]
                if first.begins or first.is_wanted:
                    return first.begins
                self._clear += 1
            elif len(self._packets) >= AHEAD or self._bytes >= AHEAD_BYTES or not self._read():
                return False

    def _read(self) -> bool:
        one = next(self._known, None)
        if one is not None:
            self._packets.append(one)
            self._bytes += one.packet.size
        return one is not None


def _known(
    packets: Iterable[av.Packet], stream: av.VideoStream, wanted: Wanted, zero_s: float
) -> Iterator[_Packet]:
    """Each packet with what is known of it once those around it were seen.

    A picture counts as shown from the one before it until the second one after it: whoever rounds
    times, or stores two fields apart, loses nothing. Without a time, or near the end, it is wanted.
    """
    begins = _group_test(stream)
    around = _Times()
    waiting: deque[av.Packet] = deque()
    for packet in packets:
        around.add(packet)
        waiting.append(packet)
        if len(waiting) > REORDERED:
            yield _about(waiting.popleft(), around, wanted, zero_s, begins)
    for packet in waiting:
        yield _about(packet, around, wanted, zero_s, begins)


def _about(
    packet: av.Packet,
    around: _Times,
    wanted: Wanted,
    zero_s: float,
    begins: Callable[[av.Packet], bool],
) -> _Packet:
    span_s = around.span_s(packet)
    is_wanted = span_s is None or wanted(span_s[0] - zero_s, span_s[1] - zero_s)
    return _Packet(packet, is_wanted, packet.size > 0 and packet.is_keyframe and begins(packet))


def _group_test(stream: av.VideoStream) -> Callable[[av.Packet], bool]:
    """Whether a key frame's packet makes the decoder forget what was before it."""
    context = stream.codec_context
    if context.codec.name in FORGETTING:
        return lambda packet: True
    if context.codec.name not in SLICES:
        return lambda packet: False
    slices, forgetting, type_of = SLICES[context.codec.name]
    setup = bytes(context.extradata or b"")
    at = {"h264": 4, "hevc": 21}[context.codec.name]
    # the setup record of MP4 and Matroska says how long lengths are; streams have start codes
    width = (setup[at] & 3) + 1 if setup[:1] == b"\1" and len(setup) > at else 0

    def begins(packet: av.Packet) -> bool:
        kinds = map(type_of, _first_bytes(bytes(packet), width))
        return next((kind in forgetting for kind in kinds if kind in slices), False)

    return begins


def _first_bytes(data: bytes, width: int) -> Iterator[int]:
    """The first byte of each NAL unit, behind lengths of `width` bytes or (0) start codes."""
    at = 0
    while width and at + width < len(data):
        yield data[at + width]
        at += width + int.from_bytes(data[at : at + width], "big")
    while not width and (at := data.find(b"\0\0\1", at) + 3) > 2 and at < len(data):
        yield data[at]


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
        tick_s = float(packet.time_base)  # neighbours forgive its rounding
        return self._ticks[at - 1] * tick_s, self._ticks[at + 2] * tick_s
