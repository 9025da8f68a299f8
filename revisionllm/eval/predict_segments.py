"""Stage 2: ask about long runs of segments, write which of them hold each query.

    python revisionllm/eval/predict_segments.py --num_segments 100
    python revisionllm/eval/predict_segments.py --num_segments 33 --checkpoint RUN

Behind scripts/mad/eval_stage2_100.sh, eval_stage2_33.sh and scripts/chapters/eval_stage2_100.sh.
With --grounding_path only segments around dense answers other than `Not Present` are asked about,
filled up with others. Shards and resuming as in predict_windows.py.
Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.eval.prediction_run import (
    PredictionDefaults,
    add_prediction_arguments,
    load_run,
    predict_all,
    search_options,
)
from revisionllm.options import Parser

DEFAULTS = PredictionDefaults(checkpoint="checkpoints/mad_stage2_long_100", stage="long_100")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = Parser(description=__doc__.split("\n")[0])
    add_prediction_arguments(parser, DEFAULTS)
    add = parser.add_argument
    add("--num_segments", type=int, default=100, help="positions per question (%(default)s)")
    add("--zooms", type=int, nargs="+", default=[4, 2, 1], help="repeats of a segment (4 2 1)")
    add("--min_votes", type=int, default=1, help="zooms that must agree (%(default)s)")
    add("--segment_stride_s", type=float, help="between segments; unset: the run's own")
    add("--shuffle_seed", type=int, help="show segments in a seeded order; unset: film order")
    add("--grounding_path", help="dense predictions (run folder or file) to restrict segments by")
    return parser


def predict_as_released(args: argparse.Namespace) -> None:
    """Write the released log instead."""
    from revisionllm.eval.retrieval.prediction import (
        predict_released,
        retrieval_log,
        seeded_shuffle,
    )

    if args.grounding_path:
        raise UserError("--convention released asks every segment; leave --grounding_path out")

    def make_log(model, film, query):
        shuffle = seeded_shuffle(args.shuffle_seed or 0, query.qid)
        return retrieval_log(
            model,
            film,
            query,
            num_segments=args.num_segments,
            zooms=args.zooms,
            shuffle=shuffle,
        )

    print(predict_released(args, f"long_{args.num_segments}", make_log))


def make_searcher(args: argparse.Namespace):
    """Load the run; one segment level, behind recorded dense answers if there are any."""
    from revisionllm.engine.segments import SegmentEngine
    from revisionllm.grounding.levels import Level
    from revisionllm.search.cost import Plan
    from revisionllm.search.plans import Planner
    from revisionllm.search.searcher import RecordedEngine, Searcher

    model = load_run(args)
    config = model.config
    if config.adapter.kind != "clip":
        raise UserError(f"{args.checkpoint} has no segment adapter; it is of stage {config.stage}")
    if config.stage == "long" and config.time_mapping != "released":
        _compare_segments(args, config.num_segments)
    name = f"long_{args.num_segments}"
    level = Level(
        name,
        "segments",
        config.window_s,
        args.segment_stride_s or config.segment_stride_s,
        group_size=args.num_segments,
        zooms=tuple(args.zooms),
        min_votes=args.min_votes,
        fill_groups=True,
    )
    engines = {name: SegmentEngine(model, budget_mb=args.budget_mb)}
    plan = Plan("segments", (level,), "exhaustive")
    if args.grounding_path:
        dense, predictions = _recorded_level(args.grounding_path, config, args.data_path)
        plan = Plan("segments", (dense, level))
        engines["recorded"] = RecordedEngine(predictions)
    options = search_options(args, shuffle_seed=args.shuffle_seed, only_positive=True)
    planner = Planner(lambda _duration_s: [plan])
    return Searcher(engines, config, options, planner, Path(args.checkpoint).name)


def _compare_segments(args: argparse.Namespace, trained: int) -> None:
    """More segments in a row than a run was trained on have no names there; fewer are told.

    Raises:
        UserError: more.
    """
    words = f"{args.checkpoint} was trained on {trained} segments in a row, not {args.num_segments}"
    if args.num_segments > trained:
        raise UserError(f"{words}; give --num_segments {trained}")
    if args.num_segments < trained:
        print(words, file=sys.stderr)


def _recorded_level(path: str, config, data_path: Sequence[str]):
    """The level of a dense run's windows, and its predictions."""
    from revisionllm.eval.cli import find_predictions
    from revisionllm.grounding.levels import Level
    from revisionllm.records.predictions import read_predictions

    files, problems = find_predictions(path, data_path)
    predictions = [p for file in files for p in read_predictions(file)]
    windows = next((p.windows for p in predictions if p.windows and len(p.windows) > 1), None)
    if problems or windows is None:
        raise UserError(f"{path} holds no complete dense predictions; run stage 1 first")
    stride_s = windows[1].start_s - windows[0].start_s
    window_s = windows[0].end_s - windows[0].start_s
    level = Level("recorded", "dense", window_s, stride_s, margin_s=config.segment_stride_s)
    return level, predictions


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2: bad input)."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    defaults = PredictionDefaults(DEFAULTS.checkpoint, f"long_{args.num_segments}")

    def work() -> int:
        if args.convention == "released":
            predict_as_released(args)
            return 0
        predict_all(args, defaults, make_searcher, script=[__file__], argv=argv)
        return 0

    return run_entry_point(work, Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
