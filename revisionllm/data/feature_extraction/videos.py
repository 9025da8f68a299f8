"""Frame features of many videos: one .npy each, several at a time; a broken video stops nothing.

Videos are only read. What is there already is kept, a killed run continues inside the video it was
in (see `frames.py`), and what failed is listed at the end with its reason.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from revisionllm.errors import EXIT_BAD_INPUT, UserError

# Files named so are taken for videos: a damaged one is a failure, not something else.
VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogv", ".rm", ".ts", ".vob", ".webm", ".wmv"),
)


@dataclass(frozen=True)
class ExtractionSettings:
    """How features are made; the arguments of `extract_features` and `load_clip`."""

    clip: str
    feature_fps: float
    batch_size: int = 64
    dtype: str = "float16"
    device: str = "auto"


@dataclass(frozen=True)
class _Outcome:
    """What became of one video: a line for the user, or the reason why it failed."""

    video: Path
    line: str
    num_frames: int = 0
    failed: bool = False


def extract_videos(
    videos: Sequence[str | Path],
    folder: str | Path,
    settings: ExtractionSettings,
    *,
    num_workers: int = 1,
) -> int:
    """Extract every video into `<folder>/<video name>.npy`; folders stand for the videos in them.

    Returns:
        Exit code: 0, or 2 if a video failed; the others are done all the same.

    Raises:
        UserError: bad settings, no videos, or two videos of one name.
    """
    if settings.feature_fps <= 0 or settings.batch_size < 1 or num_workers < 1:
        raise UserError("--feature_fps must be above 0, --batch_size and --num_workers at least 1")
    outputs = output_paths(videos, Path(folder))
    failures = []
    for outcome in _outcomes(outputs, settings, num_workers):
        print(outcome.line, file=sys.stderr if outcome.failed else sys.stdout, flush=True)
        if outcome.failed:
            failures.append(outcome)
    if failures:
        print(f"{len(failures)} of {len(outputs)} videos failed:", file=sys.stderr)
        for outcome in sorted(failures, key=lambda outcome: outcome.video):
            print(f"  {outcome.line.removeprefix('failed: ')}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def output_paths(videos: Sequence[str | Path], folder: Path) -> dict[Path, Path]:
    """Feature file -> video; folders stand for the videos in them.

    Raises:
        UserError: a folder without videos, or two videos that would share a file.
    """
    files: list[Path] = []
    for video in map(Path, videos):
        if video.is_dir():
            files += videos_in(video)
        else:
            files.append(video)
    outputs: dict[Path, Path] = {}
    for file in files:
        out_path = folder / f"{file.stem}.npy"
        if outputs.get(out_path, file) != file:
            raise UserError(
                f"{outputs[out_path]} and {file} would both become {out_path}; rename one of them"
            )
        outputs[out_path] = file
    return outputs


def videos_in(folder: Path) -> list[Path]:
    """The files of a folder that are videos by name or that FFmpeg opens as videos, sorted.

    What is left out is listed on stderr.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    from revisionllm.data.video_file import is_film

    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    found = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES or is_film(p)]
    left_out = [path.name for path in files if path not in set(found)]
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        print(f"{folder}: no videos: {', '.join(left_out[:10])}{more}", file=sys.stderr)
    if not found:
        raise UserError(f"no video files in folder {folder}")
    return found


def _outcomes(
    outputs: dict[Path, Path], settings: ExtractionSettings, num_workers: int
) -> Iterator[_Outcome]:
    """One outcome per video, as they are done."""
    if num_workers == 1 or len(outputs) == 1:
        clip = _load(settings.clip, settings.device)  # a bad CLIP is no video's fault
        for out_path, video in outputs.items():
            yield _extract_one(video, out_path, settings, clip, progress=True)
        return
    yield from _parallel_outcomes(outputs, settings, num_workers)


def _parallel_outcomes(
    outputs: dict[Path, Path], settings: ExtractionSettings, num_workers: int
) -> Iterator[_Outcome]:
    from tqdm import tqdm

    context = get_context("spawn")  # CUDA does not survive a fork
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(_devices(settings.device), context.Value("i", 0)),
    )
    started, frames = time.perf_counter(), 0
    with tqdm(total=len(outputs), desc="videos", unit="video", file=sys.stderr) as bar, pool:
        jobs = [pool.submit(_in_worker, *job, settings) for job in outputs.items()]
        try:
            for job in as_completed(jobs):
                outcome = job.result()
                frames += outcome.num_frames
                rate = frames / (time.perf_counter() - started)
                bar.set_postfix_str(f"{rate:.1f} frame/s", refresh=False)
                bar.update()
                yield outcome
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?); run the same command again with"
                " fewer --num_workers, it continues"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _devices(device: str) -> list[str]:
    """Where workers run their CLIP: all GPUs in turn for `auto`."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [device]


def _start_worker(devices: list[str], counter) -> None:
    """Choose this worker's device: the next one."""
    global _worker_device
    with counter.get_lock():
        _worker_device = devices[counter.value % len(devices)]
        counter.value += 1


_worker_device = "auto"  # of a worker process, set once when it starts


def _in_worker(out_path: Path, video: Path, settings: ExtractionSettings) -> _Outcome:
    clip = _load(settings.clip, _worker_device)
    return _extract_one(video, out_path, settings, clip, progress=False)


@lru_cache(maxsize=1)
def _load(clip: str, device: str):
    """The CLIP of this process, loaded once."""
    from revisionllm.model.clip import load_clip

    return load_clip(clip, device=device)


def _extract_one(
    video: Path, out_path: Path, settings: ExtractionSettings, clip, *, progress: bool
) -> _Outcome:
    from revisionllm.data.feature_extraction.frames import extract_features

    try:
        made = extract_features(
            video,
            clip,
            feature_fps=settings.feature_fps,
            out_path=out_path,
            batch_size=settings.batch_size,
            dtype=settings.dtype,
            progress=progress,
        )
    except UserError as error:
        return _Outcome(video, f"failed: {video}: {error}", failed=True)
    how = "already there" if made.reused else "extracted"
    line = f"{how}: {made.path} {made.num_frames} frames, {made.duration_s:.1f} s"
    return _Outcome(video, line, 0 if made.reused else made.num_frames)
