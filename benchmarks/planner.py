"""What a planned search keeps of exhaustive search's answers, and what it costs, on demo films.

    python benchmarks/planner.py accuracy --films 10 --present 60 --absent 20 --keep 0.3 0.5 1.0
    python benchmarks/planner.py length --minutes 10 60 120 240 480
    python benchmarks/planner.py count                 # Vicuna-7B's work, no weights needed
    python benchmarks/planner.py seconds --write       # revisionllm/search/speeds.json

Films are rendered and encoded without a video file, once, into --cache. `accuracy` compares the two
searches query by query (95 % intervals resample whole films). LLM work is counted in tokens: a
window's prefix once for all queries that look at it, and each question. `length` repeats that for
films of several lengths, fits the power by which planned work grows, and draws a plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from revisionllm.search.searcher import Searcher, SearchOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from revisionllm.demo.evaluation.judged_films import judged_film
from revisionllm.errors import run_entry_point
from revisionllm.files import read_json, write_json
from revisionllm.metrics.recall import iou_table, paired_difference
from revisionllm.model.config import RunConfig
from revisionllm.options import Parser
from revisionllm.records.films import Film, Query
from revisionllm.search.cost import (
    SPEEDS_FILE,
    VICUNA_7B,
    ModelShape,
    choose_plan,
    count_plan,
    device_speeds,
)
from revisionllm.search.kept_answers import MemoEngine
from revisionllm.search.plans import DEFAULT_KEEP, search_plans

FIRST_SEED = 3000  # no film of training, validation, quickstart or README has it
QUERY_COUNTS = (1, 20, 200)
SECONDS_COUNTS = (1, 10, 40)
LONG_SIZES = (100, 33)


@dataclass
class Answered:
    """One film's predictions under one plan, in the order of its queries."""

    vid: str
    duration_s: float
    predictions: list

    def llm_tokens(self, shape: ModelShape, num_queries: int) -> float:
        """Tokens per query when the first `num_queries` queries are asked together."""
        asked = self.predictions[:num_queries]
        visits = [[window.index for window in prediction.windows] for prediction in asked]
        prefixes = len({index for indices in visits for index in indices})
        questions = sum(map(len, visits))
        tokens = prefixes * shape.prefix_tokens + questions * shape.question_tokens
        return tokens / len(asked)


def load(args: argparse.Namespace):
    """The dense run and its CLIP."""
    from revisionllm.model.clip import load_clip
    from revisionllm.model.loading import load_model

    model = load_model(args.checkpoint, device=args.device)
    return model, load_clip(model.config.clip, device=args.device)


def demo_film(number: int, minutes: float, args, clip) -> tuple[Film, list[Query]]:
    """A test film's features and queries; absent ones have `gt` []."""
    return judged_film(
        number,
        minutes,
        clip,
        args.cache,
        num_present=args.present,
        num_absent=args.absent,
        first_seed=FIRST_SEED,
    )


def search(engine, film: Film, queries, plan, calibration) -> Answered:
    """Ground the film's queries by one plan."""
    options = SearchOptions(calibration=calibration)
    searcher = Searcher({"dense": engine}, engine.model.config, options, lambda *_: plan)
    return Answered(film.vid, film.duration_s, searcher.ground(film, queries))


def all_searches(args, minutes: float, num_films: int) -> tuple[dict, ModelShape]:
    """Predictions of demo films: exhaustive (None), and planned by --keep.

    The model is asked once: a planned search sees the answers that the exhaustive one got.
    """
    from tqdm import tqdm

    from revisionllm.engine.dense import DenseEngine
    from revisionllm.grounding.calibration import from_dict
    from revisionllm.search.plans import llm_shape

    model, clip = load(args)
    stored = Path(args.checkpoint) / "calibration.json"
    calibration = from_dict(json.loads(stored.read_text())) if stored.is_file() else None
    found: dict[float | None, list[Answered]] = {keep: [] for keep in (None, *args.keep)}
    for number in tqdm(range(num_films), desc=f"{minutes:g} min films", file=sys.stderr):
        film, queries = demo_film(number, minutes, args, clip)
        engine = MemoEngine(DenseEngine(model, budget_mb=args.budget_mb), {})
        for keep, answered in found.items():
            plans = search_plans(model.config, film.duration_s, keep=keep)
            answered.append(search(engine, film, queries, plans[-1], calibration))
    return found, llm_shape(model)


def hits(answered: list[Answered], threshold: float = 0.5) -> tuple[np.ndarray, list[str]]:
    """Whether each present query's best moment is right, and its film."""
    pairs = [(a.vid, p) for a in answered for p in a.predictions if p.gt]
    spans = [np.array([[m.start_s, m.end_s] for m in p.moments]).reshape(-1, 2) for _, p in pairs]
    truth = [np.array(p.gt, dtype=np.float64) for _, p in pairs]
    table = iou_table(spans, truth, max_rank=1)
    return (table[:, 0] >= threshold).astype(float), [vid for vid, _ in pairs]


def absent_right(answered: list[Answered]) -> float:
    """Share of absent sentences that are not found."""
    return float(np.mean([not p.found for a in answered for p in a.predictions if p.gt == []]))


def run_accuracy(args: argparse.Namespace) -> dict:
    """Paired comparison of planned with exhaustive search."""
    found, shape = all_searches(args, args.film_minutes, args.films)
    exhaustive = found.pop(None)
    right, _ = hits(exhaustive)
    result = {
        "present": len(right),
        "absent": sum(p.gt == [] for a in exhaustive for p in a.predictions),
        "R1@0.5 exhaustive": float(right.mean()),
        "absent right exhaustive": absent_right(exhaustive) if args.absent else None,
        "planned": [compare(exhaustive, planned, keep, shape) for keep, planned in found.items()],
    }
    counts = f"{result['present']} present, {result['absent']} absent sentences"
    print(f"{counts}, films of {args.film_minutes:g} minutes")
    print("| keep | R1@0.5 | difference | of exhaustive's hits kept | absent right |", end="")
    print(" share of LLM tokens at " + " | at ".join(map(str, QUERY_COUNTS)) + " queries |")
    print("|" + "---|" * (5 + len(QUERY_COUNTS)))
    absent = result["absent right exhaustive"]
    cells = ["exhaustive", f"{100 * right.mean():.1f}", "", "", _percent(absent)]
    print("| " + " | ".join(cells + ["100 %"] * len(QUERY_COUNTS)) + " |")
    for row in result["planned"]:
        cells = [f"{row['keep']:g}", f"{100 * row['R1@0.5']:.1f}"]
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in row["difference"])))
        cells += [_percent(row["kept, net"]), _percent(row["absent right"])]
        cells += [_percent(row["tokens"][count]["share"]) for count in QUERY_COUNTS]
        print("| " + " | ".join(cells) + " |")
    return result


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def compare(exhaustive: list, planned: list, keep: float, shape: ModelShape) -> dict:
    """One planned search against the exhaustive one: hits kept, verdicts, tokens."""
    first, films = hits(planned)
    second, _ = hits(exhaustive)
    difference = paired_difference(first, second, groups=films)
    row = {
        "keep": keep,
        "R1@0.5": float(first.mean()),
        "difference": [difference.mean, difference.low, difference.high],
        "kept of exhaustive's hits": float((first * second).sum() / max(1.0, second.sum())),
        "kept, net": float(first.sum() / max(1.0, second.sum())),
        "absent right": absent_right(planned),
        "tokens": {},
    }
    for count in QUERY_COUNTS:
        whole, part = (
            float(np.mean([a.llm_tokens(shape, count) for a in kind]))
            for kind in (exhaustive, planned)
        )
        taken = min(whole, part)  # the planner takes the cheaper plan
        row["tokens"][count] = {"exhaustive": whole, "cosine > dense": part, "share": taken / whole}
    return row


def run_length(args: argparse.Namespace) -> dict:
    """Cost and recall at several lengths, and the power by which planned work grows."""
    rows = []
    for minutes in args.minutes:
        found, shape = all_searches(args, minutes, args.films)
        exhaustive, planned = found[None], found[args.keep[-1]]
        row = {"minutes": minutes}
        for name, answered in (("exhaustive", exhaustive), ("planned", planned)):
            row[f"R1@0.5 {name}"] = float(hits(answered)[0].mean())
            tokens = [
                Answered(a.vid, a.duration_s, [p]).llm_tokens(shape, 1)
                for a in answered
                for p in a.predictions
            ]
            row[f"tokens {name}"] = float(np.mean(tokens))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    minutes, tokens = (np.array([row[k] for row in rows]) for k in ("minutes", "tokens planned"))
    power = float(np.polyfit(np.log(minutes), np.log(tokens), 1)[0]) if len(rows) > 1 else None
    draw_lengths(rows, args.out / "length.png")
    return {"rows": rows, "power of planned work": power}


def draw_lengths(rows: list[dict], path: Path) -> None:
    """Work and recall against length, both searches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (work, recall) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    minutes = [row["minutes"] for row in rows]
    for name in ("exhaustive", "planned"):
        work.loglog(minutes, [row[f"tokens {name}"] for row in rows], "o-", label=name)
        recall.semilogx(minutes, [100 * row[f"R1@0.5 {name}"] for row in rows], "o-", label=name)
    work.set(xlabel="film, minutes", ylabel="LLM tokens per query")
    recall.set(xlabel="film, minutes", ylabel="R1@0.5, %", ylim=(0, 100))
    work.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def run_count(args: argparse.Namespace) -> dict:
    """Work of each plan at Vicuna-7B's shape, MAD's windows and a 2-hour film."""
    from revisionllm.search.plans import long_level

    config = RunConfig()
    long_levels = [long_level(RunConfig(num_segments=size)) for size in LONG_SIZES]
    duration_s = 7200.0
    plans = search_plans(config, duration_s, keep=args.keep[-1], long_levels=long_levels)
    common = {"duration_s": duration_s, "feature_fps": config.feature_fps}
    rows = []
    for queries in (1, 20, 640):
        for plan in plans:
            cost = count_plan(plan, VICUNA_7B, num_queries=queries, **common)
            rows.append(
                {"queries": queries, "plan": plan.name}
                | {part: flops / queries / 1e12 for part, flops in cost.flops.items()}
                | {"total": cost.total_flops / queries / 1e12}
            )
        choice = choose_plan(plans, VICUNA_7B, num_queries=queries, **common)
        print(f"{queries} queries: {choice.reason}", file=sys.stderr)
    print("| queries | plan | cosine | adapter | prefix | question | long | TFLOP per query |")
    print("|" + "---|" * 8)
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else value for value in row.values()]
        print("| " + " | ".join(map(str, cells)) + " |")
    return {"rows": rows}


def run_seconds(args: argparse.Namespace) -> dict:
    """Time of every plan with the demo's weights, and the seconds per TFLOP of a plan's parts.

    Prefixes and questions: every window asked by 1 and by 40 queries, two equations. Adapter and
    cosine: timed alone. Long questions: what is left of a search through the long levels.
    """
    from revisionllm.grounder import DEFAULT_LONG_RUNS, Grounder

    grounder = Grounder.from_checkpoint(
        args.checkpoint, long_runs=DEFAULT_LONG_RUNS, device=args.device
    )
    film, queries = judged_film(
        0,
        args.film_minutes,
        grounder.clip,
        args.cache,
        num_present=30,
        num_absent=10,
        first_seed=FIRST_SEED,
        all_features=True,
    )
    plans = {plan.name: plan for plan in grounder.plans(film.duration_s)}
    runs = {
        (name, count): _timed_search(grounder, plan, film, queries[:count])
        for name, plan in plans.items()
        for count in SECONDS_COUNTS
    }
    print("| plan | " + " | ".join(f"{count} queries" for count in SECONDS_COUNTS) + " |")
    print("|" + "---|" * (1 + len(SECONDS_COUNTS)))
    for name in plans:
        cells = [f"{runs[name, count][0]:.1f}" for count in SECONDS_COUNTS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    found = _speeds(grounder, plans, runs, film, queries)
    device = grounder.model.device.type
    print(f"{device}: {found} (before: {device_speeds(device)})")
    if args.write:
        write_json(SPEEDS_FILE, read_json(SPEEDS_FILE) | {device: found})
    seconds = [
        {"plan": name, "queries": count, "seconds": spent}
        for (name, count), (spent, *_) in runs.items()
    ]
    return {"device": device, "speeds": found, "rows": seconds}


def _timed_search(grounder, plan, film: Film, queries: list[Query]) -> tuple:
    """Seconds, counted work and predictions of one search, of which nothing is kept."""
    options = SearchOptions(calibration=grounder.calibration)
    searcher = Searcher(grounder.engines, grounder.model.config, options, lambda *_: plan)
    unkept = Film(film.vid, film.features, film.feature_fps, film.duration_s)
    started = time.perf_counter()
    answers = searcher.ground(unkept, queries)
    spent = time.perf_counter() - started
    print(f"{plan.name}, {len(queries)} queries: {spent:.2f} s", file=sys.stderr)
    cost = count_plan(
        plan,
        grounder._shape,
        duration_s=film.duration_s,
        num_queries=len(queries),
        feature_fps=film.feature_fps,
    )
    return spent, cost.flops, answers


def _speeds(grounder, plans: dict, runs: dict, film: Film, queries: list) -> dict[str, float]:
    """Seconds per TFLOP of each part, out of the runs of `run_seconds`."""
    import torch

    from revisionllm.grounding.scores import frame_cosines

    shape, found = grounder._shape, {}
    one, few, _ = runs["exhaustive", 1]
    whole, many, _ = runs["exhaustive", len(queries)]
    found["question"] = (whole - one) / (many["question"] - few["question"]) * 1e12
    found["prefix"] = (one - found["question"] * few["question"] / 1e12) / few["prefix"] * 1e12

    long_model = next(e for name, e in grounder.engines.items() if name != "dense").model
    config = long_model.config
    frames = torch.randn(1, 148, config.frames_per_window, config.adapter.feature_dim)
    words = torch.randn(1, 10, config.adapter.feature_dim)
    place = long_model.device
    frames, words = frames.to(place), words.to(place)
    with torch.inference_mode():  # to the CPU: only then is it done
        spent = _timed(lambda: long_model.embed_frames(frames, words, output="segment").cpu())
    found["adapter"] = spent / (148 * shape.adapter_flops) * 1e12
    features = np.stack([query.feature for query in queries])
    spent = _timed(lambda: frame_cosines(film.features, features))
    found["cosine"] = spent / (2 * film.features.size * len(queries)) * 1e12

    name = next(name for name in plans if name.startswith("long"))
    spent, flops, answers = runs[name, len(queries)]
    visits = sum(answer.cost.dense_windows for answer in answers)
    windows = {window.index for answer in answers for window in answer.windows}
    known = found["prefix"] * shape.llm_flops(len(windows) * shape.prefix_tokens)
    known += found["question"] * shape.llm_flops(visits * shape.question_tokens)
    known += found["adapter"] * flops["adapter"]
    found["long"] = max(0.0, spent * 1e12 - known) / flops["long"]
    return {part: float(f"{value:.3g}") for part, value in sorted(found.items())}


def _timed(work) -> float:
    """Seconds of one call, the best of five after a first one."""
    work()
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("what", choices=("accuracy", "length", "count", "seconds"), help="which comparison")
    add("--checkpoint", default="checkpoints/demo/dense", help="dense run (%(default)s)")
    add("--device", default="auto", help="(%(default)s)")
    add("--films", type=int, default=10, help="per length (%(default)s)")
    add("--film_minutes", type=float, default=60.0, help="of `accuracy` (%(default)s)")
    add("--minutes", type=float, nargs="+", default=[10, 60, 120, 240, 480], help="of `length`")
    add("--present", type=int, default=60, help="sentences per film that happen (%(default)s)")
    add("--absent", type=int, default=20, help="sentences that never happen (%(default)s)")
    add(
        "--keep",
        type=float,
        nargs="+",
        default=[DEFAULT_KEEP],
        help="of the cosine level; the last one where one is wanted (%(default)s)",
    )
    add("--write", action="store_true", help="`seconds`: keep them for the planner")
    add("--budget_mb", type=int, default=None, help="of the engine; unset: by the device")
    add("--cache", type=Path, default=Path("out/planner_features"), help="films' features")
    add("--out", type=Path, default=Path("out/planner"), help="folder for results")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        kinds = {
            "accuracy": run_accuracy,
            "length": run_length,
            "count": run_count,
            "seconds": run_seconds,
        }
        result = kinds[args.what](args)
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{args.what}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if args.what == "length":
            print(json.dumps(result, indent=1))
        return 0

    return run_entry_point(work, Path(__file__).name)


if __name__ == "__main__":
    raise SystemExit(main())
