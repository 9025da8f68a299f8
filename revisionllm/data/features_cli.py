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

from revisionllm.data.feature_extraction.options import add_extraction_arguments
from revisionllm.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    import numpy as np

    from revisionllm.data.stores.feature_store import FeatureStore

DEFAULT_FEATURE_FPS = 5.0


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
    add_extraction_arguments(extract, default_fps=DEFAULT_FEATURE_FPS)


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was asked for; returns the exit code."""
    verbs = {"extract": _extract, "convert": _convert, "verify": _verify, "info": _info}
    return verbs[args.features_verb](args)


def _extract(args: argparse.Namespace) -> int:
    from revisionllm.data.feature_extraction.videos import ExtractionSettings, extract_videos

    settings = ExtractionSettings(
        clip=args.clip,
        feature_fps=args.feature_fps,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
    )
    return extract_videos(args.videos, args.out, settings, num_workers=args.num_workers)


def _convert(args: argparse.Namespace) -> int:
    import numpy as np

    from revisionllm.data.stores.feature_store import DIGEST, open_features, rows_digest
    from revisionllm.data.stores.feature_writers import (
        finished,
        guess_format,
        unfinished,
        write_features,
    )
    from revisionllm.files import is_same

    source = open_features(args.source)
    store_format = args.format or guess_format(args.destination)
    keys = source.keys()
    if is_same(args.source, args.destination):
        raise UserError(f"{args.destination} is the source itself; choose another place")
    done: set[str] = set()
    if store_format == "npy":
        about = {"source": str(source.path.resolve()), "dtype": args.dtype, "films": len(keys)}
        done = unfinished(args.destination, about)

    def records() -> Iterator[tuple[str, np.ndarray, dict]]:
        for key in _with_progress(keys, "convert"):
            if key in done:
                continue
            with np.errstate(over="ignore"):
                features = source.read(key).astype(args.dtype)
            if not np.isfinite(features).all():
                row = np.flatnonzero(~np.isfinite(features).all(axis=1))[0]
                raise UserError(
                    f"row {row} of {key!r} does not fit {args.dtype}; take --dtype float32"
                )
            about = source.metadata(key)
            if about:
                about = about | {"dtype": args.dtype, DIGEST: rows_digest(features)}
            yield key, features, about

    count = len(done) + write_features(args.destination, records(), store_format=store_format)
    if store_format == "npy":
        finished(args.destination)
    print(f"{count} films: {args.source} -> {args.destination} ({store_format}, {args.dtype})")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from revisionllm.data.stores.feature_store import open_features

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

    from revisionllm.data.stores.lmdb_records import read_query

    if _holds_queries(store, key):
        arrays = read_query(store.records, key)
        return None if all(np.isfinite(a).all() for a in arrays) else "not finite"
    return store.bad_rows(key)


def _holds_queries(store: FeatureStore, key: str) -> bool:
    """Whether this is a record of text features, which only LMDB stores have."""
    from revisionllm.data.stores.feature_store import LmdbStore

    return isinstance(store, LmdbStore) and store.records.holds(key, "token_features")


def _info(args: argparse.Namespace) -> int:
    from revisionllm.data.stores.feature_store import open_features

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
