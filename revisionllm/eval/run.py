"""`revisionllm eval run`: the whole recursion over an annotation file, with real skipping.

revisionllm eval run                              # MAD test, the dense run, planned
revisionllm eval run --long checkpoints/mad_stage2_long_100 checkpoints/mad_stage2_long_33
revisionllm eval run --plan "cosine > dense"      # text-frame cosine first, then dense windows
revisionllm eval run --plan exhaustive            # every dense window, as stage 1

Predictions go to <checkpoint>/predictions/search. By default a planner counts the work of each plan
for the film's length and number of queries, and takes the cheapest; it says which and why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.eval.made_with import source_flags
from revisionllm.eval.prediction_run import (
    NO_TEXT,
    PredictionDefaults,
    add_prediction_arguments,
    load_run,
    predict_all,
    print_scores,
    search_options,
)
from revisionllm.grounding.recursion import ORDERS
from revisionllm.model.hub import path_argument
from revisionllm.search.cost import Plan
from revisionllm.search.plans import (
    COSINE_WEIGHT,
    DEFAULT_KEEP,
    LONG_KEEP,
    Planner,
    llm_shape,
    long_level,
    long_listing,
    search_plans,
)
from revisionllm.search.searcher import Searcher

DEFAULTS = PredictionDefaults(checkpoint="checkpoints/mad_stage1_dense", stage="search")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm eval run`."""
    add_prediction_arguments(parser, DEFAULTS)
    add = parser.add_argument
    add(
        "--long",
        nargs="*",
        type=path_argument,
        default=[],
        metavar="RUN",
        help="long runs, coarse to fine",
    )
    add("--plan", default="auto", help="auto, or the name of a plan (%(default)s)")
    add("--order", choices=ORDERS, default="coarse_to_fine", help="(%(default)s)")
    add("--cosine", action=argparse.BooleanOptionalAction, default=True, help="allow that level")
    add(
        "--keep",
        type=float,
        default=DEFAULT_KEEP,
        help="segments that the cosine level keeps, times the root of their number (%(default)s)",
    )
    add(
        "--long_keep",
        type=float,
        metavar="N",
        help="ranges that the finest long level keeps, named or not, times the root of its number"
        f" of segments (coarser ones more); unset: what they name; the demo: {LONG_KEEP:g}",
    )
    add(
        "--cosine_weight",
        type=float,
        default=COSINE_WEIGHT,
        help="weight of text-frame cosine when ranking ranges under --long_keep, nats per unit"
        " (%(default)s; 0: the LLM alone)",
    )
    add("--zooms", type=int, nargs="+", default=[1], help="zooms of the long levels (1)")
    add("--explore", type=float, default=0.05, help="see predict_windows.py (%(default)s)")
    add("--num_candidates", type=int, default=1, help="spans per window (%(default)s)")
    add("--refine", type=int, default=0, help="moments refined at full rate (%(default)s)")
    add("--shuffle_seed", type=int, help="show segments in a seeded order; unset: film order")


def make_searcher(args: argparse.Namespace) -> Searcher:
    """Load the dense run and the long runs, and lay out the plans."""
    from revisionllm.engine.dense import DenseEngine

    _check_plan(args)
    model = load_run(args)
    engine = DenseEngine(
        model,
        budget_mb=args.budget_mb,
        explore=args.explore,
        num_candidates=args.num_candidates,
    )
    long_levels, engines = _long_levels(args)
    keep = args.keep if args.cosine and args.text_features != NO_TEXT else None

    def plans(duration_s: float) -> list[Plan]:
        found = search_plans(
            model.config,
            duration_s,
            keep=keep,
            long_levels=long_levels,
            long_keep=args.long_keep,
            cosine_weight=args.cosine_weight,
            order=args.order,
        )
        return _chosen(found, args.plan)

    plans(3600.0)  # refuses a wrong --plan before any film is read
    configs = [engines[level.name].model.config for level in long_levels]
    return Searcher(
        {"dense": engine, **engines},
        model.config,
        search_options(args, shuffle_seed=args.shuffle_seed, refine_top=args.refine),
        Planner(plans, llm_shape(model, configs), model.device.type),
        Path(args.checkpoint).name,
    )


def _check_plan(args: argparse.Namespace) -> None:
    """Refuse a wrong --plan from the runs' configs alone, before anything large is loaded."""
    from revisionllm.model.loading import describe

    config, _ = describe(args.checkpoint, **source_flags(args))
    levels = [long_level(describe(path)[0], args.zooms) for path in args.long]
    keep = args.keep if args.cosine and args.text_features != NO_TEXT else None
    _chosen(search_plans(config, 3600.0, keep=keep, long_levels=levels), args.plan)


def _long_levels(args: argparse.Namespace):
    from revisionllm.engine.segments import SegmentEngine
    from revisionllm.model.loading import load_model

    levels, engines = [], {}
    for path in args.long:
        model = load_model(path, device=args.device, dtype=args.dtype)
        level = long_level(model.config, args.zooms)
        if level.name in engines:
            raise UserError(f"--long names two runs with {level.name}: {', '.join(args.long)}")
        levels.append(level)
        listing = {} if args.long_keep is None else long_listing(model.config)
        engines[level.name] = SegmentEngine(model, budget_mb=args.budget_mb, **listing)
    return levels, engines


def _chosen(plans: list[Plan], name: str) -> list[Plan]:
    """The plans that --plan leaves.

    Raises:
        UserError: no plan of that name.
    """
    found = [plan for plan in plans if name in ("auto", plan.name)]
    if not found:
        names = ", ".join(repr(plan.name) for plan in plans)
        raise UserError(f"no plan {name!r}; with these levels there is {names}")
    return found


def run(args: argparse.Namespace) -> int:
    """Predict, merge, print the scores; returns 0."""
    script = ["-m", "revisionllm.cli"]
    merged = predict_all(args, DEFAULTS, make_searcher, script=script, argv=sys.argv[1:])
    if merged and args.shard is None:
        print_scores(merged)
    return 0
