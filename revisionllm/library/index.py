"""`revisionllm index`: read films once, so that sentences are found in all of them in seconds.

revisionllm index ~/films --library library --model clip:ViT-B-32:laion2b_s34b_b79k
revisionllm find library "a dog jumps over a fence"
revisionllm library list library
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from revisionllm.errors import EXIT_BAD_INPUT, UserError

BYTES_PER_NUMBER = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm index`."""
    add = parser.add_argument
    add("films", nargs="+", type=Path, metavar="FILM", help="video files, or folders of such")
    add("--library", type=Path, default=Path("library"), help="folder of the index (%(default)s)")
    add(
        "--model",
        default=None,
        help="encoder: clip:NAME:TAG of open_clip, clip:FOLDER, hf:owner/name, a folder with a"
        " model.json, or demo (the library's own; of a new one: demo, which knows rendered films"
        " alone)",
    )
    add("--fps", type=float, default=1.0, help="frames read per second of film (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> int:
    """Index; returns 0, or 2 if a film could not be read (the others are indexed all the same)."""
    from revisionllm.library.model_file import read_model
    from revisionllm.library.store import Library, is_library

    videos = videos_below(args.films)
    known = Library(args.library) if is_library(args.library) else None
    encoder = read_model(args.model).encoder if args.model else known.encoder if known else None
    if encoder is None:
        encoder = read_model("demo").encoder
        print(
            "revisionllm index: the demo's encoder knows rendered films alone; for real footage"
            " `revisionllm models get clip:ViT-B-32:laion2b_s34b_b79k`, and --model with that name",
            file=sys.stderr,
        )
    from revisionllm.model.clip import load_clip

    clip = load_clip(encoder, device=args.device)
    library = Library.create(args.library, encoder, clip, args.fps)
    hourly = args.fps * 3600 * clip.dim * BYTES_PER_NUMBER / 1e6
    print(f"{len(videos)} films; an hour takes {hourly:.1f} MB of disk", file=sys.stderr)
    failed, counts = [], {"indexed": 0, "already there": 0}
    untouched = library.untouched()
    for number, video in enumerate(videos, 1):
        try:
            there = os.path.abspath(video) in untouched
            if not there:
                _, there = library.add(video, clip)
        except UserError as error:
            failed.append(f"{video}: {error}")
            continue
        how = "already there" if there else "indexed"
        counts[how] += 1
        print(f"{number}/{len(videos)} {how}: {video}")
    print(", ".join(f"{count} {how}" for how, count in counts.items()) + f", {len(failed)} failed")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return EXIT_BAD_INPUT if failed else 0


def videos_below(places: list[Path]) -> list[Path]:
    """The video files named, and those in the folders named, at any depth.

    Raises:
        UserError: nothing there, or no film in any of them.
    """
    from revisionllm.data.feature_extraction.videos import VIDEO_SUFFIXES

    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise UserError(f"no film or folder {place}")
        if not place.is_dir():
            found.append(place)
            continue
        for folder, folders, files in os.walk(place):
            folders.sort()
            found += [
                Path(folder, name)
                for name in sorted(files)
                if Path(name).suffix.lower() in VIDEO_SUFFIXES
            ]
    if not found:
        raise UserError(f"no films in {', '.join(map(str, places))}")
    return list(dict.fromkeys(found))
