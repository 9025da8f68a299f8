"""Moments as files that editors, players and spreadsheets read; the suffix says which.

    .edl     CMX 3600, one event per moment; the sentence as a locator
    .fcpxml  Final Cut Pro XML 1.8, a marker per moment on the whole film
    .otio    OpenTimelineIO, a clip with a marker per moment
    .csv     a row per moment
    .ffmeta  chapters of FFmpeg (`ffmpeg -i FILM -i FILE -map_metadata 1 -c copy NEW`)
    .txt     chapters as YouTube reads them in a description
    .srt .vtt  subtitles: the sentence while its moment lasts

Times count from the film's start; a time code that the file itself carries is not added.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from revisionllm.data.video import VideoInfo, probe
from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, claim_output, write_noted, write_text
from revisionllm.records.clock import clock
from revisionllm.records.predictions import Prediction


@dataclass(frozen=True)
class Mark:
    """A moment of a film.

    Attributes:
        number: of the sentence, from 1.
        rank: of the moment among the sentence's, from 1.
    """

    film: Path
    sentence: str
    number: int
    rank: int
    start_s: float
    end_s: float
    score: float

    @property
    def title(self) -> str:
        """The sentence on one line."""
        return " ".join(self.sentence.split())


def marks_of(answers: Sequence[tuple[Path, Prediction]], top_k: int) -> list[Mark]:
    """The moments that were found, by sentence and then by falling score.

    Args:
        answers: films and predictions about them; those of one sentence may be of many films.
        top_k: moments per sentence at most.
    """
    sentences = list(dict.fromkeys(prediction.query for _, prediction in answers))
    marks = []
    for number, sentence in enumerate(sentences, 1):
        moments = [
            (moment, film)
            for film, prediction in answers
            if prediction.query == sentence and prediction.found
            for moment in prediction.moments
        ]
        moments.sort(key=lambda pair: -pair[0].score)
        for rank, (moment, film) in enumerate(moments[:top_k], 1):
            start_s, end_s = moment.start_s, moment.end_s
            marks.append(Mark(film, sentence, number, rank, start_s, end_s, moment.score))
    return marks


def check_markers(path: Path, *, inputs: Sequence[Path] = (), overwrite: bool = False) -> None:
    """Refuse a marker file that cannot be written, before any work.

    Raises:
        UserError: its suffix is none of these, or something else is there.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"{path}: markers are {', '.join(sorted(WRITERS))}, not {path.suffix!r}")
    claim_output(path, inputs=inputs, overwrite=overwrite)


def write_markers(path: Path, marks: Sequence[Mark]) -> None:
    """Write moments in the format that the suffix names.

    Raises:
        UserError: they are of several films and the format is of one, or a film cannot be read.
    """
    suffix = path.suffix.lower()
    films = list(dict.fromkeys(mark.film for mark in marks))
    if suffix in OF_ONE_FILM and len(films) > 1:
        raise UserError(
            f"{path}: {suffix} is of one film, these moments are of {len(films)}; write .csv,"
            " .edl, .fcpxml or .otio"
        )
    text = WRITERS[suffix](marks)
    (write_noted if suffix in UNSIGNED else write_text)(path, text)


def _rate(info: VideoInfo) -> Fraction:
    """Pictures per second, as editors count: 30000/1001 for 29.97."""
    return Fraction(info.fps).limit_denominator(1001) if info.fps > 0 else Fraction(25)


# --- one film's -----------------------------------------------------------------------------------


def _by_time(marks: Sequence[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: (mark.start_s, mark.end_s))


def _subtitle_time(seconds: float, comma: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{comma}{milliseconds:03d}"


def srt(marks: Sequence[Mark]) -> str:
    """SubRip."""
    return "\n".join(
        f"{number}\n{_subtitle_time(mark.start_s, ',')} --> {_subtitle_time(mark.end_s, ',')}\n"
        f"{mark.title}\n"
        for number, mark in enumerate(_by_time(marks), 1)
    )


def vtt(marks: Sequence[Mark]) -> str:
    """WebVTT."""
    cues = [
        f"{_subtitle_time(mark.start_s, '.')} --> {_subtitle_time(mark.end_s, '.')}\n"
        + mark.title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        for mark in _by_time(marks)
    ]
    return "\n\n".join(["WEBVTT", f"NOTE made_by: {MADE_BY}", *cues]) + "\n"


def ffmetadata(marks: Sequence[Mark]) -> str:
    """FFmpeg's metadata file. https://ffmpeg.org/ffmpeg-formats.html#Metadata-2"""
    lines = [";FFMETADATA1", f";made_by: {MADE_BY}"]
    for mark in _by_time(marks):
        title = "".join(f"\\{c}" if c in "=;#\\" else c for c in mark.title)
        start, end = round(mark.start_s * 1000), round(mark.end_s * 1000)
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}", f"title={title}"]
    return "\n".join(lines) + "\n"


def chapters(marks: Sequence[Mark]) -> str:
    """Lines for a description; YouTube wants the first at zero, and each 10 s from the next."""
    rows = {0: "Start"}
    for mark in _by_time(marks):
        rows[int(mark.start_s)] = mark.title
    return "".join(f"{clock(second)} {title}\n" for second, title in rows.items())


# --- many films' ----------------------------------------------------------------------------------


def table(marks: Sequence[Mark]) -> str:
    """Comma-separated values."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["sentence", "rank", "start_s", "end_s", "start", "end", "score", "film"])
    for mark in marks:
        times = [clock(mark.start_s, 1), clock(mark.end_s, 1)]
        rows.writerow(
            [
                *(mark.title, mark.rank, f"{mark.start_s:.3f}", f"{mark.end_s:.3f}"),
                *(*times, f"{mark.score:.4f}", mark.film),
            ]
        )
    return out.getvalue()


def edl(marks: Sequence[Mark]) -> str:
    """CMX 3600: the moments one after the other; no drop-frame, so a frame is a frame.

    Raises:
        UserError: the films have different rates, of which this format knows one.
    """
    rates = {_rate(probe(film)) for film in {mark.film for mark in marks}}
    if len(rates) > 1:
        told = ", ".join(f"{float(rate):g}" for rate in sorted(rates))
        raise UserError(f".edl has one rate, these films have {told}; write .fcpxml or .otio")
    rate = next(iter(rates), Fraction(25))

    def code(frame: int) -> str:
        second, rest = divmod(frame, round(rate))
        minute, hour = second // 60 % 60, second // 3600
        return f"{hour:02d}:{minute:02d}:{second % 60:02d}:{rest:02d}"

    lines, at = [f"TITLE: moments, made_by: {MADE_BY}", "FCM: NON-DROP FRAME"], 0
    for number, mark in enumerate(marks, 1):
        first, end = round(mark.start_s * rate), round(mark.end_s * rate)
        end = max(end, first + 1)
        times = [code(first), code(end), code(at), code(at + end - first)]
        lines += [
            f"{number:03d}  AX       V     C        {' '.join(times)}",
            f"* FROM CLIP NAME: {mark.film.name}",
            f"* SOURCE FILE: {mark.film}",
            f"* LOC: {code(at)} RED     {mark.title}",
        ]
        at += end - first
    return "\n".join(lines) + "\n"


def fcpxml(marks: Sequence[Mark]) -> str:
    """Final Cut Pro XML: a timeline of the films, whole, with a marker per moment."""
    root = ElementTree.Element("fcpxml", version="1.8")
    resources = ElementTree.SubElement(root, "resources")
    event = ElementTree.SubElement(ElementTree.SubElement(root, "library"), "event", name="moments")
    project = ElementTree.SubElement(event, "project", name="moments")
    sequence = ElementTree.SubElement(project, "sequence")
    spine, at = ElementTree.SubElement(sequence, "spine"), Fraction(0)
    for number, film in enumerate(dict.fromkeys(mark.film for mark in marks)):
        info, kind, asset = probe(film), f"r{2 * number + 1}", f"r{2 * number + 2}"
        rate = _rate(info)
        length = _on_frame(info.duration_s, rate)
        size = {"width": str(info.width), "height": str(info.height)}
        ElementTree.SubElement(
            resources, "format", id=kind, frameDuration=_rational(1 / rate), **size
        )
        whole = {"start": "0s", "duration": _rational(length), "format": kind, "name": film.stem}
        place = film.resolve().as_uri()
        ElementTree.SubElement(resources, "asset", id=asset, src=place, hasVideo="1", **whole)
        clip = ElementTree.SubElement(spine, "asset-clip", ref=asset, offset=_rational(at), **whole)
        if not number:
            sequence.set("format", kind)
        at += length
        for mark in _by_time([mark for mark in marks if mark.film == film]):
            start = _on_frame(mark.start_s, rate)
            duration = max(_on_frame(mark.end_s, rate) - start, 1 / rate)
            ElementTree.SubElement(
                clip,
                "marker",
                start=_rational(start),
                duration=_rational(duration),
                value=mark.title,
                note=f"score {mark.score:.2f}, rank {mark.rank}",
            )
    sequence.set("duration", _rational(at))
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n'
    return f"{head}<!-- made_by: {MADE_BY} -->\n{body}\n"


def _on_frame(seconds: float, rate: Fraction) -> Fraction:
    """The start of the nearest frame, in exact seconds."""
    return round(seconds * rate) / rate


def _rational(seconds: Fraction) -> str:
    return f"{seconds.numerator}/{seconds.denominator}s"


def otio(marks: Sequence[Mark]) -> str:
    """OpenTimelineIO. https://opentimelineio.readthedocs.io"""

    def span(start_s: float, duration_s: float, rate: float) -> dict:
        def time(seconds: float) -> dict:
            return {"OTIO_SCHEMA": "RationalTime.1", "rate": rate, "value": round(seconds * rate)}

        times = {"start_time": time(start_s), "duration": time(duration_s)}
        return {"OTIO_SCHEMA": "TimeRange.1", **times}

    clips = []
    for mark in marks:
        info = probe(mark.film)
        rate = float(_rate(info))
        part = span(mark.start_s, max(mark.end_s - mark.start_s, 1 / rate), rate)
        about = {"sentence": mark.sentence, "rank": mark.rank, "score": mark.score}
        media = {
            "OTIO_SCHEMA": "ExternalReference.1",
            "target_url": mark.film.resolve().as_uri(),
            "available_range": span(0.0, info.duration_s, rate),
        }
        marker = {"OTIO_SCHEMA": "Marker.2", "name": mark.title, "color": "RED"}
        clips.append(
            {
                "OTIO_SCHEMA": "Clip.1",
                "name": mark.film.stem,
                "source_range": part,
                "media_reference": media,
                "markers": [marker | {"marked_range": part}],
                "metadata": {"revisionllm": about},
            }
        )
    track = {"OTIO_SCHEMA": "Track.1", "name": "moments", "kind": "Video", "children": clips}
    timeline = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": "moments",
        "metadata": {"made_by": MADE_BY},
        "tracks": {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "children": [track]},
    }
    return json.dumps(timeline, indent=1, ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Sequence[Mark]], str]] = {
    ".edl": edl,
    ".fcpxml": fcpxml,
    ".otio": otio,
    ".csv": table,
    ".ffmeta": ffmetadata,
    ".txt": chapters,
    ".srt": srt,
    ".vtt": vtt,
}
OF_ONE_FILM = (".srt", ".vtt", ".ffmeta", ".txt")
UNSIGNED = (".csv", ".txt", ".srt")  # formats without comments; a note beside them says whose
