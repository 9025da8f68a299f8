"""A film's frames by several readers, each with a part of its own, in order.

FFmpeg's threads wait for one another where pictures refer to one another; readers of different
parts do not. A part begins at a key frame, so this pays where these are near enough, and where the
file says where they are (MP4, MOV, Matroska).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from revisionllm.data.video import VideoInfo, iter_frames, probe
from revisionllm.data.video_file import open_video

MOST_READERS = 8
PART_S, GROUPS = 60.0, 4  # a part is so long at least, and so many groups of pictures
HELD_BYTES = 1 << 29  # pictures that wait to be taken

Frame = tuple[int, float, np.ndarray]


def frames_in_order(
    path: str | os.PathLike, fps: float, *, size: tuple[int, int], start_s: float = 0.0
) -> Iterator[Frame]:
    """As `video.iter_frames`, to the end of the film; the same pictures, bit for bit.

    Raises:
        UserError: see there.
    """
    info = probe(path)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    part_s = _part_s(info)
    if part_s is not None:
        part_bytes = part_s * fps * size[0] * size[1] * 3
        readers = min(cores or 1, MOST_READERS, int(HELD_BYTES / part_bytes) - 1)
    if part_s is None or readers < 2 or info.duration_s - start_s < 2 * part_s:
        yield from iter_frames(path, fps, size=size, start_s=start_s)
        return

    stopped = threading.Event()

    def read(span_s: tuple[float, float | None]) -> list[Frame]:
        first_s, end_s = span_s
        frames = iter_frames(path, fps, size=size, start_s=first_s, end_s=end_s, threads=1)
        return list(itertools.takewhile(lambda _: not stopped.is_set(), frames))

    count = int((info.duration_s - start_s) / part_s)
    bounds = [start_s + number * part_s for number in range(count)]
    # the last one goes on to the end, and sees if the film was cut
    parts = iter(zip(bounds, [*bounds[1:], None], strict=True))
    waiting: deque[Future[list[Frame]]] = deque()
    pool = ThreadPoolExecutor(readers)
    try:
        while True:
            while len(waiting) <= readers and (part := next(parts, None)) is not None:
                waiting.append(pool.submit(read, part))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _part_s(info: VideoInfo) -> float | None:
    """How long a part of a film should be; None: it is read in one go."""
    if not info.can_seek:
        return None
    with open_video(info.path) as (container, stream):
        if "matroska" in info.format:
            container.seek(0, stream=stream)  # has FFmpeg read where the key frames are
        entries = getattr(stream, "index_entries", ())  # older PyAVs have none
        keys = [entry.timestamp * stream.time_base for entry in entries if entry.is_keyframe]
    if len(keys) < 2:
        return None
    ends = np.array([float(key_s) for key_s in keys] + [info.start_s + info.duration_s])
    return max(PART_S, GROUPS * float(np.diff(ends).max()))
