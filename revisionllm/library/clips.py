"""Cut a part out of a film: packets as they are, or decoded and encoded again (PyAV).

A copy loses nothing and takes no time, and starts at the key frame before. Encoded again, the part
starts at the very frame that is on screen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.data.video import SWSCALE_FLAGS, TIME_TOLERANCE_S, VideoInfo, frames_between, probe
from revisionllm.data.video_file import open_video, pyav
from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, replacing

if TYPE_CHECKING:
    import av

SUFFIX_OF_FORMAT = {"mp4": ".mp4", "mpegts": ".ts", "matroska": ".mkv", "avi": ".avi"}
FORMAT_OF_SUFFIX = {".mp4": "mp4", ".mkv": "matroska", ".ts": "mpegts"}
# how much earlier to seek where a seek came out behind the moment (transport streams)
EARLIER_S = (0.0, 2.0, 10.0, 60.0, math.inf)
CLOCK = Fraction(1, 90_000)  # of pictures that are encoded again
ENCODER = {"crf": "18", "preset": "veryfast", "bf": "0"}
SOUND_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # AAC's


def clip_suffix(info: VideoInfo, *, reencode: bool) -> str:
    """The suffix of a clip's file: of the film's own format where it can be written, else .mkv."""
    if reencode:
        return ".mp4"
    found = [SUFFIX_OF_FORMAT[name] for name in info.format.split(",") if name in SUFFIX_OF_FORMAT]
    return found[0] if found and found[0] in FORMAT_OF_SUFFIX else ".mkv"


def cut_clip(
    video: Path, start_s: float, end_s: float, out: Path, *, reencode: bool = False
) -> float:
    """Write [start_s, end_s) of a film, picture and sound.

    Args:
        out: the file; its suffix is `clip_suffix`'s.
        reencode: H.264 and AAC, from the very frame on; False: packets are copied.

    Returns:
        Where in the film the clip starts, in seconds: `start_s`, or the key frame before.

    Raises:
        UserError: unreadable film, nothing there to cut, or times that cannot be copied.
    """
    info = probe(video)
    start_s, end_s = max(0.0, start_s), min(end_s, info.duration_s)
    if not start_s < end_s:
        raise UserError(f"{video} has {info.duration_s:.1f} s; nothing to cut at {start_s:.1f} s")
    if info.jumps_s:
        raise UserError(
            f"{video}: its clock jumps at {info.jumps_s[0]:.1f} s, so no part can be cut; mend it"
            f" with `ffmpeg -fflags +genpts -i FILM -c copy NEW.mkv`"
        )
    options = {"movflags": "faststart"} if out.suffix == ".mp4" else {}
    with (
        replacing(out) as temporary,
        pyav().open(
            str(temporary), "w", format=FORMAT_OF_SUFFIX[out.suffix], options=options
        ) as target,
    ):
        target.metadata["comment"] = f"made_by: {MADE_BY}"
        if reencode:
            _encode(info, start_s, end_s, target)
            return start_s
        return _copy(info, start_s, end_s, target)


def _copy(info: VideoInfo, start_s: float, end_s: float, target) -> float:
    """Copy packets from the last key frame that is no later; where that is."""
    for earlier_s in EARLIER_S:
        with open_video(info.path) as (source, stream):
            wanted = info.start_s + start_s
            if earlier_s < wanted - info.start_s:
                source.seek(math.floor((wanted - earlier_s) / stream.time_base), stream=stream)
            sound = list(source.streams.audio)
            packets = _from_key_frame(source.demux(stream, *sound), stream, wanted, info.path)
            first = next(packets, None)
            if first is None and earlier_s != EARLIER_S[-1]:
                continue  # the seek came out behind the moment
            if first is None:
                raise UserError(f"{info.path}: no key frame before {start_s:.1f} s; --reencode")
            streams = {old.index: target.add_stream_from_template(old) for old in (stream, *sound)}
            zero_s = float(first.pts * first.time_base)
            _mux(first, packets, streams, zero_s, info.start_s + end_s, target, stream)
            return max(0.0, zero_s - info.start_s)
    raise AssertionError("the last try decides")


def _from_key_frame(packets, stream, wanted_s: float, path: str) -> Iterator[av.Packet]:
    """Packets from the last key frame at or before a time on, it first; none if it was missed."""
    held: list = []  # pictures from the key frame on
    heard: list = []
    for packet in packets:
        if not packet.size:  # the end
            break
        if packet.stream is not stream:
            heard.append(packet)
            continue
        if packet.pts is None:
            raise UserError(f"{path} keeps no presentation times; --reencode")
        if packet.is_keyframe:
            if float(packet.pts * packet.time_base) <= wanted_s + TIME_TOLERANCE_S:
                held = []
            elif not held:
                return
        elif not held:
            continue  # what depends on a key frame before the seek
        held.append(packet)
        if packet.dts is not None and float(packet.dts * packet.time_base) > wanted_s:
            break
    _fill_decoding_times(held, stream)
    yield from held
    yield from heard
    if held:
        yield from packets


def _fill_decoding_times(packets: list, stream) -> None:
    """Matroska keeps none; FFmpeg makes them up, but for the first few packets after a seek."""
    known = next((n for n, packet in enumerate(packets) if packet.dts is not None), None)
    rate = stream.average_rate or stream.guessed_rate or 25
    if known is None and packets:
        known = len(packets) - 1
        packets[-1].dts = packets[-1].pts
    for number in range((known or 0) - 1, -1, -1):
        later = packets[number + 1]
        step = packets[number].duration or round(1 / (rate * later.time_base))
        packets[number].dts = later.dts - max(1, step)


def _mux(first, packets, streams: dict, zero_s: float, end_s: float, target, stream) -> None:
    """Write packets with `zero_s` as their zero, until each stream is at its end."""
    open_streams = set(streams)
    for packet in itertools.chain([first], packets):
        index = packet.stream.index
        if not packet.size or packet.dts is None or index not in open_streams:
            continue
        at_s = float(packet.dts * packet.time_base)
        if at_s >= end_s:  # by decoding time: what earlier pictures are made from is kept
            open_streams.discard(index)
            if not open_streams or packet.stream is stream:
                break
            continue
        if float(packet.pts * packet.time_base) < zero_s - 1e-6:
            continue  # pictures that need what was before the key frame; sound before it
        ticks = round(zero_s / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packet.stream = streams[index]
        target.mux(packet)


def _encode(info: VideoInfo, start_s: float, end_s: float, target) -> None:
    """Decode and encode picture and sound of a part, from the frame on screen at its start."""
    if "libx264" not in pyav().codecs_available:
        raise UserError("FFmpeg here writes no H.264; `pip install --force-reinstall av`")
    with open_video(info.path) as (source, stream):
        rate, shape = stream.average_rate or 25, stream.sample_aspect_ratio
        sound = source.streams.best("audio")
        sound_rate = 0 if sound is None else _sound_rate(sound.rate)
        layout = None if sound is None else sound.layout.name
    picture = target.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
    picture.options = ENCODER
    picture.width, picture.height = info.width // 2 * 2, info.height // 2 * 2
    picture.pix_fmt = "yuv420p"
    picture.codec_context.time_base = CLOCK
    if shape:
        picture.codec_context.sample_aspect_ratio = shape
    heard = None
    if sound is not None:
        heard = target.add_stream("aac", rate=sound_rate, layout=layout)
    lengths = {}

    def write(packets) -> None:
        for packet in packets:
            packet.duration = lengths.get(packet.pts, packet.duration)
            target.mux(packet)

    for from_s, until_s, frame in frames_between(info.path, start_s, end_s):
        upright = _upright(frame, picture.width, picture.height)
        upright.pts, upright.time_base = round((from_s - start_s) / CLOCK), CLOCK
        upright.pict_type = 0  # FFmpeg chooses key frames anew
        lengths[upright.pts] = max(1, round((until_s - start_s) / CLOCK) - upright.pts)
        write(picture.encode(upright))
    write(picture.encode())
    if heard is not None:
        for samples in _sound_between(info, start_s, end_s, sound_rate, layout):
            target.mux(heard.encode(samples))
        target.mux(heard.encode())


def _upright(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """A frame as displayed, in the encoder's size and colours."""
    import av

    if frame.rotation % 360 == 0:
        return frame.reformat(
            width=width, height=height, format="yuv420p", interpolation=SWSCALE_FLAGS
        )
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    turned = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return turned.reformat(width=width, height=height, format="yuv420p")


def _sound_rate(rate: int) -> int:
    return rate if rate in SOUND_RATES else 48_000


def _sound_between(
    info: VideoInfo, start_s: float, end_s: float, rate: int, layout: str
) -> Iterator[av.AudioFrame]:
    """The samples of [start_s, end_s), from 0 on, as floats."""
    import av

    first, end = info.start_s + start_s, info.start_s + end_s
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    with open_video(info.path) as (source, _):
        sound = source.streams.best("audio")
        if start_s > 0 and info.can_seek:
            source.seek(math.floor(max(0.0, first - 1.0) / sound.time_base), stream=sound)
        for frame in source.decode(sound):
            if frame.pts is None:
                continue
            if float(frame.pts * frame.time_base) >= end:
                return
            for part in resampler.resample(frame):
                at = round((float(part.pts * part.time_base) - first) * rate)
                samples = part.to_ndarray()
                skipped = max(0, -at)
                kept = samples[:, skipped : max(0, round((end - first) * rate) - at)]
                if not kept.shape[1]:
                    continue
                trimmed = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(kept), format="fltp", layout=layout
                )
                trimmed.sample_rate, trimmed.time_base = rate, Fraction(1, rate)
                trimmed.pts = at + skipped
                yield trimmed
