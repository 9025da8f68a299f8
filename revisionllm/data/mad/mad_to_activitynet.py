"""MAD annotations -> training JSON, one question per query.

python revisionllm/data/mad/mad_to_activitynet.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from revisionllm.data.converters import add_converter_arguments, convert_training
from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

ANNOTATIONS = Path("data/mad/MAD_train.json")
OUT = Path("data/mad/mad_stage2_fixed_prompt.json")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_converter_arguments(parser, annotations=ANNOTATIONS, out=OUT)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: convert_training(args, "mad"), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
