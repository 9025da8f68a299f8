"""MSR-VTT: CLIP text features of the sentences -> LMDB.

    python revisionllm/data/feature_extraction/msrvtt_clip_text_extractor.py

Reads what `msrvtt_retrieval_to_activitynet.py` wrote; MSR-VTT's own files can be given, too.
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
from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

FOLDER = Path("data/msrvtt")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        default=[FOLDER / "msrvtt_test.json"],
        help="files with query ids and sentences (default: msrvtt_test.json of data/msrvtt)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=FOLDER / "clip_L14_text_features",
        help="the new LMDB (default: %(default)s)",
    )
    add_text_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Extract; returns the exit code."""
    sentences = collect_sentences(args.annotations, skip_bad=args.skip_bad)

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
