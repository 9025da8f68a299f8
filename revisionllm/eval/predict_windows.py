"""Stage 1: ask every dense window about every query, write predictions.

    python revisionllm/eval/predict_windows.py                      # MAD test
    python revisionllm/eval/predict_windows.py --checkpoint RUN --data_path FILE --features STORE

Behind scripts/mad/eval_loop_stage1_dense.sh and scripts/chapters/eval_loop_stage1_dense.sh. One
process per GPU, whole films each; started again, it goes on where it stopped. On a cluster it takes
its shard from a SLURM array (`sbatch --array 0-7 --wrap 'python ...'`) or from torchrun.
Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import run_entry_point
from revisionllm.eval.prediction_run import (
    PredictionDefaults,
    add_prediction_arguments,
    load_run,
    predict_all,
    print_scores,
    search_options,
)
from revisionllm.options import Parser

DEFAULTS = PredictionDefaults(checkpoint="checkpoints/mad_stage1_dense", stage="dense")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = Parser(description=__doc__.split("\n")[0])
    add_prediction_arguments(parser, DEFAULTS)
    parser.add_argument("--stride_s", type=float, help="between windows; unset: the run's own")
    parser.add_argument(
        "--explore",
        type=float,
        default=0.05,
        help="Not Present windows give a candidate from this presence on (%(default)s)",
    )
    parser.add_argument(
        "--num_candidates", type=int, default=1, help="spans per window (%(default)s)"
    )
    parser.add_argument(
        "--refine", type=int, default=0, help="moments refined at full rate (%(default)s)"
    )
    parser.add_argument(
        "--score_merge",
        choices=("add", "multiply"),
        default="add",
        help="--convention released: cosine - entropy, or cosine / entropy (%(default)s)",
    )
    parser.add_argument(
        "--score_kind",
        choices=("mean_entropy", "max_entropy", "cosine_sim"),
        default="mean_entropy",
        help="--convention released: which entropy is merged; cosine_sim: none (chapters)"
        " (%(default)s)",
    )
    parser.add_argument(
        "--top_frames",
        type=int,
        default=3,
        help="--convention released: frames of a span in its cosine, 0: all (%(default)s)",
    )
    return parser


def predict_as_released(args: argparse.Namespace) -> None:
    """Write the released log instead."""
    from revisionllm.eval.retrieval.prediction import dense_log, predict_released

    path = predict_released(
        args,
        DEFAULTS.stage,
        lambda *asked: dense_log(
            *asked,
            score_merge=args.score_merge,
            score_kind=args.score_kind,
            top_frames=args.top_frames,
        ),
    )
    print(path)


def make_searcher(args: argparse.Namespace):
    """Load the run; one level, every window."""
    from revisionllm.engine.dense import DenseEngine
    from revisionllm.search.plans import every_window
    from revisionllm.search.searcher import Searcher

    model = load_run(args)
    engine = DenseEngine(
        model,
        budget_mb=args.budget_mb,
        explore=args.explore,
        num_candidates=args.num_candidates,
    )
    return Searcher(
        {"dense": engine},
        model.config,
        search_options(args, refine_top=args.refine),
        every_window(model.config, args.stride_s),
        Path(args.checkpoint).name,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)

    def work() -> int:
        if args.convention == "released":
            predict_as_released(args)
            return 0
        merged = predict_all(args, DEFAULTS, make_searcher, script=[__file__], argv=argv)
        if merged and args.shard is None:
            print_scores(merged)
        return 0

    return run_entry_point(work, Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
