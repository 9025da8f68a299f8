"""Read frames of a video file at a fixed rate, by the timestamps stored in the container (PyAV).

Times are seconds from the film's first frame. A frame's place in time is its presentation
timestamp, never frame_index / fps: films with a variable frame rate or a late start come out right.
Documentation of the library: https://pyav.basswood-io.com
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.data.video_file import open_video
from revisionllm.errors import UserError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# A frame counts as shown at `t` if it starts at most this late: containers round times to 1 ms.
TIME_TOLERANCE_S = 0.002
# A film that ends earlier than its header says by more than this (or two frames) was cut.
END_TOLERANCE_S = 0.5
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
        duration_s: from the first frame's start to the last frame's end.
        fps: average frame rate; 0 when the container states none.
        start_s: timestamp of the first frame on the container's own clock.
        codec: FFmpeg's name of the video codec.
    """

    path: str
    width: int
    height: int
    duration_s: float
    fps: float
    start_s: float
    codec: str

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

    Where the container states no length for the video stream, its packets are read once, undecoded.

    Raises:
        UserError: not a readable video with at least one frame.
    """
    with open_video(path) as (container, stream):
        first = next(_frames(container, stream, path), None)
        if first is None:
            raise UserError(f"no frame could be decoded: {path}; check the file in a video player")
        start_s = first.start_s
        swapped = first.frame.rotation % 180 != 0
        height, width = first.frame.height, first.frame.width
        duration_s = _stated_duration_s(stream, start_s)
        fps, codec = float(stream.average_rate or 0), stream.codec_context.name
    if duration_s is None:
        duration_s = _scanned_duration_s(path, start_s)
    return VideoInfo(
        path=str(path),
        width=height if swapped else width,
        height=width if swapped else height,
        duration_s=duration_s,
        fps=fps,
        start_s=start_s,
        codec=codec,
    )


def iter_frames(
    path: str | os.PathLike,
    fps: float,
    *,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield the frames shown at the grid times `index / fps`, for all of them in [start_s, end_s).

    Exactly `probe(path).num_samples(fps)` items for the whole film. The frame of a time is the one
    on screen: the last that starts no later (2 ms of timestamp rounding allowed); the last frame
    stays until the film's end. Memory does not grow with the film.

    Args:
        path: a video file.
        fps: grid rate; may be above or below the film's own.
        size: (width, height) to resize to, as displayed; FFmpeg's swscale, bicubic, which averages
            over the source pixels when it shrinks. None keeps the film's size.
        start_s, end_s: part of the film; the index still counts from the film's first frame.

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
    to_rgb = _RgbConverter(size)
    shown, gap_s = None, 0.0
    for frame in _frames_from(path, info, index / fps):
        while shown and index < stop and frame.start_s > index / fps + TIME_TOLERANCE_S:
            yield index, index / fps, to_rgb(shown)
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
    shown = None
    for frame in _frames_from(path, info, max(0.0, time_s)):
        if shown and frame.start_s > time_s + TIME_TOLERANCE_S:
            break
        shown = frame
    if shown is None:
        raise UserError(f"no frame could be decoded near {time_s:.1f} s: {path}")
    return _RgbConverter(size)(shown)


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


def _stated_duration_s(stream: VideoStream, start_s: float) -> float | None:
    """Length of the video stream by its header; None where the header leaves it open."""
    if stream.duration is not None:
        stream_start_s = float((stream.start_time or 0) * stream.time_base)
        return max(0.0, stream_start_s + float(stream.duration * stream.time_base) - start_s)
    tag = stream.metadata.get("DURATION", "")  # Matroska; from the file's zero or the first frame
    parts = tag.split(":")
    if len(parts) != 3 or start_s > END_TOLERANCE_S:
        return None
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _scanned_duration_s(path: str | os.PathLike, start_s: float) -> float:
    """Length of the video stream by reading all packets without decoding them."""
    with open_video(path) as (container, stream):
        step_s = 1 / _known_rate(stream, path)
        end_s, count = start_s, 0
        for packet in _packets(container, stream, path):
            if packet.size == 0:
                continue
            count += 1
            packet_start_s = start_s + (count - 1) * step_s
            if packet.pts is not None:
                packet_start_s = float(packet.pts * packet.time_base)
            length_s = float(packet.duration * packet.time_base) if packet.duration else step_s
            end_s = max(end_s, packet_start_s + length_s)
    return end_s - start_s


def _known_rate(stream: VideoStream, path: str | os.PathLike) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"neither timestamps nor a frame rate are stored: {path}; re-mux the film")
    return float(rate)


def _packets(
    container: InputContainer, stream: VideoStream, path: str | os.PathLike
) -> Iterator[av.Packet]:
    """Packets of the stream up to the end of what can be read; the last one is the flush packet."""
    import av

    try:
        yield from container.demux(stream)
    except av.error.FFmpegError as error:
        logger.warning("%s: reading stopped early: %s", path, error.strerror)


def _frames(
    container: InputContainer, stream: VideoStream, path: str | os.PathLike
) -> Iterator[_Frame]:
    """Decode on from the container's position; times are on the container's clock, never falling.

    Packets that cannot be decoded are counted and reported in one warning; the picture before them
    stays on screen, as in a player.
    """
    import av

    damaged, previous_end_s, previous_start_s = 0, None, -math.inf
    try:
        for packet in _packets(container, stream, path):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                damaged += 1
                continue
            for frame in decoded:
                start_s = _frame_start_s(frame, stream, path, previous_end_s)
                start_s = max(start_s, previous_start_s)
                previous_start_s = start_s
                previous_end_s = start_s + _frame_length_s(frame, stream)
                yield _Frame(start_s, previous_end_s, frame)
    finally:  # also when the reader needs no more frames
        if damaged:
            logger.warning("%s: %d damaged packets could not be decoded", path, damaged)


def _frame_start_s(
    frame: av.VideoFrame, stream: VideoStream, path: str | os.PathLike, previous_end_s: float | None
) -> float:
    """Presentation time; if missing the decoding time, else right after the frame before."""
    ticks = frame.pts if frame.pts is not None else frame.dts
    if ticks is not None:
        return float(ticks * frame.time_base)
    _known_rate(stream, path)  # refuses a film without any notion of time
    return 0.0 if previous_end_s is None else previous_end_s


def _frame_length_s(frame: av.VideoFrame, stream: VideoStream) -> float:
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 0.0


def _frames_from(path: str | os.PathLike, info: VideoInfo, time_s: float) -> Iterator[_Frame]:
    """Frames on the film's clock, the first no later than the one on screen at `time_s`.

    Seeks to the key frame before; where the container cannot seek there, decodes from the start.
    """
    import av

    if time_s > 0:
        with open_video(path) as (container, stream):
            try:
                ticks = math.floor((info.start_s + time_s) / stream.time_base)
                container.seek(ticks, stream=stream)
                frames = _on_film_clock(container, stream, info)
                first = next(frames, None)
            except av.error.FFmpegError:
                first = None
            # Without timestamps of its own a frame does not tell where the seek went.
            stamped = first is not None and first.frame.pts is not None
            if stamped and first.start_s <= time_s + TIME_TOLERANCE_S:
                yield first
                yield from frames
                return
    with open_video(path) as (container, stream):
        yield from _on_film_clock(container, stream, info)


def _on_film_clock(
    container: InputContainer, stream: VideoStream, info: VideoInfo
) -> Iterator[_Frame]:
    for frame in _frames(container, stream, info.path):
        yield _Frame(frame.start_s - info.start_s, frame.end_s - info.start_s, frame.frame)
