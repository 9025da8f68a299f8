"""Films whose pictures show their number as bars: every frame says which it is."""

from __future__ import annotations

import av
import numpy as np

FPS, BARS, BAR_WIDTH = 25, 12, 16


def picture(number: int) -> np.ndarray:
    """uint8 [32, 192, 3]: one bar per binary digit of the number."""
    digits = np.array([number >> bit & 1 for bit in range(BARS)], np.uint8)
    row = np.repeat(16 + 219 * digits, BAR_WIDTH)
    return np.repeat(np.tile(row, (32, 1))[:, :, None], 3, axis=2)


def number_of(rgb: np.ndarray) -> int:
    middles = rgb[16, BAR_WIDTH // 2 :: BAR_WIDTH].mean(axis=-1)
    return int(sum(1 << bit for bit, level in enumerate(middles) if level > 128))


def write(path, numbers, *, codec="libx264", options=None, sound_s=None, late_s=0.0, form=None):
    """A film of numbered pictures at 25 per second, the first at `late_s`; sound from 0 on."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height, stream.pix_fmt = BARS * BAR_WIDTH, 32, "yuv420p"
        packets = []
        if sound_s:
            sound = container.add_stream("flac", rate=8000, layout="mono")
            silence = av.AudioFrame(format="s16", layout="mono", samples=round(8000 * sound_s))
            silence.sample_rate, silence.pts = 8000, 0
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            packets += [*sound.encode(silence), *sound.encode()]
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = place
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet in packets:
            if packet.stream is stream:
                ticks = round(late_s / float(packet.time_base))
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            container.mux(packet)
    return path
