"""What is said in a film: subtitle files, text streams inside the film, transcripts.

    film.srt  film.en.vtt  film.ass  film.ssa   read by FFmpeg, tags removed
    film.json  film.whisper.json                transcripts of Whisper, WhisperX, faster-whisper
                                                (`segments`) and whisper.cpp (`transcription`)

Files beside a film come first; without any, the text streams inside it. Pictures of text (PGS,
VobSub) are not read.
"""

from __future__ import annotations

import glob
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisionllm.data.video import probe
from revisionllm.data.video_file import open_video, pyav
from revisionllm.errors import UserError, reading

DEMUXERS = {".srt": "srt", ".vtt": "webvtt", ".ass": "ass", ".ssa": "ass"}
TRANSCRIPT = ".json"
TEXT_CODECS = ("subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text")
UNKNOWN_LENGTH_S = 3.0  # of a line that does not say how long it lasts
LONGEST_FILE = 50_000_000  # bytes
_TAGS = re.compile(r"\{[^}]*\}|</?[a-zA-Z][^<>]*>")
_DRAWING = re.compile(r"\{[^}]*\\p[1-9][^}]*\}.*", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line of subtitles, in seconds of the film."""

    start_s: float
    end_s: float
    text: str


def lines_of(video: Path, duration_s: float) -> tuple[list[Line], list[str]]:
    """What is said in a film, in order, and what was not read and why.

    Args:
        duration_s: of the film; lines behind its end are left out.
    """
    problems, lines = [], []
    files = sidecars(video)
    for path in files:
        try:
            lines += read_lines(path)
        except UserError as error:
            problems.append(str(error))
    if not files:
        try:
            lines = embedded_lines(video)
        except UserError as error:
            problems.append(str(error))
    return within(lines, duration_s), problems


def has_words(video: Path) -> bool:
    """Whether there is anything to read: files beside a film, or text streams inside.

    Raises:
        UserError: the film cannot be opened.
    """
    if sidecars(video):
        return True
    with open_video(video) as (container, _):
        return bool(_text_streams(container))


def within(lines: Iterable[Line], duration_s: float) -> list[Line]:
    """Lines of a film in order, each once, cut to its length."""
    cut = {
        Line(max(0.0, line.start_s), min(line.end_s, duration_s), line.text)
        for line in lines
        if line.text and line.start_s < duration_s and line.end_s > 0
    }
    kept = [line for line in cut if line.start_s < line.end_s]
    return sorted(kept, key=lambda line: (line.start_s, line.end_s, line.text))


def sidecars(video: Path) -> list[Path]:
    """Subtitle files and transcripts beside a film, by name: film.srt, film.en.srt, ..."""
    found = []
    for path in video.parent.glob(f"{glob.escape(video.stem)}.*"):
        middle = path.name[len(video.stem) :].split(".")[1:-1]
        if len(middle) > 1 or not path.is_file():
            continue
        suffix = path.suffix.lower()
        if suffix in DEMUXERS or (suffix == TRANSCRIPT and _is_transcript(path)):
            found.append(path)
    return sorted(found)


def _is_transcript(path: Path) -> bool:
    """A file of this name may be anything: a transcript is one that looks like one."""
    try:
        with path.open("rb") as file:
            return bool(re.search(rb'"(segments|transcription)"\s*:', file.read(LONGEST_FILE)))
    except OSError:
        return False


def read_lines(path: Path) -> list[Line]:
    """Read a subtitle file or transcript, by its suffix.

    Raises:
        UserError: missing, too large, no UTF-8 (or UTF-16 with its mark), or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in (*DEMUXERS, TRANSCRIPT):
        raise UserError(f"{path}: subtitles are {', '.join(DEMUXERS)} or a transcript's .json")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LONGEST_FILE else b""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if size > LONGEST_FILE:
        raise UserError(f"{path} has {size} bytes, too many for subtitles")
    text = _decoded(data, path)
    if suffix == TRANSCRIPT:
        return list(_of_transcript(text, path))
    if not text.strip():
        return []
    with (
        reading(f"{path} cannot be read as subtitles"),
        pyav().open(io.BytesIO(text.encode()), format=DEMUXERS[suffix]) as container,
    ):
        return list(_of_streams(container, 0.0))


def _decoded(data: bytes, path: Path) -> str:
    is_wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8; if it is Windows-1252: iconv -f CP1252 -t UTF-8 FILE > NEW"
        ) from error


def embedded_lines(video: Path) -> list[Line]:
    """The text streams inside a film; [] if there are none.

    Raises:
        UserError: unreadable.
    """
    start_s = probe(video).start_s
    problem = f"the subtitles inside {video} cannot be read"
    with open_video(video) as (container, _), reading(problem):
        return list(_of_streams(container, start_s))


def _text_streams(container) -> list:
    return [s for s in container.streams.subtitles if s.codec_context.name in TEXT_CODECS]


def _of_streams(container, start_s: float) -> Iterator[Line]:
    streams = _text_streams(container)
    if not streams:
        return
    for packet in container.demux(streams):
        if packet.pts is None:
            continue
        begin_s = float(packet.pts * packet.time_base) - start_s
        length_s = float((packet.duration or 0) * packet.time_base) or UNKNOWN_LENGTH_S
        decoded = packet.decode()
        rects = [rect for one in decoded for rect in (one if hasattr(one, "rects") else [one])]
        text = plain(" ".join(_dialogue(rect) for rect in rects))
        if text:
            yield Line(begin_s, begin_s + length_s, text)


def _dialogue(rect: Any) -> str:
    """The text of an ASS event, behind its eight other fields (PyAV 15's own cutting fails)."""
    event = getattr(rect, "ass", b"")
    event = event.decode("utf-8", "replace") if isinstance(event, bytes) else str(event)
    return event.split(",", 8)[-1]


def plain(text: str) -> str:
    """A line without tags, drawings and line ends."""
    text = _TAGS.sub("", _DRAWING.sub("", text))
    return " ".join(text.replace("\\N", " ").replace("\\n", " ").replace("\\h", " ").split())


def _of_transcript(text: str, path: Path) -> Iterator[Line]:
    """Segments of a transcript, with `start` and `end` in seconds, or milliseconds in `offsets`."""
    try:
        about = json.loads(text)
        rows = about.get("segments", about.get("transcription"))
        if not isinstance(rows, list):
            raise TypeError("neither segments nor transcription is a list")
        for row in rows:
            if "offsets" in row:
                times = (row["offsets"]["from"] / 1000, row["offsets"]["to"] / 1000)
            else:
                times = (row["start"], row["end"])
            start_s, end_s = map(float, times)
            said = " ".join(str(row["text"]).split())
            if not (math.isfinite(start_s) and math.isfinite(end_s)):
                raise ValueError("a time is not finite")
            if said and start_s < end_s:
                yield Line(start_s, end_s, said)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no transcript of Whisper ({reason}); remove it") from error
