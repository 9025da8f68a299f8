"""Moments and windows that begin and end with shots (`find --snap shots`).

Cuts are looked for around their ends alone, by PySceneDetect's ContentDetector (optional:
`pip install scenedetect opencv-python-headless`; https://www.scenedetect.com) on frames by the
film's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from revisionllm.data.video import frames_between, probe
from revisionllm.errors import check_installed
from revisionllm.grounding.levels import Moment
from revisionllm.grounding.windows import Window
from revisionllm.library.words import LEVEL
from revisionllm.records.films import Film

SNAP_S = 2.0  # how far an end may move
AROUND_S = 0.5  # frames before and after that are seen, too
WIDTH = 320  # pixels, of what the detector sees
LEAST_SHARE = 0.5  # of its length that a moment keeps


def check_shots() -> None:
    """Raises UserError where PySceneDetect is missing."""
    check_installed(
        "--snap shots needs PySceneDetect",
        "scenedetect",
        "cv2",
        get="scenedetect opencv-python-headless",
    )


def snap(video: Path, moments: Sequence[Moment]) -> None:
    """Move the ends of moments to the nearest cuts within `SNAP_S`; changes them in place.

    What is said keeps its times: speech does not mind cuts.
    """
    for moment in moments:
        if moment.level == LEVEL:
            continue
        start_s, end_s = (_nearest(video, at_s) for at_s in (moment.start_s, moment.end_s))
        if end_s - start_s >= LEAST_SHARE * (moment.end_s - moment.start_s):
            moment.start_s, moment.end_s = start_s, end_s


def snap_window(film: Film, window: Window) -> Window:
    """The window with its ends at the nearest cuts within `SNAP_S`; the film's own ends stay."""
    video, start_s, end_s = film.video_path, window.start_s, window.end_s
    if start_s > 0:
        start_s = _nearest(video, start_s)
    if end_s < film.duration_s:
        end_s = _nearest(video, end_s)
    return replace(window, start_s=start_s, end_s=end_s) if start_s < end_s else window


def _nearest(video: Path, at_s: float) -> float:
    return _nearest_cut(video, video.stat().st_mtime_ns, at_s)


@lru_cache(maxsize=1 << 14)  # neighbouring windows share ends, sentences share windows
def _nearest_cut(video: Path, _version: int, at_s: float) -> float:
    cuts = cuts_between(video, at_s - SNAP_S, at_s + SNAP_S)
    return min(cuts, key=lambda cut_s: abs(cut_s - at_s), default=at_s)


def cuts_between(video: Path, start_s: float, end_s: float) -> list[float]:
    """Seconds at which a new shot is first on screen.

    Raises:
        UserError: unreadable film.
    """
    from scenedetect import ContentDetector, FrameTimecode

    info = probe(video)
    scale = min(1.0, WIDTH / info.width)
    size = {
        "width": max(2, round(info.width * scale)),
        "height": max(2, round(info.height * scale)),
    }
    detector = ContentDetector(min_scene_len=1)
    times_s: list[float] = []
    numbers: list[int] = []
    first_s, last_s = max(0.0, start_s - AROUND_S), min(end_s + AROUND_S, info.duration_s)
    for shown_s, _, frame in frames_between(video, first_s, last_s):
        picture = frame.reformat(**size).to_ndarray(format="bgr24")
        found = detector.process_frame(
            FrameTimecode(len(times_s), fps=25.0), np.ascontiguousarray(picture)
        )
        times_s.append(shown_s)
        numbers += [cut.frame_num for cut in found]
    return [times_s[number] for number in numbers if start_s <= times_s[number] <= end_s]
