"""MAD: CLIP text features of every query -> LMDB, for the sparse and long stages and the scores.

    python revisionllm/data/feature_extraction/mad_clip_text_extractor.py

Reads MAD_{train,val,test}.json or {train,val,test}.jsonl of data/mad, whichever are there.
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

FOLDER = Path("data/mad")
SPLITS = ("train", "val", "test")
OUT = FOLDER / "clip_L14_text_features"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        help=f"files with query ids and sentences (default: those of {FOLDER} that are there)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the new LMDB (default: %(default)s)")
    add_text_arguments(parser)
    return parser


def default_annotations() -> list[Path]:
    """Per split the official JSON, or else the .jsonl."""
    found = []
    for split in SPLITS:
        places = (FOLDER / f"MAD_{split}.json", FOLDER / f"{split}.jsonl")
        present = [path for path in places if path.is_file()]
        if present:
            found.append(present[0])
        else:
            print(f"not there, left out: {places[0]} (or {places[1].name})", file=sys.stderr)
    if not found:
        raise UserError(f"no annotations in {FOLDER}; data/README.md says where MAD's come from")
    return found


def run(args: argparse.Namespace) -> int:
    """Extract; returns the exit code."""
    paths = args.annotations or default_annotations()
    sentences = collect_sentences(paths, skip_bad=args.skip_bad)

    from revisionllm.model.clip import load_clip

    clip = load_clip(args.clip, device=args.device)
    print(
        extract_texts(sentences, args.out, clip, batch_size=args.batch_size, skip_bad=args.skip_bad)
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: run(args), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
