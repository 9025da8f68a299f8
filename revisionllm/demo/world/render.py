"""Draws the frames of a planned film and writes them as H.264 (PyAV).

Shapes are cut out of a small distance grid and kept in a cache, so that a frame costs a background
copy and a few pastes: an hour renders and encodes in well under a minute on two cores with flat
memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from revisionllm.data.video_file import pyav
from revisionllm.demo.world.plans import (
    FILM_FPS,
    FRAME_HEIGHT,
    FRAME_WIDTH,
    PLACES,
    RADIUS_PX,
    WORLD_VERSION,
    FilmPlan,
    Shot,
    pose_of,
)
from revisionllm.files import MADE_BY, replacing

ANGLE_STEPS = 32  # sprites are cached by angle in 1/32 turns and by radius in half pixels
RGB = {
    "red": (220, 35, 35),
    "orange": (250, 145, 20),
    "yellow": (245, 230, 40),
    "green": (40, 175, 60),
    "blue": (45, 85, 230),
    "purple": (140, 45, 190),
    "pink": (255, 140, 200),
    "white": (250, 250, 250),
}
# place: (sky, ground, horizon as a fraction of the height, decoration, its colour)
SCENERY = {
    "beach": ((170, 205, 225), (215, 195, 150), 0.55, "waves", (120, 165, 195)),
    "forest": ((120, 150, 125), (85, 105, 75), 0.45, "trees", (55, 85, 60)),
    "desert": ((225, 200, 165), (205, 165, 115), 0.6, "poles", (110, 130, 85)),
    "city": ((165, 170, 185), (105, 105, 112), 0.7, "blocks", (130, 125, 135)),
    "snow": ((195, 205, 220), (225, 230, 238), 0.5, "hills", (205, 215, 230)),
    "meadow": ((165, 200, 215), (135, 170, 105), 0.4, "dots", (205, 180, 130)),
    "cave": ((60, 52, 50), (45, 40, 38), 0.65, "spikes", (85, 75, 70)),
    "ocean": ((50, 95, 130), (35, 70, 105), 0.5, "bubbles", (105, 150, 180)),
    "room": ((190, 170, 160), (130, 100, 80), 0.72, "window", (150, 185, 200)),
    "space": ((20, 20, 38), (30, 28, 52), 0.8, "dots", (190, 190, 200)),
}
GRID_Y, GRID_X = np.mgrid[0:FRAME_HEIGHT, 0:FRAME_WIDTH].astype(np.float32)


# --- scenery -------------------------------------------------------------------------------------


def _paint(image: np.ndarray, mask: np.ndarray, colour: tuple, strength: float = 1.0) -> None:
    image[mask] = image[mask] * (1 - strength) + np.asarray(colour, np.float32) * strength


def _decorate(image: np.ndarray, kind: str, colour: tuple, horizon: float, rng) -> None:
    horizon_px = horizon * FRAME_HEIGHT
    for _ in range(int(rng.integers(5, 9))):
        x, size = rng.uniform(0, FRAME_WIDTH), rng.uniform(0.5, 1.0)
        dx, up = np.abs(GRID_X - x), horizon_px - GRID_Y
        if kind == "waves":
            y = rng.uniform(horizon_px, FRAME_HEIGHT)
            _paint(image, (np.abs(GRID_Y - y - 2 * np.sin(GRID_X / 8)) < 1.2) & (dx < 40), colour)
        elif kind == "trees":
            _paint(
                image,
                (dx < (up + 8) * 0 + 12 * size * np.clip(1 - up / 50, 0, 1)) & (up > -10),
                colour,
            )
        elif kind == "poles":
            _paint(image, (dx < 3 * size) & (up > -15) & (up < 25 * size), colour)
        elif kind == "blocks":
            _paint(image, (dx < 12 * size) & (up > 0) & (up < 80 * size), colour, 0.8)
        elif kind == "hills":
            _paint(image, (up > 0) & (up < 30 * size - dx * 0.5), colour)
        elif kind == "spikes":
            _paint(image, dx < np.clip(30 * size - GRID_Y, 0, None) * 0.35, colour)
        elif kind == "window":
            y = rng.uniform(10, horizon_px - 40)
            _paint(image, (dx < 11) & (np.abs(GRID_Y - y - 15) < 13), colour, 0.35)
        elif kind == "bubbles":
            y = rng.uniform(0, FRAME_HEIGHT)
            ring = np.abs(np.hypot(GRID_X - x, GRID_Y - y) - 6 * size)
            _paint(image, ring < 1, colour, 0.7)
        elif kind == "dots":
            for y, x_dot in rng.uniform((0, 0), (FRAME_HEIGHT, FRAME_WIDTH), (6, 2)):
                _paint(image, np.hypot(GRID_X - x_dot, GRID_Y - y) < 1.3, colour)


@lru_cache(maxsize=512)  # 40 MB at most
def background(place: str, scenery: int) -> np.ndarray:
    """The empty scene of a shot: uint8 [FRAME_HEIGHT, FRAME_WIDTH, 3]."""
    rng = np.random.default_rng([PLACES.index(place), scenery])
    sky, ground, horizon, kind, colour = SCENERY[place]
    shade = (0.88 + 0.16 * GRID_Y / FRAME_HEIGHT) * rng.uniform(0.93, 1.05)
    is_sky = horizon * FRAME_HEIGHT > GRID_Y
    image = np.where(is_sky[..., None], np.float32(sky), np.float32(ground))
    _decorate(image, kind, colour, horizon, rng)
    return np.clip(image * shade[..., None], 0, 255).astype(np.uint8)


# --- actors --------------------------------------------------------------------------------------


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Roughly the signed distance to the outline of the unit shape; negative inside."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86
    if shape == "triangle":
        return np.maximum(np.abs(x) * 0.87 - y * 0.5, y) - 0.55
    if shape == "cross":
        arm = np.minimum(
            np.maximum(np.abs(x) - 0.32, np.abs(y) - 1), np.maximum(np.abs(x) - 1, np.abs(y) - 0.32)
        )
        return arm
    if shape == "ring":
        return np.abs(radius - 0.78) - 0.24
    spoke = np.cos(np.abs((np.arctan2(x, -y) * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2 * np.pi / 5)
    point = np.abs((np.arctan2(x, -y) * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2
    return (radius * (spoke * 0.15 + 0.85) - (1.08 - 0.66 * point)) * 0.75  # star


@lru_cache(maxsize=4000)
def sprite(
    shape: str, rgb: tuple[int, int, int], half_pixels: int, angle_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """An actor as (premultiplied colour uint16 [n, n, 3], 256 - alpha uint16 [n, n, 1]).

    The lower half is darker, so that turning shows on every shape.
    """
    radius = half_pixels / 2
    half = int(np.ceil(radius * 1.15)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32) / radius
    turn = 2 * np.pi * angle_step / ANGLE_STEPS
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance_px = _distance(shape, x, y) * radius
    alpha = np.clip(0.5 - distance_px, 0, 1)[..., None]
    shade = np.where(y[..., None] > 0.1, 0.5, 1.0) * np.where(
        distance_px[..., None] > -1.6, 0.35, 1
    )
    paint = np.float32(rgb) * shade
    opaque = np.rint(alpha * 256).astype(np.uint16)
    return (paint * opaque).astype(np.uint16), (256 - opaque).astype(np.uint16)


def _paste(
    image: np.ndarray, shape: str, rgb: tuple, radius: float, x: float, y: float, angle: float
):
    step = round(angle * ANGLE_STEPS) % ANGLE_STEPS
    paint, clear = sprite(shape, rgb, max(4, round(radius * 2)), step)
    size = paint.shape[0]
    left, top = round(x) - size // 2, round(y) - size // 2
    x0, x1 = max(0, left), min(FRAME_WIDTH, left + size)
    y0, y1 = max(0, top), min(FRAME_HEIGHT, top + size)
    if x0 >= x1 or y0 >= y1:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    region = image[y0:y1, x0:x1]
    region[:] = (region * clear[part] + paint[part]) >> 8


def draw(shot: Shot, time_s: float, paints: Sequence[tuple] | None = None) -> np.ndarray:
    """The frame at time_s of a shot: uint8 RGB [FRAME_HEIGHT, FRAME_WIDTH, 3].

    Args:
        paints: RGB of each actor, if not that of its colour.
    """
    image = background(shot.place, shot.scenery).copy()
    for number, actor in enumerate(shot.actors):
        pose = pose_of(shot, number, time_s)
        if pose.visible:
            rgb = paints[number] if paints else RGB[actor.colour]
            radius = RADIUS_PX[actor.size] * pose.scale
            x, y = pose.x * FRAME_WIDTH, pose.y * FRAME_HEIGHT
            _paste(image, actor.shape, rgb, radius, x, y, pose.angle)
    return image


def frames(
    plan: FilmPlan, fps: float = FILM_FPS, first: int = 0, step: int = 1
) -> Iterator[np.ndarray]:
    """Yield frames number first, first + step, ... of the film sampled at fps, in order."""
    num_frames = round(plan.duration_s * fps)
    shots = iter(plan.shots)
    shot = next(shots)
    for number in range(first, num_frames, step):
        time_s = number / fps
        while time_s >= shot.end_s - 1e-6 and shot is not plan.shots[-1]:
            shot = next(shots)
        yield draw(shot, time_s)


def _film_stream(container, fps: float, crf: int = 20):
    """The H.264 stream of a film in a container opened for writing."""
    stream = container.add_stream("libx264", rate=round(fps))
    stream.width, stream.height, stream.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
    # A key frame every 2 s makes clicking in a viewer quick; one thread keeps bytes the same.
    stream.options = {"crf": str(crf), "preset": "veryfast", "g": "10", "threads": "1"}
    stream.codec_context.thread_count = 1  # of the conversion to YUV too
    return stream


def as_decoded(images: Sequence[np.ndarray], crf: int = 20) -> list[np.ndarray]:
    """What is left of frames [FRAME_HEIGHT, FRAME_WIDTH, 3] once they were in an mp4 film.

    Args:
        crf: x264's constant rate factor; 20 is that of `write_film`, more is worse.
    """
    av = pyav()

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = _film_stream(container, FILM_FPS, crf)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def film_tag() -> str:
    """The comment in a film's metadata: whose it is, and of which version of the world."""
    return f"made_by: {MADE_BY} demo, world {WORLD_VERSION}"


def write_film(
    plan: FilmPlan, path: str | os.PathLike, fps: float = FILM_FPS, progress=None
) -> None:
    """Render the film to an H.264 mp4 at `path`, atomically.

    Args:
        progress: optional iterator wrapper such as tqdm, called on the frames.
    """
    av = pyav()

    path = Path(path)
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        container.metadata["comment"] = film_tag()
        stream = _film_stream(container, fps)
        source = frames(plan, fps)
        for image in progress(source) if progress else source:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
