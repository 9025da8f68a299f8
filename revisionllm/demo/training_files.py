"""Writes what the training stages need of the demo world: annotations and features.

    python revisionllm/demo/training_files.py --films 30 --clip checkpoints/demo/clip

The folder gets `annotations.json` (MAD's format), `features/<film>.npy` (every third frame, the
ones that windows look at) and `text_features/` (LMDB). What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started by path: put the repository on the import path
    sys.path[0] = str(Path(__file__).resolve().parents[2])


from revisionllm.demo.world.plans import WORLD_VERSION
from revisionllm.errors import UserError, run_entry_point
from revisionllm.options import Parser


def training_films(num_films: int, minutes: float) -> list[Any]:
    """Plans of training films whose `film_features` begin where `rows_of_windows` needs it."""
    from revisionllm.demo.training.dense_data import FEATURE_STEP
    from revisionllm.demo.training.film_features import FIRST_FRAME
    from revisionllm.demo.world.plans import plan_film

    seeds = [FIRST_FRAME + FEATURE_STEP * number for number in range(num_films)]
    return [plan_film(seed, minutes * 60, "train") for seed in seeds]


def annotations(plans: list[Any], per_film: int) -> dict[str, dict]:
    """Sentences that are true of one event each, in MAD's format."""
    from revisionllm.demo.films import film_sentences, mad_record

    return {
        sentence.query_id: mad_record(plan, sentence)
        for plan in plans
        for sentence in film_sentences(plan, per_film, 0)
    }


def query_records(records: dict[str, dict], clip: Any) -> Iterator[tuple[str, dict]]:
    """Word and sentence features of every query."""
    for query_id, record in records.items():
        tokens, sentence = clip.encode_texts([record["sentence"]])
        arrays = {"token_features": tokens[0].numpy(), "cls_features": sentence[0].numpy()}
        yield query_id, arrays


def write_files(args: argparse.Namespace) -> None:
    """Write what is missing in `args.out`."""
    from revisionllm.data.stores.feature_writers import save_npy, write_lmdb
    from revisionllm.demo.films import write_annotations
    from revisionllm.demo.training.film_features import cached_features, rows_of_windows
    from revisionllm.model.clip import load_clip

    clip = load_clip(args.clip)
    plans = training_films(args.films, args.minutes)
    records = annotations(plans, args.sentences)
    (args.out / "features").mkdir(parents=True, exist_ok=True)
    seeds = [plan.seed for plan in plans]
    computed = cached_features(
        seeds, args.minutes * 60, "train", args.clip, args.cache, args.workers
    )
    for plan, source in zip(plans, computed, strict=True):
        path = args.out / "features" / f"{plan.film_id}.npy"
        if not path.exists():
            rows = np.load(source, allow_pickle=False)
            save_npy(path, rows_of_windows(rows, plan.duration_s))
    if not (args.out / "text_features").exists():
        write_lmdb(args.out / "text_features", query_records(records, clip))
    write_annotations(args.out / "annotations.json", records)


def is_written(args: argparse.Namespace) -> bool:
    """Is everything there, for the same arguments?"""
    note = args.out / "made_with.json"
    if not note.exists():
        return False
    made_with = json.loads(note.read_text(encoding="utf-8"))
    made_with.pop("workers", None)  # noted once; changes nothing
    return made_with == _settings(args)


def _settings(args: argparse.Namespace) -> dict[str, str]:
    settings = {name: str(value) for name, value in vars(args).items() if name != "workers"}
    return settings | {"world": str(WORLD_VERSION)}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/train_demo/data"), help="folder to write")
    add("--films", type=int, default=30, help="training films (30)")
    add("--minutes", type=float, default=60.0, help="length of a film (60)")
    add("--sentences", type=int, default=60, help="sentences per film (60)")
    add("--clip", type=Path, default=Path("out/train_demo/clip"), help="the demo's CLIP")
    add("--cache", type=Path, default=Path("out/demo_features"), help="features of training films")
    add("--workers", type=int, help="processes for features (one per core, at most 8; 0: none)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        if is_written(args):
            return 0
        if (args.out / "made_with.json").exists():
            raise UserError(
                f"{args.out} was made with other arguments; give another --out or move it away"
            )
        write_files(args)
        note = args.out / "made_with.json"
        note.write_text(json.dumps(_settings(args), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.out}")
        return 0

    return run_entry_point(work, "training_files")


if __name__ == "__main__":
    raise SystemExit(main())
