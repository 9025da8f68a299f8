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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.eval.film_search import EvalFilm, EvalQuery, FilmSearcher
from revisionllm.eval.prediction_run import (
    PredictionDefaults,
    add_prediction_arguments,
    load_run,
    predict_all,
    print_scores,
    search_options,
)
from revisionllm.grounding.cost import ModelShape, Plan, candidate_plans, choose_plan
from revisionllm.grounding.levels import Level
from revisionllm.grounding.recursion import ORDERS

DEFAULTS = PredictionDefaults(checkpoint="checkpoints/mad_stage1_dense", stage="search")
SEGMENTS_PER_WINDOW = 4  # the cosine level cuts a window into this many segments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm eval run`."""
    add_prediction_arguments(parser, DEFAULTS)
    add = parser.add_argument
    add("--long", nargs="*", default=[], metavar="RUN", help="long runs, coarse to fine")
    add("--plan", default="auto", help="auto, or the name of a plan (%(default)s)")
    add("--order", choices=ORDERS, default="coarse_to_fine", help="(%(default)s)")
    add("--cosine", action=argparse.BooleanOptionalAction, default=True, help="allow that level")
    add("--keep", type=float, default=0.15, help="share kept by the cosine level (%(default)s)")
    add("--zooms", type=int, nargs="+", default=[1], help="zooms of the long levels (1)")
    add("--explore", type=float, default=0.05, help="see predict_windows.py (%(default)s)")
    add("--num_candidates", type=int, default=1, help="spans per window (%(default)s)")
    add("--shuffle_seed", type=int, help="show segments in a seeded order; unset: film order")


@dataclass
class PlannedSearcher(FilmSearcher):
    """Chooses among plans for each film and number of queries.

    Attributes:
        plans: what to choose from; one: no choice.
        shape: of the dense run's LLM, for counting work.
    """

    plans: Sequence[Plan] = ()
    shape: ModelShape | None = None
    _said: set[str] = field(default_factory=set)

    @property
    def needs_words(self) -> bool:
        """A level of any plan reads the words of the queries."""
        return any(level.kind == "segments" for plan in self.plans for level in plan.levels)

    def ground(self, film: EvalFilm, queries: Sequence[EvalQuery]):
        """`FilmSearcher.ground` with the plan that costs least."""
        choice = choose_plan(
            self.plans,
            self.shape,
            duration_s=film.duration_s,
            num_queries=len(queries),
            feature_fps=film.feature_fps,
        )
        if choice.plan.name not in self._said:
            self._said.add(choice.plan.name)
            print(f"plan for {film.vid}: {choice.reason}", file=sys.stderr)
        self.levels = choice.plan.levels
        self.options = self.options | {"order": choice.plan.order}
        return super().ground(film, queries)


def make_searcher(args: argparse.Namespace) -> PlannedSearcher:
    """Load the dense run and the long runs, and lay out the plans."""
    from revisionllm.engine.dense import DenseEngine

    model = load_run(args)
    engine = DenseEngine(
        model,
        budget_mb=args.budget_mb,
        explore=args.explore,
        num_candidates=args.num_candidates,
    )
    config = model.config
    segment_s = config.window_s / SEGMENTS_PER_WINDOW
    cosine = Level(
        "cosine", "cosine", segment_s, segment_s / 2, keep_fraction=args.keep, margin_s=0.0
    )
    dense = Level("dense", "dense", config.window_s, config.stride_s)
    long_levels, engines = _long_levels(args)
    allowed = cosine if args.cosine and args.text_features != "none" else None
    plans = candidate_plans(dense, cosine=allowed, long_levels=long_levels)
    plans = _chosen(plans, args.plan, args.order)
    return PlannedSearcher(
        levels=plans[0].levels,
        engines={"dense": engine, **engines},
        run=Path(args.checkpoint).name,
        options=search_options(args) | {"shuffle_seed": args.shuffle_seed},
        plans=plans,
        shape=llm_shape(model),
    )


def _long_levels(args: argparse.Namespace):
    from revisionllm.engine.segments import SegmentEngine
    from revisionllm.model.loading import load_model

    levels, engines = [], {}
    for path in args.long:
        model = load_model(path, device=args.device, dtype=args.dtype)
        config = model.config
        level = Level(
            f"long_{config.num_segments}",
            "segments",
            config.window_s,
            config.segment_stride_s,
            group_size=config.num_segments,
            zooms=tuple(args.zooms),
            fill_groups=True,
        )
        if level.name in engines:
            raise UserError(f"--long names two runs of {config.num_segments} segments: {args.long}")
        levels.append(level)
        engines[level.name] = SegmentEngine(model, budget_mb=args.budget_mb)
    return levels, engines


def _chosen(plans: list[Plan], name: str, order: str) -> list[Plan]:
    """The plans that the flags leave, in the order asked for.

    Raises:
        UserError: no plan of that name.
    """
    if name != "auto":
        names = ", ".join(repr(plan.name) for plan in plans)
        plans = [plan for plan in plans if plan.name == name]
        if not plans:
            raise UserError(f"no plan {name!r}; with these levels there is {names}")
    if order == "coarse_to_fine":
        return plans
    return [Plan(plan.name, plan.levels, order) for plan in plans]


def llm_shape(model) -> ModelShape:
    """What the planner needs to know of a dense run's LLM and prompts."""
    from revisionllm.engine.dense import PROBES, shared_tokens

    config, llm = model.config, model.llm.config
    suffixes = [model.prompt_pieces(model.question(probe))[1] for probe in PROBES]
    typical = model.prompt_pieces(model.question("a man opens a door"))
    shared = len(shared_tokens(suffixes))
    return ModelShape(
        llm.hidden_size,
        llm.num_hidden_layers,
        llm.intermediate_size,
        frames_per_window=config.frames_per_window,
        prefix_text_tokens=len(typical[0]) + shared,
        question_tokens=len(typical[1]) - shared + 1,
        feature_dim=config.adapter.feature_dim,
    )


def run(args: argparse.Namespace) -> int:
    """Predict, merge, print the scores; returns 0."""
    script = ["-m", "revisionllm.cli"]
    merged = predict_all(args, DEFAULTS, make_searcher, script=script, argv=sys.argv[1:])
    if merged and args.shard is None:
        print_scores(merged)
    return 0
