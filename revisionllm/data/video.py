"""Read frames of a video file at a fixed rate, by the timestamps stored in the container (PyAV).

Times are seconds from the container's start, its earliest stream, sound included: as players count.
Before the first picture the first picture is held. A frame's place in time is its presentation
timestamp, never frame_index / fps: films with a variable frame rate come out right. Where a file's
clock falls back or jumps (recordings joined end to end), time goes on without the jump.
Documentation of the library: https://pyav.basswood-io.com
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.data.shown import Wanted, at_times, needed_packets, on_grid
from revisionllm.data.video_file import open_video
from revisionllm.errors import UserError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# A frame counts as shown at `t` if it starts at most this late: containers round times to 1 ms.
TIME_TOLERANCE_S = 0.002
# How far before a time to seek, one after the other.
SEEK_BEFORE_S = (0.0, 2.0, 20.0)
# A film that ends earlier than its header says by more than this (or two frames) was cut.
END_TOLERANCE_S = 0.5
# The clock of a file falls back if a packet is to be decoded this long before the one before it.
FALL_BACK_S = 0.5
# A scanned file of which more than this is not read (an index at its end) may be several in one.
UNREAD_BYTES, UNREAD_PART = 4096, 0.25
# In formats whose clocks jump (broadcasts), it jumps ahead if it leaves out more than this.
JUMP_AHEAD_S = 10.0
JUMPING_FORMATS = ("mpegts", "mpeg")
# These state their length reliably; the packets of all others are read once to know it.
INDEXED_FORMATS = ("mp4", "matroska")
# FFmpeg leaves out the times before zero that these may hold.
NEGATIVE_TIME_FORMATS = ("matroska",)
# Times in AVI are those of decoding; presentation times that FFmpeg makes up for it are unordered.
DECODING_TIME_FORMATS = ("avi",)
# A grid time this close to the film's end (in parts of one grid step) is the end, not a sample.
GRID_TOLERANCE = 1e-3
# swscale: bicubic (4), full chroma in and out, accurate rounding, the same bits on every machine.
# Plain bicubic comes out up to two grey levels too dark. PyAV 15 has no names for these bits.
SWSCALE_FLAGS = 4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        path: the file.
        width, height: pixels as displayed (rotation of phone videos applied).
        duration_s: from the container's start to the last frame's end.
        fps: average frame rate; 0 when the container states none.
        start_s: where the container starts on its own clock; the film's zero.
        codec: FFmpeg's name of the video codec.
        format: FFmpeg's names of the container's format, with commas.
        jumps_s: where its own clock falls back or jumps, in seconds of the film.
        can_seek: whether a time can be sought in it.
    """

    path: str
    width: int
    height: int
    duration_s: float
    fps: float
    start_s: float
    codec: str
    format: str
    jumps_s: tuple[float, ...] = ()
    can_seek: bool = True

    def size_within(self, side: int) -> tuple[int, int]:
        """(width, height) that a frame shrinks to so that its longer side has `side` pixels."""
        scale = min(1.0, side / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def num_samples(self, fps: float) -> int:
        """Number of frames that `iter_frames(path, fps)` yields."""
        return count_samples(self.duration_s, fps)


def count_samples(duration_s: float, fps: float) -> int:
    """Number of grid times `index / fps` in [0, duration_s): `ceil(duration_s * fps)`, at least 1.

    A product within 1e-3 above a whole number counts as that number (60.0001 s at 5 fps: 300).
    """
    return max(1, math.ceil(duration_s * fps - GRID_TOLERANCE))


def probe(path: str | os.PathLike) -> VideoInfo:
    """Read size, length, rate and start of a video; decodes one frame: a broken film fails here.

    Where the header does not state the length reliably, the packets are read once, undecoded.

    Raises:
        UserError: not a readable video with at least one frame.
    """
    try:
        about = os.stat(path)
        return _probe(os.fspath(path), about.st_size, about.st_mtime_ns)
    except (OSError, ValueError):  # says what is wrong with the path
        return _probe.__wrapped__(os.fspath(path), 0, 0)


@lru_cache(maxsize=64)
def _probe(path: str, _size: int, _mtime_ns: int) -> VideoInfo:
    """`probe` of a file as it was; size and time of change are the cache's key."""
    with open_video(path) as (container, stream):
        start_s, end_s = _container_start_s(container), _stated_end_s(stream)
        first = next(_frames(container, stream, path), None)
        if first is None:
            raise UserError(f"no frame could be decoded: {path}; check the file in a video player")
        formats = container.format.name.split(",")
        if start_s is None:
            start_s = 0.0 if set(formats) & set(NEGATIVE_TIME_FORMATS) else first.start_s
        swapped = first.frame.rotation % 180 != 0
        height, width = first.frame.height, first.frame.width
        stated_s = None if end_s is None else max(0.0, end_s - start_s)
        fps, codec = float(stream.average_rate or 0), stream.codec_context.name
    duration_s, jumps_s = stated_s, ()
    if stated_s is None or not set(formats) & set(INDEXED_FORMATS) or _is_joined(path, formats):
        duration_s, jumps_s = _scanned_duration_s(path, start_s)
        if stated_s is not None and not set(formats) & set(JUMPING_FORMATS) and not jumps_s:
            duration_s = max(duration_s, stated_s)  # a header that promises more: the film was cut
    return VideoInfo(
        path=path,
        width=height if swapped else width,
        height=width if swapped else height,
        duration_s=duration_s,
        fps=fps,
        start_s=start_s,
        codec=codec,
        format=",".join(formats),
        jumps_s=jumps_s,
        can_seek=not jumps_s and not set(formats) & set(DECODING_TIME_FORMATS),
    )


def iter_frames(
    path: str | os.PathLike,
    fps: float,
    *,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    threads: int = 0,
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield the frames shown at the grid times `index / fps`, for all of them in [start_s, end_s).

    Exactly `probe(path).num_samples(fps)` items for the whole film. The frame of a time is the one
    on screen: the last that starts no later (2 ms of timestamp rounding allowed); the first one is
    there from the film's start, the last one until its end. Memory does not grow with the film.

    Args:
        path: a video file.
        fps: grid rate; may be above or below the film's own.
        size: (width, height) to resize to, as displayed; FFmpeg's swscale, bicubic, which averages
            over the source pixels when it shrinks. None keeps the film's size.
        start_s, end_s: part of the film; the index still counts from the film's first frame.
        threads: of the decoder; 0: as many as there are cores.

    Yields:
        (index, time_s, rgb): rgb is uint8 [height, width, 3]; the same array comes again when fps
        is above the film's rate, so do not write into it.

    Raises:
        UserError: unreadable file, or a film that ends before the length its header promises; the
            message says how many seconds were readable.
    """
    if not fps > 0:
        raise UserError(f"fps must be above 0, not {fps}")
    info = probe(path)
    index = max(0, math.ceil(start_s * fps - GRID_TOLERANCE))
    stop = info.num_samples(fps)
    if end_s is not None:
        stop = min(stop, math.ceil(end_s * fps - GRID_TOLERANCE))
    if index >= stop:
        return
    if info.jumps_s:
        times = ", ".join(f"{jump_s:.1f}" for jump_s in info.jumps_s[:5])
        more = f" and {len(info.jumps_s) - 5} more" if len(info.jumps_s) > 5 else ""
        logger.warning(
            "%s: its clock falls back or jumps at %s s%s; times go on from there without the jump",
            *(path, times, more),
        )
    to_rgb = _RgbConverter(size)
    shown, gap_s = None, 0.0
    wanted = on_grid(fps, TIME_TOLERANCE_S)
    for frame in _frames_from(path, info, index / fps, wanted, threads):
        while index < stop and frame.start_s > index / fps + TIME_TOLERANCE_S:
            yield index, index / fps, to_rgb(shown or frame)
            index += 1
        if index >= stop:
            return
        gap_s = frame.start_s - shown.start_s if shown else 0.0
        shown = frame
    readable_s = shown.end_s if shown else 0.0
    if shown is None or readable_s + max(END_TOLERANCE_S, 2 * gap_s) < info.duration_s:
        raise UserError(
            f"only {readable_s:.1f} of {info.duration_s:.1f} s are readable: {path}; the file was"
            " cut or is damaged, fetch or copy it again"
        )
    while index < stop:
        yield index, index / fps, to_rgb(shown)
        index += 1


def read_frame(
    path: str | os.PathLike, time_s: float, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The frame on screen at `time_s` (clipped to the film), by seeking; uint8 [height, width, 3].

    Raises:
        UserError: unreadable file.
    """
    info = probe(path)
    shown, time_s = None, max(0.0, time_s)
    for frame in _frames_from(path, info, time_s, at_times([time_s], TIME_TOLERANCE_S)):
        if shown and frame.start_s > time_s + TIME_TOLERANCE_S:
            break
        shown = frame
    if shown is None:
        raise UserError(f"no frame could be decoded near {time_s:.1f} s: {path}")
    return _RgbConverter(size)(shown)


def frames_between(
    path: str | os.PathLike, start_s: float, end_s: float
) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Every frame that is on screen in [start_s, end_s): its start and end in it, and the frame.

    Each lasts until the next one; the first is the one on screen at `start_s`.

    Raises:
        UserError: unreadable file.
    """
    info = probe(path)
    shown = None
    for frame in _frames_from(path, info, max(0.0, start_s)):
        if shown is not None and frame.start_s > start_s + TIME_TOLERANCE_S:
            yield max(shown.start_s, start_s), min(frame.start_s, end_s), shown.frame
        shown = frame
        if frame.start_s >= end_s - TIME_TOLERANCE_S:
            return
    if shown is not None:
        yield max(shown.start_s, start_s), end_s, shown.frame


def frames_at(
    path: str | os.PathLike, times_s: Sequence[float], *, size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The frames on screen at rising times, decoded in one go from the first to the last.

    Args:
        size: width and height of the result; None: as displayed.

    Returns:
        uint8 [height, width, 3] per time; times behind the last frame have that one.

    Raises:
        UserError: unreadable file.
    """
    if not times_s:
        return []
    to_rgb, pictures, shown = _RgbConverter(size), [], None
    wanted = at_times(times_s, TIME_TOLERANCE_S)
    for frame in _frames_from(path, probe(path), max(0.0, times_s[0]), wanted):
        for time_s in times_s[len(pictures) :]:
            if frame.start_s <= time_s + TIME_TOLERANCE_S:
                break
            pictures.append(to_rgb(shown or frame))
        if len(pictures) == len(times_s):
            return pictures
        shown = frame
    if shown is None:
        raise UserError(f"no frame could be decoded near {times_s[0]:.1f} s: {path}")
    return pictures + [to_rgb(shown)] * (len(times_s) - len(pictures))


def encode_jpeg(rgb: np.ndarray, *, quality: int = 80) -> bytes:
    """JPEG file of uint8 [height, width, 3]; quality is Pillow's, 1..95."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Frame:
    """A decoded frame and the seconds it is on screen."""

    start_s: float
    end_s: float
    frame: av.VideoFrame


class _RgbConverter:
    """Turns decoded frames into upright RGB arrays; keeps swscale's tables and the last result."""

    def __init__(self, size: tuple[int, int] | None):
        from av.video.reformatter import VideoReformatter

        self._size = size
        self._reformatter = VideoReformatter()
        self._last: tuple[_Frame, np.ndarray] | None = None

    def __call__(self, shown: _Frame) -> np.ndarray:
        if self._last is None or self._last[0] is not shown:
            self._last = (shown, self._convert(shown.frame))
        return self._last[1]

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        quarter_turns = frame.rotation // 90  # counter-clockwise, as numpy.rot90 counts
        width, height = self._size or (None, None)
        if quarter_turns % 2:
            width, height = height, width
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=SWSCALE_FLAGS
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb


def _stated_end_s(stream: VideoStream) -> float | None:
    """End of the video stream on the container's clock, by its header; None if that is left open.

    Ask before anything is decoded: FFmpeg fills in what it learns on the way.
    """
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska
    parts = tag.split(":")
    if len(parts) != 3:
        return None
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _container_start_s(container: InputContainer) -> float | None:
    """Where the earliest stream starts on the container's clock; None if nothing says."""
    start = container.start_time
    return None if start is None else start / 1_000_000


def _is_joined(path: str, formats: Sequence[str]) -> bool:
    """Whether a Matroska file goes on after its first segment, as copies of several into one do."""
    if "matroska" not in formats:
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67") + 4  # the segment's id; its size follows, 1 to 8 bytes
    if at < 4 or at >= len(head) or not head[at]:
        return False
    width = 9 - head[at].bit_length()
    size = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    is_known = size != (1 << 7 * width) - 1
    return is_known and at + width + size < os.path.getsize(path)


def _scanned_duration_s(path: str, start_s: float) -> tuple[float, tuple[float, ...]]:
    """Length of the video stream, by reading all packets without decoding them.

    Returns:
        Seconds from `start_s` to the last picture's end, and where the clock jumped, in seconds.
    """
    with open_video(path) as (container, stream):
        clock = _PacketClock(container, stream, path)
        for _ in clock.packets():
            pass
    size = os.path.getsize(path)
    unread = size - clock.read_bytes
    if clock.read_bytes and unread > max(UNREAD_BYTES, UNREAD_PART * size):
        logger.warning(
            "%s: FFmpeg reads only the first %d of %d bytes; if it was joined from several files,"
            " join them again with ffmpeg's concat demuxer",
            *(path, clock.read_bytes, size),
        )
    end_s = start_s if clock.end_s is None else clock.end_s
    return max(0.0, end_s - start_s), tuple(jump_s - start_s for jump_s in clock.jumps_s)


def _has_decoding_times(container: InputContainer) -> bool:
    return container.format.name in DECODING_TIME_FORMATS


def _known_rate(stream: VideoStream, path: str | os.PathLike) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"neither timestamps nor a frame rate are stored: {path}; re-mux the film")
    return float(rate)


class _PacketClock:
    """The packets of a video stream on a clock that never falls back.

    In formats whose clocks jump it never leaves much out either. From a fall or jump on, all times
    are moved, so that pictures follow one another. Sound that goes on meanwhile shows that a
    picture stood still and nothing jumped.

    Attributes:
        end_s: end of the last picture so far, on the moved clock; None before the first.
        jumps_s: where the clock was moved, on the moved clock.
        read_bytes: how far the file was read.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: str | os.PathLike):
        self._container, self._stream, self._path = container, stream, path
        self._jumping = container.format.name in JUMPING_FORMATS
        self._moved_s, self._decoded_s, self._heard_s = 0.0, None, []
        self.end_s: float | None = None
        self.jumps_s: list[float] = []
        self.read_bytes = 0

    def packets(self) -> Iterator[av.Packet]:
        """Up to the end of what can be read; the last one is the flush packet."""
        import av

        sound = [stream for stream in self._container.streams.audio if stream.codec_context]
        try:
            for packet in self._container.demux(self._stream, *sound):
                self.read_bytes = max(self.read_bytes, (packet.pos or 0) + packet.size)
                if packet.stream is self._stream:
                    if packet.size:
                        self._keep_time(packet)
                    yield packet
                elif packet.dts is not None:
                    self._heard_s.append(_seconds(packet.dts, packet) + self._moved_s)
        except av.error.FFmpegError as error:
            logger.warning("%s: reading stopped early: %s", self._path, error.strerror)

    def _keep_time(self, packet: av.Packet) -> None:
        """Move the packet's times, further than those before if its own clock jumps here."""
        shown = packet.dts if _has_decoding_times(self._container) else packet.pts
        shown_s = None if shown is None else _seconds(shown, packet) + self._moved_s
        decoded_s = None if packet.dts is None else _seconds(packet.dts, packet) + self._moved_s
        if self._jumps_at(shown_s if decoded_s is None else decoded_s, decoded_s is not None):
            first_s = decoded_s if shown_s is None else shown_s
            change_s = self.end_s - first_s
            self._moved_s += change_s
            self.jumps_s.append(self.end_s)
            shown_s = self.end_s
            decoded_s = None if decoded_s is None else decoded_s + change_s
        if decoded_s is not None:
            self._decoded_s = decoded_s
            self._heard_s.clear()
        if self._moved_s:
            moved = round(self._moved_s / float(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts + moved
            packet.dts = None if packet.dts is None else packet.dts + moved
        length_s = _packet_length_s(packet, self._stream)
        if shown_s is None:  # nothing but its place in the row says when
            _known_rate(self._stream, self._path)
            shown_s = self._stream_start_s if self.end_s is None else self.end_s
        self.end_s = max(shown_s + length_s, -math.inf if self.end_s is None else self.end_s)

    @property
    def _stream_start_s(self) -> float:
        return float((self._stream.start_time or 0) * self._stream.time_base)

    def _jumps_at(self, at_s: float | None, is_decoding_time: bool) -> bool:
        """Does the clock fall back or jump ahead to this time? No without a time before it."""
        if at_s is None or self._decoded_s is None:
            return False
        gap_s = at_s - self._decoded_s
        if gap_s < -FALL_BACK_S or not (self._jumping and is_decoding_time):
            return gap_s < -FALL_BACK_S
        rate = self._stream.average_rate
        before_start = self._decoded_s < (_container_start_s(self._container) or 0.0)
        if before_start or gap_s <= max(JUMP_AHEAD_S, 3 / float(rate) if rate else 0.0):
            return False
        return not any(self._decoded_s + gap_s / 4 < t < at_s - gap_s / 4 for t in self._heard_s)


def _seconds(ticks: int, timed: av.Packet | av.VideoFrame) -> float:
    base = timed.time_base  # as float(ticks * base) to the last bit, in a tenth of the time
    return ticks * base.numerator / base.denominator


def _packet_length_s(packet: av.Packet, stream: VideoStream) -> float:
    """How long a packet's picture is shown, by its own word or the stream's rate; 0: unknown."""
    if packet.duration:
        return _seconds(packet.duration, packet)
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 0.0


def _frames(
    container: InputContainer,
    stream: VideoStream,
    path: str | os.PathLike,
    wanted: Wanted | None = None,
    zero_s: float = 0.0,
) -> Iterator[_Frame]:
    """Decode on from the container's position; times are on the container's clock, never falling.

    Pictures that no wanted time shows, counted from `zero_s`, may be left out.

    Packets that cannot be decoded are counted and reported in one warning; the picture before them
    stays on screen, as in a player.
    """
    import av

    damaged, previous_end_s, previous_start_s = 0, None, -math.inf
    before_zero = None  # the last picture of those without a time in front of the first with one
    may_be_negative = bool(set(container.format.name.split(",")) & set(NEGATIVE_TIME_FORMATS))
    try:
        packets = _PacketClock(container, stream, path).packets()
        if wanted is not None and not _has_decoding_times(container):
            packets = needed_packets(packets, stream, wanted, zero_s)
        for packet in packets:
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                damaged += 1
                continue
            for frame in decoded:
                if may_be_negative and previous_end_s is None and frame.pts is None:
                    before_zero = frame
                    continue
                start_s = _frame_start_s(frame, stream, path, previous_end_s)
                start_s = max(start_s, previous_start_s)
                if before_zero is not None:
                    yield _Frame(
                        start_s - _frame_length_s(before_zero, stream), start_s, before_zero
                    )
                    before_zero = None
                previous_start_s = start_s
                previous_end_s = start_s + _frame_length_s(frame, stream)
                yield _Frame(start_s, previous_end_s, frame)
    finally:  # also when the reader needs no more frames
        if damaged:
            logger.warning("%s: %d damaged packets could not be decoded", path, damaged)


def _frame_start_s(
    frame: av.VideoFrame, stream: VideoStream, path: str | os.PathLike, previous_end_s: float | None
) -> float:
    """Presentation time; if missing the decoding time, else right after the frame before.

    Where presentation times are made up, the decoding time, as FFmpeg's best effort is.
    """
    ticks = frame.dts
    if frame.pts is not None and not _has_decoding_times(stream.container):
        ticks = frame.pts
    if ticks is not None:
        return _seconds(ticks, frame)
    _known_rate(stream, path)  # refuses a film without any notion of time
    return 0.0 if previous_end_s is None else previous_end_s


def _frame_length_s(frame: av.VideoFrame, stream: VideoStream) -> float:
    if frame.duration and frame.time_base:
        return _seconds(frame.duration, frame)
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 0.0


def _frames_from(
    path: str | os.PathLike,
    info: VideoInfo,
    time_s: float,
    wanted: Wanted | None = None,
    threads: int = 0,
) -> Iterator[_Frame]:
    """Frames on the film's clock, the first no later than the one on screen at `time_s`; those that
    no wanted time shows may be left out.

    Seeks to the key frame before, or to an earlier one if that comes too late (pictures shown
    before a key frame may be stored behind it); where it cannot seek, decodes from the start.
    """
    import av

    for before_s in SEEK_BEFORE_S if time_s > 0 and info.can_seek else ():
        if before_s >= time_s:
            break
        with open_video(path, threads=threads) as (container, stream):
            try:
                ticks = math.floor((info.start_s + time_s - before_s) / stream.time_base)
                container.seek(ticks, stream=stream)
                frames = _on_film_clock(container, stream, info, wanted)
                first = next(frames, None)
            except av.error.FFmpegError:
                first = None
            # Without timestamps of its own a frame does not tell where the seek went.
            stamped = first is not None and first.frame.pts is not None
            if stamped and first.start_s <= time_s + TIME_TOLERANCE_S:
                yield first
                yield from frames
                return
    with open_video(path, threads=threads) as (container, stream):
        yield from _on_film_clock(container, stream, info, wanted)


def _on_film_clock(
    container: InputContainer, stream: VideoStream, info: VideoInfo, wanted: Wanted | None
) -> Iterator[_Frame]:
    for frame in _frames(container, stream, info.path, wanted, info.start_s):
        yield _Frame(frame.start_s - info.start_s, frame.end_s - info.start_s, frame.frame)
