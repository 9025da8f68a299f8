"""VidChapters-7M: CLIP text features of every chapter -> LMDB, training and test split apart.

    python revisionllm/data/feature_extraction/chapters_clip_text_extractor.py

The j-th chapter of a training video is query `<vid>_<j>`; test and validation queries have ids.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from revisionllm.data.feature_extraction.texts import (
    add_text_arguments,
    collect_sentences,
    extract_texts,
)
from revisionllm.errors import UserError, run_entry_point
from revisionllm.options import Parser

FOLDER = Path("data/chapters")
TRAIN = (FOLDER / "chapters_vmr_train.jsonl",)
TEST = (FOLDER / "chapters_vmr_test.jsonl", FOLDER / "chapters_vmr_val.jsonl")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    for name, paths, out in (
        ("train", TRAIN, FOLDER / "chapters_clip_L14_text_features_train"),
        ("test", TEST, FOLDER / "chapters_clip_L14_text_features"),
    ):
        shown = " ".join(map(str, paths))
        parser.add_argument(
            f"--{name}",
            type=Path,
            nargs="*",
            help=f"{name} annotations (default: of {shown} those that are there)",
        )
        parser.add_argument(
            f"--{name}_out",
            type=Path,
            default=out,
            help=f"the new LMDB of --{name} (default: %(default)s)",
        )
    add_text_arguments(parser)
    return parser


def present(paths: tuple[Path, ...]) -> list[Path]:
    """The default files that are there; the others are named."""
    for path in paths:
        if not path.is_file():
            print(f"not there, left out: {path}", file=sys.stderr)
    return [path for path in paths if path.is_file()]


def run(args: argparse.Namespace) -> int:
    """Extract both splits; returns the exit code."""
    train = present(TRAIN) if args.train is None else args.train
    test = present(TEST) if args.test is None else args.test
    splits = [(paths, out) for paths, out in ((train, args.train_out), (test, args.test_out))]
    wanted = [
        (collect_sentences(paths, skip_bad=args.skip_bad), out) for paths, out in splits if paths
    ]
    if not wanted:
        raise UserError(f"no annotations in {FOLDER}; data/README.md says where they come from")

    from revisionllm.model.clip import load_clip

    clip = load_clip(args.clip, device=args.device)
    for sentences, out in wanted:
        print(
            extract_texts(sentences, out, clip, batch_size=args.batch_size, skip_bad=args.skip_bad)
        )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: run(args), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
