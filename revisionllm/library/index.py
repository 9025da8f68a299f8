"""`revisionllm index`: read films once, so that sentences are found in all of them in seconds.

revisionllm index ~/films --library library --model clip:ViT-B-32:laion2b_s34b_b79k
revisionllm find library "a dog jumps over a fence"
revisionllm library list library
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import EXIT_BAD_INPUT, UserError
from revisionllm.library.words import add_words_option
from revisionllm.records.clock import clock

if TYPE_CHECKING:
    from revisionllm.data.screen_text import ScreenReader
    from revisionllm.data.transcribe import Transcriber
    from revisionllm.library.store import Library

BYTES_PER_NUMBER = 3  # two for the rows, about one for the pieces


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
    add(
        "--skip-same",
        action="store_true",
        help="encode what stands still once: slides, screen recordings (kept in a new library)",
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="what the encoder computes in (kept in a new library; float32); bfloat16 is two to"
        " three times as fast on GPUs and on CPUs that have it (avx512_bf16, amx_bf16)",
    )
    add_words_option(add)
    add(
        "--transcribe",
        metavar="WHISPER",
        help="write down what is said in films without subtitles: a folder of faster-whisper's, or"
        " hf:Systran/faster-whisper-small (pip install faster-whisper)",
    )
    add(
        "--read-screen",
        action="store_true",
        help="read text on screen, too: titles, slides, signs (pip install rapidocr onnxruntime)",
    )
    add("--workers", type=int, default=0, help="processes, on GPUs in turn (0: this one alone)")
    add("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> int:
    """Index; returns 0, or 2 if a film could not be read (the others are indexed all the same)."""
    from revisionllm.library.model_file import default_model, read_model
    from revisionllm.library.store import Library, is_library

    videos = videos_below(args.films)
    known = Library(args.library) if is_library(args.library) else None
    failed = {}
    lengths_s = dict(_lengths(videos, failed))
    if args.model or known is None:
        encoder = read_model(args.model or default_model(list(lengths_s))).encoder
    else:
        encoder = known.encoder
    from revisionllm.model.clip import load_clip

    readers = _readers(args)  # what is missing is told before films are read
    dtype = args.dtype or (known.dtype if known else "float32")
    clip = load_clip(encoder, device=args.device, dtype=dtype)
    library = Library.create(args.library, encoder, clip, args.fps, skip_same=args.skip_same)
    hours = sum(lengths_s.values()) / 3600
    size_mb = hours * args.fps * 3600 * clip.dim * BYTES_PER_NUMBER / 1e6
    print(f"{len(lengths_s)} films, {hours:.1f} hours: {size_mb:.1f} MB of disk", file=sys.stderr)
    untouched = library.untouched()
    todo = [video for video in lengths_s if os.path.abspath(video) not in untouched]
    counts = {"indexed": 0, "already there": len(lengths_s) - len(todo)}
    left_s, began = sum(lengths_s[video] for video in todo), time.perf_counter()
    done_s = 0.0
    with contextlib.ExitStack() as stack:
        results = _results(todo, library, clip, args, stack)
        for number, (video, there, problem) in enumerate(results, 1):
            left_s -= lengths_s[video]
            if problem:
                failed[video] = problem
                continue
            how = "already there" if there else "indexed"
            counts[how] += 1
            done_s += 0.0 if there else lengths_s[video]
            speed = done_s / max(time.perf_counter() - began, 1e-6)
            pace = f" ({speed:.0f} x real time, {clock(left_s / speed)} left)" if speed else ""
            print(f"{number}/{len(todo)} {how}: {video}{pace}", flush=True)
    _index_words(library, lengths_s, args, *readers)
    print(", ".join(f"{count} {how}" for how, count in counts.items()) + f", {len(failed)} failed")
    for video, problem in failed.items():
        print(f"failed: {video}: {problem}", file=sys.stderr)
    return EXIT_BAD_INPUT if failed else 0


def _readers(args) -> tuple[Transcriber | None, ScreenReader | None]:
    """What writes down sound and reads screens, as far as that is wanted."""
    from revisionllm.library.words import NONE

    transcriber = reader = None
    if args.transcribe and args.words != NONE:
        from revisionllm.data.transcribe import Transcriber

        transcriber = Transcriber(args.transcribe, device=args.device)
    if args.read_screen and args.words != NONE:
        from revisionllm.data.screen_text import ScreenReader

        reader = ScreenReader()
    return transcriber, reader


def _index_words(
    library: Library,
    lengths_s: dict[Path, float],
    args,
    transcriber: Transcriber | None,
    reader: ScreenReader | None,
) -> None:
    """Read what is said in the films and written on their screens, where it is not known yet."""
    from revisionllm.data.subtitles import has_words
    from revisionllm.library.words import (
        FILE,
        LEVELS,
        SCREEN_FILE,
        add_screen,
        add_words,
        open_words,
    )

    paths = {os.path.abspath(video) for video in lengths_s}
    films = [film for film in library.films() if str(film.path) in paths]
    # films whose subtitles have gone may be known
    has_some = transcriber is not None or (library.folder / FILE).is_file()
    has_some = has_some or any(has_words(film.path) for film in films)
    for name, is_wanted, add, tool in (
        (FILE, has_some, add_words, transcriber),
        (SCREEN_FILE, reader is not None, add_screen, reader),
    ):
        index = None
        if films and is_wanted:
            index = open_words(library.folder / name, args.words, device=args.device)
        for film in films if index else ():
            is_new, problems = add(index, film.film_id, film.path, film.duration_s, tool)
            for problem in problems:
                print(f"revisionllm: {problem}", file=sys.stderr)
            if is_new:
                print(f"{LEVELS[name]}: {film.path}", flush=True)


def _lengths(videos: list[Path], failed: dict[Path, str]) -> Iterator[tuple[Path, float]]:
    """Films that can be read and their lengths; the others go to `failed`."""
    from revisionllm.data.video import probe

    for video in videos:
        try:
            yield video, probe(video).duration_s
        except UserError as error:
            failed[video] = str(error)


def _results(
    videos: list[Path], library: Library, clip, args: argparse.Namespace, stack
) -> Iterator[tuple[Path, bool, str | None]]:
    """Index films here or in other processes; each, whether it was there, and the trouble."""
    if args.workers < 2:
        for video in videos:
            yield _add(library, clip, video, progress=True)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    spawn = multiprocessing.get_context("spawn")
    numbers = spawn.Value("i", 0)
    pool = ProcessPoolExecutor(
        args.workers, spawn, _start_worker, (str(library.folder), args.device, numbers)
    )
    stack.callback(pool.shutdown, cancel_futures=True)
    for future in as_completed([pool.submit(_add_in_worker, video) for video in videos]):
        yield future.result()


def _add(library: Library, clip, video: Path, *, progress: bool) -> tuple[Path, bool, str | None]:
    try:
        return video, library.add(video, clip, progress=progress)[1], None
    except UserError as error:
        return video, False, str(error)


_worker: dict = {}  # of this process, if it is one: its library and encoder


def _start_worker(folder: str, device: str, numbers) -> None:
    """Open the library and load its encoder, on the next GPU in turn."""
    import torch

    from revisionllm.library.store import Library
    from revisionllm.model.clip import load_clip

    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{number % torch.cuda.device_count()}"
    library = Library(folder)
    clip = load_clip(library.encoder, device=device, dtype=library.dtype)
    _worker.update(library=library, clip=clip)


def _add_in_worker(video: Path) -> tuple[Path, bool, str | None]:
    return _add(_worker["library"], _worker["clip"], video, progress=False)


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
