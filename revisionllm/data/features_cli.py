"""`revisionllm features`: make, convert, check and describe frame features.

revisionllm features extract film.mp4 --out features/ --clip checkpoints/demo/clip
revisionllm features convert CLIP_L14_frames_features_5fps.h5 npy_folder
revisionllm features verify features/
revisionllm features info features/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    import numpy as np

    from revisionllm.data.feature_store import FeatureStore

DEFAULT_CLIP = "checkpoints/clip/ViT-L-14.pt"
DEFAULT_FEATURE_FPS = 5.0
VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm", ".wmv")
ROWS_PER_READ = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands extract, convert, verify and info."""
    verbs = parser.add_subparsers(dest="features_verb", metavar="VERB", required=True)
    _add_extract(verbs)
    convert = verbs.add_parser("convert", help="copy features into another format")
    convert.add_argument("source", help="HDF5 file, LMDB folder or folder of .npy files")
    convert.add_argument("destination", help="new store; .h5, .lmdb, or else a .npy folder")
    convert.add_argument(
        "--format",
        choices=["npy", "hdf5", "lmdb"],
        help="format of the new store (default: by the name of DESTINATION)",
    )
    convert.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float32",
        help="stored numbers; float16 halves the size (default: %(default)s)",
    )
    verify = verbs.add_parser("verify", help="read every row; exit code 2 if any film is damaged")
    verify.add_argument("path", help="a feature store")
    info = verbs.add_parser("info", help="films, rows, width and rate of a feature store")
    info.add_argument("path", help="a feature store")


def _add_extract(verbs: argparse._SubParsersAction) -> None:
    extract = verbs.add_parser("extract", help="videos -> one .npy of CLIP features each")
    extract.add_argument("videos", nargs="+", metavar="VIDEO", help="video files or folders")
    extract.add_argument("--out", required=True, help="folder for <video name>.npy and .json")
    extract.add_argument(
        "--clip",
        default=DEFAULT_CLIP,
        help="CLIP folder, OpenAI .pt file or open_clip NAME:TAG (default: %(default)s)",
    )
    extract.add_argument(
        "--feature_fps",
        type=float,
        default=DEFAULT_FEATURE_FPS,
        help="features per second: MAD 5, chapters 2 (default: %(default)s)",
    )
    extract.add_argument(
        "--batch_size", type=int, default=64, help="frames per CLIP pass (default: %(default)s)"
    )
    extract.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="stored numbers (default: %(default)s)",
    )
    extract.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was asked for; returns the exit code."""
    verbs = {"extract": _extract, "convert": _convert, "verify": _verify, "info": _info}
    return verbs[args.features_verb](args)


def _extract(args: argparse.Namespace) -> int:
    if args.feature_fps <= 0 or args.batch_size < 1:
        raise UserError("--feature_fps must be above 0 and --batch_size at least 1")
    outputs = _output_paths(args.videos, Path(args.out))

    from revisionllm.data.feature_extraction.frames import extract_features
    from revisionllm.model.clip import load_clip

    clip = load_clip(args.clip, device=args.device)
    failures: list[str] = []
    for out_path, video in outputs.items():
        try:
            made = extract_features(
                video,
                clip,
                feature_fps=args.feature_fps,
                out_path=out_path,
                batch_size=args.batch_size,
                dtype=args.dtype,
            )
        except UserError as error:
            failures.append(f"{video}: {error}")
            print(f"failed: {failures[-1]}", file=sys.stderr)
            continue
        how = "already there" if made.reused else "extracted"
        print(f"{how}: {made.path} {made.num_frames} frames, {made.duration_s:.1f} s", flush=True)
    if failures:
        print(f"{len(failures)} of {len(outputs)} videos failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _output_paths(videos: list[str], folder: Path) -> dict[Path, Path]:
    """Feature file -> video; folders stand for the videos in them."""
    files: list[Path] = []
    for video in map(Path, videos):
        if video.is_dir():
            found = sorted(p for p in video.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
            if not found:
                raise UserError(f"no video files in folder {video}")
            files += found
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


def _convert(args: argparse.Namespace) -> int:
    from revisionllm.data.feature_store import open_features
    from revisionllm.data.feature_writers import guess_format, write_features

    source = open_features(args.source)
    store_format = args.format or guess_format(args.destination)
    keys = source.keys()

    def records() -> Iterator[tuple[str, np.ndarray, dict]]:
        for key in _with_progress(keys, "convert"):
            features = source.read(key).astype(args.dtype)
            about = source.metadata(key)
            yield key, features, {**about, "dtype": args.dtype} if about else {}

    count = write_features(args.destination, records(), store_format=store_format)
    print(f"{count} films: {args.source} -> {args.destination} ({store_format}, {args.dtype})")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from revisionllm.data.feature_store import open_features

    store = open_features(args.path)
    keys = store.keys()
    problems = []
    for key in _with_progress(keys, "verify"):
        try:
            problem = _problem(store, key)
        except UserError as error:
            problem = str(error)
        if problem:
            problems.append(f"{key}: {problem}")
    problems += [f"{path.name}: unfinished" for path in Path(args.path).glob("*.partial")]
    for problem in problems:
        print(problem)
    print(f"{len(keys)} records in {args.path}, {len(problems)} problems")
    return EXIT_BAD_INPUT if problems else 0


def _problem(store: FeatureStore, key: str) -> str | None:
    """What is wrong with one record, or None."""
    import numpy as np

    from revisionllm.data.lmdb_records import read_query

    if _holds_queries(store, key):
        arrays = read_query(store.records, key)
        return None if all(np.isfinite(a).all() for a in arrays) else "not finite"
    num_frames = store.num_frames(key)
    if num_frames == 0:
        return "no rows"
    stated = store.metadata(key).get("num_frames", num_frames)
    if stated != num_frames:
        return f"{num_frames} rows, its description says {stated}"
    for start in range(0, num_frames, ROWS_PER_READ):
        rows = store.read(key, slice(start, start + ROWS_PER_READ))
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            return f"row {start + bad[0]} is not finite"
    return None


def _holds_queries(store: FeatureStore, key: str) -> bool:
    """Whether this is a record of text features, which only LMDB stores have."""
    from revisionllm.data.feature_store import LmdbStore

    return isinstance(store, LmdbStore) and "token_features" in store.records.read(key)


def _info(args: argparse.Namespace) -> int:
    from revisionllm.data.feature_store import open_features

    store = open_features(args.path)
    keys = store.keys()
    if keys and _holds_queries(store, keys[0]):
        width = store.records.read(keys[0])["token_features"].shape[1]
        print(f"store:        {store.path} (text features)\nqueries:      {len(keys)}")
        print(f"width:        {width}")
        return 0
    shapes = [store.shape(key) for key in keys]
    rates = sorted(
        {store.metadata(key).get("feature_fps", "not recorded") for key in keys}, key=str
    )
    clips = {store.metadata(key).get("clip_fingerprint", "not recorded") for key in keys}
    print(f"store:        {store.path} ({type(store).__name__})")
    print(f"films:        {len(keys)}")
    print(f"rows:         {sum(shape[0] for shape in shapes)}")
    print(f"width:        {', '.join(str(d) for d in sorted({shape[1] for shape in shapes}))}")
    print(f"feature_fps:  {', '.join(str(rate) for rate in rates)}")
    print(f"CLIP:         {', '.join(sorted(clips))}")
    return 0


def _with_progress(keys: list[str], name: str) -> Iterator[str]:
    from tqdm import tqdm

    return iter(tqdm(keys, desc=name, unit="film", file=sys.stderr))
