"""`revisionllm find VIDEO "sentence" ...`: ground sentences in any video file.

    revisionllm find film.mp4 "a red ball bounces on the beach" --view view.html

Results go to stdout (a table, or one JSON object per sentence with --json), progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from revisionllm.files import claim_output
from revisionllm.grounder import (
    DEFAULT_CHECKPOINT,
    DEFAULT_KEEP,
    SEARCHES,
    check_sentences,
    default_features_dir,
)
from revisionllm.model.hub import path_argument

DEMO_HINT = (
    "revisionllm find: these are the demo's weights, which know rendered films alone; for real"
    " footage give --checkpoint RUN (checkpoints/README.md says where to get one)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("video", type=Path, help="any video file")
    parser.add_argument("sentences", nargs="+", metavar="sentence", help="what to look for")
    parser.add_argument("--top-k", type=int, default=5, help="moments per sentence (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per sentence")
    parser.add_argument("--view", type=Path, metavar="HTML", help="also write a page that shows it")
    parser.add_argument("--overwrite", action="store_true", help="replace what HTML names")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        default=DEFAULT_CHECKPOINT,
        help="run folder (the demo's)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="found means a score of at least this (0.5)"
    )
    parser.add_argument(
        "--long",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of the long stage for coarse levels, the coarsest first",
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="planned",
        help="planned: coarse to fine, the cheapest way (default) | recursive: through all levels"
        " | exhaustive: every window",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=DEFAULT_KEEP,
        help=f"segments the coarse level keeps, times the root of their number ({DEFAULT_KEEP})",
    )
    parser.add_argument(
        "--features-dir",
        type=Path,
        default=None,
        help=f"where frame features are kept for the next call ({default_features_dir()})",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from revisionllm.data.video import probe
    from revisionllm.data.video_file import film_comment
    from revisionllm.grounder import Grounder
    from revisionllm.grounding.windows import dense_windows

    check_sentences(args.sentences)
    if args.view:
        claim_output(args.view, inputs=[args.video], overwrite=args.overwrite)
    probe(args.video)  # a bad file is told before the model is loaded
    demo_weights = Path(args.checkpoint).resolve() == DEFAULT_CHECKPOINT
    if demo_weights and "made_by" not in film_comment(args.video):
        print(DEMO_HINT, file=sys.stderr)
    grounder = Grounder.from_checkpoint(args.checkpoint, long_runs=args.long, device=args.device)
    grounder.clip.encode_texts(args.sentences)  # and so is a sentence that is too long
    film = grounder.open_film(args.video, features_dir=args.features_dir)
    predictions = grounder.ground(
        film,
        args.sentences,
        search=args.search,
        keep=args.keep,
        threshold=args.threshold,
        top_k=args.top_k,
        verbose=True,
    )
    config = grounder.model.config
    num_windows = len(
        dense_windows(film.duration_s, window_s=config.window_s, stride_s=config.stride_s)
    )
    for prediction in predictions:
        print(json.dumps(prediction.to_json()) if args.json else as_text(prediction, num_windows))
    if args.view:
        from revisionllm.viewer.page import write_view

        write_view(
            args.view,
            video_path=film.video_path,
            duration_s=film.duration_s,
            predictions=predictions,
            num_windows=num_windows,
        )
        print(f"wrote {args.view}", file=sys.stderr)
    return 0


def as_text(prediction, num_windows: int) -> str:
    """A prediction as a few lines for people."""
    from revisionllm.records.clock import clock

    visited = f"{prediction.cost.dense_windows} of {num_windows} windows"
    lines = [f"{prediction.query}"]
    if not prediction.found:
        best = prediction.moments[0].score if prediction.moments else 0.0
        lines.append(f"  not present (best candidate scores {best:.2f}; {visited})")
        return "\n".join(lines)
    for rank, moment in enumerate(prediction.moments, 1):
        span = f"{clock(moment.start_s, 1)} - {clock(moment.end_s, 1)}"
        lines.append(f"  {rank}. {span}  score {moment.score:.2f}")
    return "\n".join([*lines, f"  ({visited})"])
