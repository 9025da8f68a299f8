"""`revisionllm cut`: moments that `find --json` printed, as clips and as markers for editors.

revisionllm find library "a dog on a beach" --json > moments.jsonl
revisionllm cut moments.jsonl --clips out/clips --padding 1
revisionllm cut moments.jsonl --markers moments.edl moments.csv

`find --cut DIR` and `find --markers FILE` do the same at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import UserError

if TYPE_CHECKING:
    from revisionllm.library.markers import Mark
    from revisionllm.records.predictions import Prediction

SLUG_LENGTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm cut`."""
    add = parser.add_argument
    add("moments", type=Path, metavar="MOMENTS", help="what `find --json` printed; - for stdin")
    add("--clips", type=Path, metavar="DIR", help="write a clip of each moment into this folder")
    add_cut_options(parser)
    add("--top-k", type=int, default=1, help="moments per sentence (%(default)s)")
    add("--film", type=Path, help="the film, where MOMENTS names none or it has moved")
    add("--overwrite", action="store_true", help="replace files that this project did not make")


def add_cut_options(parser: argparse.ArgumentParser) -> None:
    """What `cut` and `find` have in common."""
    add = parser.add_argument
    add(
        "--markers",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="write the moments as .edl, .fcpxml, .otio, .csv, .srt, .vtt, .ffmeta or .txt",
    )
    add("--padding", type=float, default=0.0, help="seconds before and after, of clips")
    add(
        "--reencode",
        action="store_true",
        help="clips start at the very frame (H.264, AAC); else streams are copied from the key"
        " frame before",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, also if nothing was found."""
    if not args.clips and not args.markers:
        raise UserError("nothing to write: give --clips DIR or --markers FILE")
    answers = read_answers(args.moments, args.film)
    take_away(answers, args, args.clips, args.top_k)
    return 0


def read_answers(path: Path, film: Path | None) -> list[tuple[Path, Prediction]]:
    """Films and predictions of a file that `find --json` wrote.

    Raises:
        UserError: a line is no prediction, or names no film and `film` is None.
    """
    from revisionllm.records.jsonl import BadRecord, Problem, iter_json_lines
    from revisionllm.records.predictions import Prediction

    answers = []
    place = Path("/dev/stdin") if str(path) == "-" else path
    for line, record in iter_json_lines(place):
        try:
            if isinstance(record, Problem):
                raise BadRecord(record.what)
            prediction = Prediction.from_json(record)
            named = record.get("film") if film is None else str(film)
            if not isinstance(named, str):
                raise BadRecord("names no film; give --film")
        except BadRecord as error:
            raise UserError(f"{path}:{line}: {error}") from error
        answers.append((Path(named), prediction))
    if not answers:
        raise UserError(f"{path} holds no predictions; `revisionllm find ... --json` prints some")
    return answers


def take_away(
    answers: Sequence[tuple[Path, Prediction]],
    args: argparse.Namespace,
    clips: Path | None,
    top_k: int,
) -> None:
    """Write the clips and marker files that were asked for; what was written goes to stderr."""
    from revisionllm.library.markers import check_markers, marks_of, write_markers

    films = list(dict.fromkeys(film for film, _ in answers))
    for path in args.markers:
        check_markers(path, inputs=films, overwrite=args.overwrite)
    marks = marks_of(answers, top_k)
    if clips:
        write_clips(marks, clips, args)
    for path in args.markers:
        write_markers(path, marks)
        print(f"wrote {path}: {len(marks)} moments", file=sys.stderr)


def write_clips(marks: Sequence[Mark], folder: Path, args: argparse.Namespace) -> None:
    """A clip per moment, named so that a listing has them in order.

    Raises:
        UserError: a film has gone or cannot be cut, or a file of somebody else's is there.
    """
    from revisionllm.data.video import probe
    from revisionllm.files import claim_output
    from revisionllm.library.clips import clip_suffix, cut_clip
    from revisionllm.records.clock import clock

    places = []
    for mark in marks:
        suffix = clip_suffix(probe(mark.film), reencode=args.reencode)
        place = folder / f"{clip_name(mark)}{suffix}"
        claim_output(place, inputs=[mark.film], overwrite=args.overwrite)
        places.append(place)
    for mark, place in zip(marks, places, strict=True):
        first_s = max(0.0, mark.start_s - args.padding)
        end_s = mark.end_s + args.padding
        began_s = cut_clip(mark.film, first_s, end_s, place, reencode=args.reencode)
        early = f", from the key frame {first_s - began_s:.1f} s before"
        told = early if first_s - began_s >= 0.05 else ""
        print(f"wrote {place}: from {clock(began_s, 1)}{told}", file=sys.stderr)


def clip_name(mark: Mark) -> str:
    """For example 02-01_film_0-12-18.6_the-red-star-shakes."""
    from revisionllm.records.clock import clock

    words = re.sub(r"[^\w]+", "-", mark.title).strip("-")[:SLUG_LENGTH].strip("-")
    film = re.sub(r"[^\w.-]+", "-", mark.film.stem)[:SLUG_LENGTH]
    time = clock(mark.start_s, 1).replace(":", "-")
    return f"{mark.number:02d}-{mark.rank:02d}_{film}_{time}_{words}"
