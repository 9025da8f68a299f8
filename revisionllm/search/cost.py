"""Counts the work of a search plan from model shapes, and picks the plan for the queries at hand.

Work is not time: a part's FLOP take as long as its shapes let them. `speeds.json` says how long,
for each class of device that was measured (`python benchmarks/planner.py seconds`); plans are
compared in these seconds, and in FLOP where there are none. Nothing is measured while a search
runs, so that the same search always takes the same plan.

A matrix product of m x k by k x n counts 2*m*k*n. Attention scores and the language model's head
are left out: at these lengths they are a few per cent. A dense prefix (all that stands before the
query's words) is computed once per window and film; each query then pays for its own words. The
segment adapter reads the query, so it is paid per segment and query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from revisionllm.files import read_json
from revisionllm.grounding.levels import Level

SPEEDS_FILE = Path(__file__).with_name("speeds.json")
NAMED_RANGES = 2.0  # ranges that a query's long answers are expected to name in a film


@dataclass(frozen=True)
class ModelShape:
    """Widths and lengths that the counts need.

    Attributes:
        hidden, layers, intermediate: of the LLaMA.
        frames_per_window: visual tokens of a dense window, and frames that the adapter reads.
        prefix_text_tokens: prompt tokens in front of the query's words.
        question_tokens: tokens of one query: its words, and what closes the prompt.
        feature_dim, adapter_ffn, adapter_layers: of the frame features and the segment adapter.
        adapter_frames: frames that the segment adapter reads of a segment; None: as many.
    """

    hidden: int
    layers: int
    intermediate: int
    frames_per_window: int = 250
    prefix_text_tokens: int = 33
    question_tokens: int = 20
    feature_dim: int = 768
    adapter_ffn: int = 2048
    adapter_layers: int = 4
    adapter_frames: int | None = None

    @property
    def llm_params(self) -> int:
        """LLM parameters outside the embeddings: four projections and a gated MLP a layer."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def prefix_tokens(self) -> int:
        """Tokens of a dense prefix."""
        return self.frames_per_window + self.prefix_text_tokens

    def llm_flops(self, tokens: float) -> float:
        """FLOP of a forward over so many tokens."""
        return 2.0 * self.llm_params * tokens

    @property
    def adapter_flops(self) -> float:
        """FLOP of the segment adapter for one segment and query."""
        layer = 4 * self.feature_dim**2 + 2 * self.feature_dim * self.adapter_ffn
        frames = self.frames_per_window if self.adapter_frames is None else self.adapter_frames
        return 2.0 * self.adapter_layers * layer * frames

    def long_tokens(self, num_questions: float, num_positions: float) -> float:
        """LLM tokens of questions that show so many segment positions in all."""
        return num_positions + num_questions * (self.prefix_text_tokens + self.question_tokens)


VICUNA_7B = ModelShape(hidden=4096, layers=32, intermediate=11008)


@dataclass(frozen=True)
class Plan:
    """Levels and order of a search, under a name."""

    name: str
    levels: tuple[Level, ...]
    order: str = "coarse_to_fine"


@dataclass
class PlanCost:
    """Expected work of a plan for all its queries on one film; `flops` by part."""

    dense_prefixes: float = 0.0
    dense_questions: float = 0.0
    segments: float = 0.0
    long_questions: float = 0.0
    llm_tokens: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)

    @property
    def total_flops(self) -> float:
        """FLOP of all parts."""
        return sum(self.flops.values())

    def seconds(self, speeds: Mapping[str, float]) -> float:
        """Expected time by a table of `device_speeds`."""
        return sum(speeds[part] * flops / 1e12 for part, flops in self.flops.items())


@lru_cache
def device_speeds(device_type: str) -> dict[str, float] | None:
    """Seconds per TFLOP of each part of a plan; None for a device that was not measured.

    Args:
        device_type: cpu, cuda or mps, as `torch.device.type`.
    """
    return read_json(SPEEDS_FILE, kind=dict).get(device_type)


@dataclass(frozen=True)
class PlanChoice:
    """The plan taken, what it is expected to cost, and why it was taken, in one sentence."""

    plan: Plan
    cost: PlanCost
    reason: str


def count_plan(
    plan: Plan,
    shape: ModelShape,
    *,
    duration_s: float,
    num_queries: int,
    feature_fps: float,
    named_ranges: float = NAMED_RANGES,
) -> PlanCost:
    """Expected work of a plan.

    Each level is taken to keep its budget of scattered ranges (cosine) or `named_ranges` (LLM
    levels), so that planned work is rather over- than underestimated; exhaustive counts are exact.
    Queries look at independent places of the film: a dense prefix is paid once however many of
    them want it. Segment levels on one grid share their encodings.
    """
    cost = PlanCost()
    parts = dict.fromkeys(("cosine", "adapter", "prefix", "question", "long"), 0.0)
    encoded: dict[tuple[float, float], float] = {}  # grid -> segments of one query
    ranges, length_s = 1.0, duration_s
    for level in plan.levels:
        count = len(level.grid(duration_s))
        visits = _visits(level, count, ranges, length_s, exhaustive=plan.order != "coarse_to_fine")
        if level.kind == "cosine":
            features = duration_s * feature_fps
            parts["cosine"] = 2.0 * shape.feature_dim * features * num_queries
            named = float(level.budget(round(visits)))
        elif level.kind == "segments":
            grid = (level.window_s, level.stride_s)
            encoded[grid] = max(encoded.get(grid, 0.0), visits)
            asked = sum(math.ceil(visits / max(1, level.group_size // z)) for z in level.zooms)
            cost.long_questions += asked * num_queries
            tokens = shape.long_tokens(asked, visits * sum(level.zooms)) * num_queries
            cost.llm_tokens += tokens
            parts["long"] += shape.llm_flops(tokens)
            named = float(level.budget(round(visits)))
            if level.min_score is None:  # what it does not name does not survive
                named = min(named_ranges, named)
        else:
            prefixes = _distinct(count, visits, num_queries)
            cost.dense_prefixes += prefixes
            cost.dense_questions += visits * num_queries
            parts["prefix"] += shape.llm_flops(prefixes * shape.prefix_tokens)
            parts["question"] += shape.llm_flops(visits * num_queries * shape.question_tokens)
            cost.llm_tokens += prefixes * shape.prefix_tokens
            cost.llm_tokens += visits * num_queries * shape.question_tokens
            named = named_ranges
        shared_s = level.stride_s if level.narrow else level.window_s
        ranges, length_s = named, shared_s + 2 * level.margin
    cost.segments = sum(encoded.values()) * num_queries
    parts["adapter"] = cost.segments * shape.adapter_flops
    cost.flops = parts
    return cost


def candidate_plans(
    dense: Level,
    *,
    cosine: Level | None = None,
    long_levels: Sequence[Level] = (),
    before_long: Level | None = None,
) -> list[Plan]:
    """The plans that a run's levels allow, exhaustive dense first.

    Args:
        before_long: the cosine level where long levels follow; None: `cosine`.
    """
    plans = [Plan("exhaustive", (dense,), "exhaustive")]
    both = [before_long or cosine, *long_levels] if long_levels else []
    for coarse in ([cosine], list(long_levels), both):
        levels = tuple(level for level in coarse if level is not None)
        plan = Plan(" > ".join(lv.name for lv in (*levels, dense)), (*levels, dense))
        if levels and plan not in plans:
            plans.append(plan)
    return plans


def choose_plan(
    plans: Sequence[Plan],
    shape: ModelShape,
    *,
    duration_s: float,
    num_queries: int,
    feature_fps: float,
    named_ranges: float = NAMED_RANGES,
    speeds: Mapping[str, float] | None = None,
) -> PlanChoice:
    """The plan that takes least; the earlier one on a tie.

    Args:
        speeds: of `device_speeds`; None: plans are compared by their counted work.

    Raises:
        ValueError: there is no plan.
    """
    if not plans:
        raise ValueError("no plan to choose from")
    counted = [
        count_plan(
            plan,
            shape,
            duration_s=duration_s,
            num_queries=num_queries,
            feature_fps=feature_fps,
            named_ranges=named_ranges,
        )
        for plan in plans
    ]
    if speeds is None:
        totals, unit = [cost.total_flops / 1e12 for cost in counted], "TFLOP"
    else:
        totals, unit = [cost.seconds(speeds) for cost in counted], "s"
    best = min(range(len(plans)), key=totals.__getitem__)
    dearest = max(range(len(plans)), key=totals.__getitem__)
    queries = "1 query" if num_queries == 1 else f"{num_queries} queries"
    reason = f"{plans[best].name}: {totals[best]:.3g} {unit} for {queries}"
    reason += f" on {duration_s / 60:.3g} minutes"
    if dearest != best:
        share = 100 * totals[best] / totals[dearest]
        reason += f", {share:.3g} % of {plans[dearest].name} ({totals[dearest]:.3g})"
    return PlanChoice(plans[best], counted[best], reason)


def _visits(level: Level, count: int, ranges: float, length_s: float, *, exhaustive: bool) -> float:
    """Expected windows of a level that touch `ranges` scattered ranges of `length_s` seconds."""
    if exhaustive:
        return float(count)
    touching = min(float(count), ranges * (length_s + level.window_s) / level.stride_s)
    return max(touching, min(count, level.group_size)) if level.fill_groups else touching


def _distinct(count: int, visits: float, num_queries: int) -> float:
    """Expected distinct windows when each query visits `visits` of `count`, independently."""
    return count * (1.0 - (1.0 - visits / count) ** num_queries)
