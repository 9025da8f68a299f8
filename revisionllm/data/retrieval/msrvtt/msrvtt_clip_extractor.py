"""MSR-VTT: CLIP frame features of a folder of videos -> one .npy per video.

    python revisionllm/data/retrieval/msrvtt/msrvtt_clip_extractor.py
    ... --num_workers 4                                  # four videos at a time

Videos are only read, never deleted. A killed run continues; a video that fails is listed with its
reason, the others go on, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[4])

from revisionllm.data.feature_extraction.options import add_extraction_arguments
from revisionllm.errors import UserError, run_entry_point
from revisionllm.options import Parser

FOLDER = Path("data/msrvtt")
FEATURE_FPS = 5.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--videos", type=Path, default=FOLDER / "videos", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=FOLDER / "msrvtt_clipl14_features",
        help="folder for <vid>.npy and <vid>.json (default: %(default)s)",
    )
    add_extraction_arguments(parser, default_fps=FEATURE_FPS)
    return parser


def run(args: argparse.Namespace) -> int:
    """Extract; returns the exit code."""
    from revisionllm.data.feature_extraction.videos import ExtractionSettings, extract_videos

    if not args.videos.is_dir():
        raise UserError(f"no folder of videos at {args.videos}; put them there or give --videos")
    settings = ExtractionSettings(
        clip=args.clip,
        feature_fps=args.feature_fps,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
    )
    return extract_videos([args.videos], args.out, settings, num_workers=args.num_workers)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    args = build_parser().parse_args(argv)
    return run_entry_point(lambda: run(args), Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
