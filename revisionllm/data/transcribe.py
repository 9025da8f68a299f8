"""What is said in a film that has no subtitles, written down by Whisper.

faster-whisper (optional: `pip install faster-whisper`; https://github.com/SYSTRAN/faster-whisper);
its weights come by `revisionllm models get hf:Systran/faster-whisper-small` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.data.subtitles import Line, within
from revisionllm.data.video import probe
from revisionllm.data.video_file import open_video
from revisionllm.errors import UserError, check_installed, reading
from revisionllm.files import sha256_of
from revisionllm.model.hub import local, missing

WEIGHTS = "model.bin"
SOUND_RATE = 16_000


class Transcriber:
    """A loaded Whisper.

    Args:
        place: folder in CTranslate2's layout, or `hf:owner/name`.
        device: auto, cpu, cuda.
        vad: leave out what is no speech, by the detector that the package brings.

    Raises:
        UserError: faster-whisper or the weights are not here.
    """

    def __init__(self, place: str, *, device: str = "auto", vad: bool = True) -> None:
        check_installed("--transcribe needs faster-whisper", "faster_whisper", get="faster-whisper")
        folder = Path(local(place))
        if not (folder / WEIGHTS).is_file():
            raise UserError(
                f"{missing(place, 'Whisper')}: no {WEIGHTS} there; `revisionllm models get"
                " hf:Systran/faster-whisper-small` gets one"
            )
        from faster_whisper import WhisperModel

        with reading(f"cannot load {place}", "get it again"):
            self._model: Any = WhisperModel(str(folder), device=device, local_files_only=True)
        self._vad = vad
        self.fingerprint = sha256_of(folder / WEIGHTS)[:16]

    def lines(self, video: Path, duration_s: float) -> list[Line]:
        """What is said in a film, in seconds of it; [] without sound.

        Raises:
            UserError: unreadable.
        """
        from tqdm import tqdm

        begin_s = sound_start_s(video)
        if begin_s is None:
            return []
        found = []
        with (
            reading(f"the sound of {video} cannot be transcribed"),
            tqdm(total=round(duration_s), unit="s", desc=video.name, file=sys.stderr) as bar,
        ):
            # the same words each time, and a passage that goes wrong must not lead the next one on
            options = {"temperature": 0.0, "condition_on_previous_text": False}
            segments, _ = self._model.transcribe(sound_of(video), vad_filter=self._vad, **options)
            for one in segments:
                said = " ".join(one.text.split())
                found.append(Line(begin_s + one.start, begin_s + one.end, said))
                bar.update(round(one.end) - bar.n)
        return within(found, duration_s)


def sound_of(video: Path) -> np.ndarray:
    """The first sound stream as Whisper hears it: float32 [N], one channel, 16,000 a second.

    By PyAV here: faster-whisper's own reader asks PyAV 19 for what it has no more.
    """
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=SOUND_RATE)
    pieces: list[np.ndarray] = []
    with open_video(video) as (container, _):
        for packet in container.demux(container.streams.audio[0]):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # left out, as faster-whisper does
                continue
            for frame in frames:
                frame.pts = None  # no gaps, as there
                pieces += [one.to_ndarray()[0] for one in resampler.resample(frame)]
    pieces += [one.to_ndarray()[0] for one in resampler.resample(None)]
    return np.concatenate(pieces).astype(np.float32) / 32768


def sound_start_s(video: Path) -> float | None:
    """Where the first sound stream begins, in seconds of the film; None: there is none."""
    with open_video(video) as (container, _):
        streams = container.streams.audio
        if not streams:
            return None
        sound = streams[0]
        begins_s = float((sound.start_time or 0) * (sound.time_base or 0))
    return begins_s - probe(video).start_s
