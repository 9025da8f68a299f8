"""The levels and plans of a search, from a run's config and a film's length.

The cosine level keeps a number of segments that grows with the square root of the film's length:
in a longer film more segments look like the query by accident, but not in proportion. So the LLM's
work per query grows more slowly than the film.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from revisionllm.grounding.levels import Level
from revisionllm.grounding.windows import film_window_s
from revisionllm.records.films import Film
from revisionllm.search.cost import (
    ModelShape,
    Plan,
    candidate_plans,
    choose_plan,
    device_speeds,
)

SEGMENTS_PER_WINDOW = 4  # the cosine level cuts a window into this many segments
BUDGET_SEGMENT_S = 10.0  # of the cosine level under a budget of windows, which may be long
DEFAULT_KEEP = 1.5  # segments kept per square root of their number
LONG_KEEP = 2.0  # ranges that the finest long level keeps per square root of its segments' number
COARSER_KEEPS = 2.0  # times as many ranges as the next finer level, where long levels keep ranges
COSINE_WEIGHT = 80.0  # nats for a cosine of 1, of `Level.cosine_weight`; CLIP itself takes 100


@dataclass
class Planner:
    """Chooses the plan for a film and a number of queries.

    Attributes:
        plans: `plans(duration_s)` gives what to choose from; one: no choice.
        shape: of the dense run's LLM, for counting work; None: the first plan is taken.
        device: whose speeds count, as `torch.device.type`.
        quiet: do not say on stderr which plan was taken, and why.
    """

    plans: Callable[[float], Sequence[Plan]]
    shape: ModelShape | None = None
    device: str = "cpu"
    quiet: bool = False
    _said: set[str] = field(default_factory=set)

    def kinds(self) -> set[str]:
        """The kinds of the levels of all plans."""
        return {level.kind for plan in self.plans(3600.0) for level in plan.levels}

    def __call__(self, film: Film, num_queries: int) -> Plan:
        """The plan that takes least."""
        plans = self.plans(film.duration_s)
        if self.shape is None:
            return plans[0]
        choice = choose_plan(
            plans,
            self.shape,
            duration_s=film.duration_s,
            num_queries=num_queries,
            feature_fps=film.feature_fps,
            speeds=device_speeds(self.device),
        )
        if choice.plan.name not in self._said and not self.quiet:
            self._said.add(choice.plan.name)
            print(f"plan for {film.vid}: {choice.reason}", file=sys.stderr)
        return choice.plan


def every_window(config, stride_s: float | None = None) -> Planner:
    """The plan that reads every dense window, whatever the film.

    Args:
        stride_s: from one window's start to the next; None: the run's own.
    """
    return Planner(
        lambda duration_s: [
            Plan("exhaustive", (dense_level(config, duration_s, stride_s),), "exhaustive")
        ]
    )


def dense_level(config, duration_s: float = math.inf, stride_s: float | None = None) -> Level:
    """The run's dense windows, as it was trained on films of this length."""
    window_s = film_window_s(
        config.window_s, duration_s, double_rate_short=config.double_rate_short
    )
    stride_s = (stride_s or config.stride_s) * window_s / config.window_s
    return Level("dense", "dense", window_s, stride_s)


def cosine_level(config, duration_s: float, keep: float = DEFAULT_KEEP) -> Level:
    """Text-frame cosine over short segments.

    Args:
        keep: of n segments, about `keep * sqrt(n)` survive.
    """
    segment_s = config.window_s / SEGMENTS_PER_WINDOW
    stride_s = segment_s / 2
    top = _survivors(keep, duration_s, stride_s)
    return Level("cosine", "cosine", segment_s, stride_s, keep_top=top, margin_s=0.0)


def budget_plan(
    config, budget: int | None, duration_s: float = 0.0, long_levels: Sequence[Level] = ()
) -> Plan:
    """Text-frame cosine of short segments, then long levels, then so many dense windows per
    sentence; None: every window.

    Args:
        config: names the windows, in `window_s` and `stride_s`.
        duration_s: length of the film, for long levels.
        long_levels: coarse to fine.
    """
    dense = Level("dense", "dense", config.window_s, config.stride_s, most_windows=budget)
    if budget is None:
        return Plan("exhaustive", (dense,), "exhaustive")
    segment_s = min(BUDGET_SEGMENT_S, config.window_s)
    # neighbouring segments fall into one window
    keep = budget * max(1, math.ceil(config.window_s / segment_s))
    cosine = Level("cosine", "cosine", segment_s, segment_s / 2, keep_top=keep, margin_s=0.0)
    if not long_levels:
        return Plan("budget", (cosine, dense), "coarse_to_fine")
    *coarser, finest = bounded(long_levels, duration_s, LONG_KEEP, COSINE_WEIGHT)
    finest = replace(finest, keep_top=max(keep, finest.keep_top))
    wide = replace(cosine, keep_top=round(COARSER_KEEPS * finest.keep_top))
    return Plan("budget, long", (wide, *coarser, finest, dense), "coarse_to_fine")


def _survivors(keep: float, duration_s: float, stride_s: float) -> int:
    """About `keep` times the root of how many segments start in a film; at least one."""
    return max(1, math.ceil(keep * math.sqrt(max(1.0, duration_s / stride_s))))


def long_level(config, zooms: Sequence[int] = (1,)) -> Level:
    """A long run's segments."""
    return Level(
        f"long_{config.num_segments}",
        "segments",
        config.window_s,
        config.segment_stride_s,
        group_size=config.num_segments,
        zooms=tuple(zooms),
        fill_groups=True,
    )


def long_listing(config) -> dict:
    """Options of the engine of `bounded` levels: it lists ranges of answers "Not Present", too."""
    return {"explore": 0.01, "num_candidates": max(1, config.num_segments // 4)}


def bounded(
    levels: Sequence[Level], duration_s: float, keep: float, cosine_weight: float = 0.0
) -> list[Level]:
    """Long levels that keep their best ranges, named or not; for engines that list candidates.

    Args:
        levels: of `long_level`, coarse to fine.
        duration_s: length of the film.
        keep: of n segments of the finest, about `keep * sqrt(n)` ranges survive, as of
            `cosine_level`; of each coarser level `COARSER_KEEPS` times as many.
        cosine_weight: weight of text-frame cosine in the ranking; see `Level`.
    """
    found = []
    for level in reversed(levels):
        top = _survivors(keep, duration_s, level.stride_s)
        limits = {"keep_top": top, "min_score": 0.0, "cosine_weight": cosine_weight}
        margin_s = 0.0 if cosine_weight else None  # as of the cosine level
        found.append(replace(level, **limits, margin_s=margin_s, narrow=True))
        keep *= COARSER_KEEPS
    return found[::-1]


def search_plans(
    config,
    duration_s: float,
    *,
    keep: float | None = DEFAULT_KEEP,
    long_levels: Sequence[Level] = (),
    long_keep: float | None = None,
    cosine_weight: float = 0.0,
    order: str = "coarse_to_fine",
) -> list[Plan]:
    """The plans for a film: exhaustive, cosine first, long levels first, both.

    Args:
        config: of the dense run.
        keep: of `cosine_level`, before dense windows; None: without that level.
        long_levels: coarse to fine.
        long_keep: of `bounded`, and then the cosine level keeps `COARSER_KEEPS` times as many
            before them; None: what they name survives.
        cosine_weight: of `bounded`.
        order: of the plans with several levels.
    """
    cosine = wide = None
    if keep is not None:
        cosine = wide = cosine_level(config, duration_s, keep)
    if long_keep is not None:
        long_levels = bounded(long_levels, duration_s, long_keep, cosine_weight)
        wide = cosine and cosine_level(config, duration_s, keep * COARSER_KEEPS)
    plans = candidate_plans(
        dense_level(config, duration_s), cosine=cosine, long_levels=long_levels, before_long=wide
    )
    return [
        plan if len(plan.levels) == 1 else Plan(plan.name, plan.levels, order) for plan in plans
    ]


def llm_shape(model, long_configs: Sequence = ()) -> ModelShape:
    """What the planner needs to know of a dense run's LLM and prompts, and the long runs' adapter.

    Args:
        long_configs: configs of the long runs; they read segments through one adapter, or through
            alike ones: the first counts.
    """
    from revisionllm.engine.dense import PROBES, shared_tokens

    config, llm = model.config, model.llm.config
    suffixes = [model.prompt_pieces(model.question(probe))[1] for probe in PROBES]
    before, typical = model.prompt_pieces(model.question("a man opens a door"))
    shared = len(shared_tokens(suffixes))
    return ModelShape(
        llm.hidden_size,
        llm.num_hidden_layers,
        llm.intermediate_size,
        frames_per_window=config.frames_per_window,
        prefix_text_tokens=len(before) + shared,
        question_tokens=len(typical) - shared + 1,
        feature_dim=config.adapter.feature_dim,
        **_adapter_shape(long_configs[0] if long_configs else None),
    )


def _adapter_shape(config) -> dict[str, int]:
    """Of a long run's segment adapter; {} without one."""
    if config is None:
        return {}
    options = config.adapter.options
    layers = options.get("num_text_layers", 2) + options.get("num_layers", 2)
    return {
        "adapter_frames": config.frames_per_window,
        "adapter_ffn": options.get("ffn_dim", 2048),
        "adapter_layers": layers,
    }
