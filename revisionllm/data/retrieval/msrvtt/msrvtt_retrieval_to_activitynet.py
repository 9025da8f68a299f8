"""MSR-VTT annotations -> training JSON, and the evaluation JSON of a test split.

    python revisionllm/data/retrieval/msrvtt/msrvtt_retrieval_to_activitynet.py
    ... --test ""                                        # the official test split instead of 1k-A

A sentence's true span is its whole video. Training are the sentences of all videos that are not
tested (of 1k-A: the 9k split of 9,000 videos).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[4])

from revisionllm.data.converters import convert_msrvtt
from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

FOLDER = Path("data/msrvtt")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--annotations",
        type=Path,
        default=FOLDER / "MSRVTT_data.json",
        help="videos and sentences (default: %(default)s)",
    )
    add(
        "--test",
        default=str(FOLDER / "MSRVTT_JSFUSION_test.csv"),
        help='table of the test split; "": the videos whose split is test (default: %(default)s)',
    )
    add(
        "--out",
        type=Path,
        default=FOLDER / "msrvtt_train.json",
        help="new training file (default: %(default)s)",
    )
    add(
        "--test_out",
        type=Path,
        default=FOLDER / "msrvtt_test.json",
        help="new evaluation file (default: %(default)s)",
    )
    add(
        "--skip_bad",
        action="store_true",
        help="leave out bad records, each of them listed, instead of stopping",
    )
    add("--overwrite", action="store_true", help="replace files that this project did not make")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: convert_msrvtt(args), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
