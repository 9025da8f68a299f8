"""Text on screen: titles, slides, signs, as lines with the time that they are there.

RapidOCR (optional: `pip install rapidocr onnxruntime`; its package brings the models;
https://github.com/RapidAI/RapidOCR). A picture is read when it differs from the one read last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from revisionllm.data.subtitles import Line, within
from revisionllm.data.video import iter_frames, probe
from revisionllm.errors import check_installed

EVERY_S = 2.0  # how often pictures are looked at
SIDE = 960  # pixels, of the longer side at most
LIKE = 3.0  # mean difference of grey levels, 0..255, up to which a picture counts as the same
SURE = 0.6  # confidence of a text that is kept
SMALL = (48, 27)  # pictures are compared at this size


class ScreenReader:
    """A loaded text recogniser.

    Raises:
        UserError: RapidOCR is not installed.
    """

    def __init__(self) -> None:
        check_installed("--read-screen needs RapidOCR", "rapidocr", "onnxruntime")
        import rapidocr
        from rapidocr import RapidOCR

        self._read = RapidOCR(params={"Global.log_level": "error"})
        self.fingerprint = f"rapidocr {getattr(rapidocr, '__version__', '')}".strip()

    def text(self, rgb: np.ndarray) -> str:
        """What stands in a picture, uint8 [height, width, 3]; "" if nothing does."""
        found = self._read(np.ascontiguousarray(rgb[:, :, ::-1]))
        pairs = zip(found.txts or (), found.scores or (), strict=True)
        return " ".join(" ".join(text.split()) for text, score in pairs if score >= SURE)

    def lines(self, video: Path, duration_s: float) -> list[Line]:
        """Texts of a film, in seconds of it.

        Raises:
            UserError: unreadable.
        """
        from tqdm import tqdm

        info = probe(video)
        found: list[Line] = []
        last, text = None, ""
        frames = iter_frames(video, 1 / EVERY_S, size=info.size_within(SIDE))
        total = info.num_samples(1 / EVERY_S)
        for _, time_s, rgb in tqdm(frames, total=total, desc=video.name, file=sys.stderr):
            small = _small(rgb)
            if last is None or np.abs(small - last).mean() > LIKE:
                last, text = small, self.text(rgb)
            end_s = time_s + EVERY_S
            if found and text == found[-1].text and found[-1].end_s >= time_s:
                found[-1] = Line(found[-1].start_s, end_s, text)
            elif text:
                found.append(Line(time_s, end_s, text))
        return within(found, duration_s)


def _small(rgb: np.ndarray) -> np.ndarray:
    from PIL import Image

    grey = Image.fromarray(rgb).convert("L").resize(SMALL, Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float32)
