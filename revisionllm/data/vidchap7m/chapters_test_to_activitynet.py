"""VidChapters-7M test annotations -> evaluation JSON, for the videos of test.json.

python revisionllm/data/vidchap7m/chapters_test_to_activitynet.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from revisionllm.data.converters import add_converter_arguments, convert_evaluation
from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

FOLDER = Path("data/chapters")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_converter_arguments(
        parser,
        annotations=FOLDER / "chapters_vmr_test.jsonl",
        out=FOLDER / "chapters_test.json",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        default=FOLDER / "test.json",
        help="JSON list of the test videos (default: %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: convert_evaluation(args), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
