"""Grounder, per-frame CLIP retrieval and chance on demo films that no training has seen.

    python revisionllm/demo/benchmark.py --films 6 --minutes 60 --present 30 --absent 10

Films are real mp4 files, rendered, decoded and encoded like any other video. Validation films tune
the baseline's merging and both thresholds; the table is about test films alone. Intervals are 95 %
bootstrap intervals that resample whole films.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.errors import run_entry_point
from revisionllm.eval.calibrate import fit as fit_calibration
from revisionllm.eval.calibrate import write_calibration
from revisionllm.files import MADE_BY, claim_output, write_json
from revisionllm.grounder import DEFAULT_CHECKPOINT, DEFAULT_KEEP, long_runs_beside
from revisionllm.model.hub import path_argument
from revisionllm.options import Parser

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
VAL_SEED, TEST_SEED = 500, 2000  # no training or quickstart film has these


@dataclass
class Asked:
    """All sentences of a split with their truth, and what every method answered.

    spans: method -> list of [n, 2] seconds, best first; found: method -> list of bool.
    """

    films: list[str] = field(default_factory=list)
    truth: list[tuple[float, float] | None] = field(default_factory=list)
    cosines: list[np.ndarray] = field(default_factory=list)
    duration_s: float = 0.0
    fps: float = 5.0
    predictions: dict[str, list] = field(default_factory=dict)


def ask_split(grounder, args: argparse.Namespace, split: str, seeds: range, searches) -> Asked:
    """Render a split's films, ground all sentences, and keep the frame cosines."""
    from revisionllm.demo.cli import render
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.grounding.scores import frame_cosines

    asked = Asked(predictions={search: [] for search in searches}, duration_s=args.minutes * 60)
    for seed in seeds:
        plan = plan_film(seed, args.minutes * 60, split)
        sentences = film_sentences(plan, args.present, args.absent)
        path = render(plan, args.out / f"{plan.film_id}.mp4")
        film = grounder.open_film(path, features_dir=args.out / "features")
        texts = [sentence.sentence for sentence in sentences]
        features = np.asarray(film.features, np.float32)
        asked.cosines += list(frame_cosines(features, grounder.clip.encode_texts(texts)[1].numpy()))
        asked.fps = film.feature_fps
        for search in searches:
            predictions = grounder.ground(film, texts, search=search, keep=args.keep)
            for prediction, sentence in zip(predictions, sentences, strict=True):
                prediction.qid = sentence.query_id
                prediction.gt = [] if sentence.span_s is None else [sentence.span_s]
            asked.predictions[search] += predictions
        asked.films += [plan.film_id] * len(sentences)
        asked.truth += [sentence.span_s for sentence in sentences]
        print(f"{plan.film_id}: {len(sentences)} sentences", file=sys.stderr)
    return asked


def row(name: str, films, truth, spans, found) -> dict:
    """One line of the table: recalls and mIoU on present sentences, verdicts on both kinds."""
    from revisionllm.metrics.recall import bootstrap_interval, iou_table

    present = [i for i, span in enumerate(truth) if span is not None]
    absent = [i for i, span in enumerate(truth) if span is None]
    groups = [films[i] for i in present]
    ious = iou_table(
        [spans[i] for i in present], [np.array([truth[i]]) for i in present], max_rank=5
    )
    best, top5 = np.maximum(ious[:, 0], 0), ious.max(axis=1)
    values = {f"R1@{t}": best >= t for t in THRESHOLDS}
    values |= {"R5@0.5": top5 >= 0.5, "mIoU": best}
    line: dict = {"method": name}
    for key, value in values.items():
        interval = bootstrap_interval(np.asarray(value, float), groups=groups)
        line[key] = [100 * interval.mean, 100 * interval.low, 100 * interval.high]
    line["absent_right"] = 100 * float(np.mean([not found[i] for i in absent])) if absent else None
    line["present_found"] = 100 * float(np.mean([found[i] for i in present]))
    return line


def moment_spans(predictions) -> list[np.ndarray]:
    """Ranked spans [n, 2] of each prediction."""
    return [np.array([[m.start_s, m.end_s] for m in p.moments]).reshape(-1, 2) for p in predictions]


def clip_row(val: Asked, test: Asked) -> tuple[dict, dict]:
    """The CLIP baseline's line and what validation chose for it."""
    from revisionllm.demo.evaluation.baselines import best_threshold, retrieve, tune

    present = [i for i, span in enumerate(val.truth) if span is not None]
    merging = tune([val.cosines[i] for i in present], [val.truth[i] for i in present], val.fps)
    peaks = np.array([retrieve(c, val.fps, merging, 1)[0, 2] for c in val.cosines])
    is_present = np.array([span is not None for span in val.truth])
    threshold = best_threshold(peaks[is_present], peaks[~is_present])
    spans = [retrieve(c, test.fps, merging) for c in test.cosines]
    found = [bool(s[0, 2] >= threshold) for s in spans]
    line = row("CLIP frames", test.films, test.truth, [s[:, :2] for s in spans], found)
    return line, {"merging": vars(merging), "threshold": threshold}


def chance_row(val: Asked, test: Asked) -> dict:
    """A span of the median length anywhere; a coin for presence."""
    from revisionllm.demo.evaluation.baselines import chance_span

    rng = np.random.default_rng(0)
    length_s = float(np.median([span[1] - span[0] for span in val.truth if span]))
    spans = [
        np.array([chance_span(test.duration_s, length_s, rng) for _ in range(5)])
        for _ in test.truth
    ]
    found = list(rng.random(len(test.truth)) < 0.5)
    return row("chance", test.films, test.truth, spans, found)


COLUMNS = {
    "absent_right": ("absent right", "{:.0f} %"),
    "present_found": ("present found", "{:.0f} %"),
    "ece": ("ECE", "{:.3f}"),
    "absent_precision": ("'not present' precision", "{:.0f} %"),
    "absent_recall": ("recall", "{:.0f} %"),
    "share": ("share", "{:.0f} %"),
    "asked": ("asked", "{:,}"),
    "windows": ("LLM windows", "{}"),
    "llm_tokens": ("LLM tokens per query", "{:,.0f}"),
}


def markdown(lines: list[dict]) -> str:
    """The table as Markdown; intervals in brackets, a column for every key of the lines."""
    recalls = [key for key in lines[0] if isinstance(lines[0][key], list)]
    others = [key for key in COLUMNS if any(line.get(key) is not None for line in lines)]
    head = ["method", *recalls, *(COLUMNS[key][0] for key in others)]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        cells = [line["method"]]
        cells += ["{:.1f} [{:.1f}, {:.1f}]".format(*line[key]) for key in recalls]
        for key in others:
            value = line.get(key)
            cells.append("-" if value is None else COLUMNS[key][1].format(value))
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def benchmark(args: argparse.Namespace) -> dict:
    """Run everything and return what is written to <out>/benchmark.json."""
    from revisionllm.demo.cli import count_windows
    from revisionllm.grounder import Grounder

    args.out.mkdir(parents=True, exist_ok=True)
    long_runs = args.long
    if long_runs is None:
        long_runs = long_runs_beside(args.checkpoint)
    grounder = Grounder.from_checkpoint(args.checkpoint, long_runs=long_runs)
    if args.fit_calibration:
        grounder.calibration = None
    val = ask_split(
        grounder, args, "val", range(VAL_SEED, VAL_SEED + args.val_films), ["exhaustive"]
    )
    if args.fit_calibration:
        grounder.calibration = fit_calibration(val.predictions["exhaustive"])
        path = write_calibration(grounder.calibration, args.checkpoint)
        print(f"wrote {path}", file=sys.stderr)
    searches = ["planned", *(["recursive"] if long_runs else []), "exhaustive"]
    test = ask_split(grounder, args, "test", range(TEST_SEED, TEST_SEED + args.films), searches)
    all_windows = count_windows(grounder, args.minutes * 60)
    lines = []
    for search in searches:
        predictions = test.predictions[search]
        found = [p.found for p in predictions]
        line = row(f"grounder, {search}", test.films, test.truth, moment_spans(predictions), found)
        visited = np.mean([p.cost.dense_windows for p in predictions]) / all_windows
        line["windows"] = f"{visited:.0%}"
        lines.append(line)
    clip_line, chosen = clip_row(val, test)
    lines += [clip_line, chance_row(val, test)]
    return {"rows": lines, "clip_baseline": chosen, "markdown": markdown(lines), "test": test}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/benchmark"), help="films, features, results")
    add("--checkpoint", type=path_argument, default=DEFAULT_CHECKPOINT, help="run folder to judge")
    add(
        "--long",
        type=path_argument,
        nargs="*",
        metavar="RUN",
        help="long runs for a recursive search, coarse first (the demo's run: those beside it)",
    )
    add("--films", type=int, default=6, help="test films")
    add("--val_films", type=int, default=6, help="validation films")
    add("--minutes", type=float, default=60.0, help="length of a film")
    add("--present", type=int, default=30, help="sentences per film that happen")
    add("--absent", type=int, default=10, help="sentences per film that never happen")
    add(
        "--keep",
        type=float,
        default=DEFAULT_KEEP,
        help="segments that the cosine level keeps, times the root of their number",
    )
    add(
        "--fit_calibration",
        action="store_true",
        help="fit calibration.json of the checkpoint on the validation films first",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        from revisionllm.records.predictions import write_predictions

        claim_output(args.out / "benchmark.json")
        result = benchmark(args)
        test = result.pop("test")
        for search, predictions in test.predictions.items():
            write_predictions(args.out / f"predictions_{search}.jsonl", predictions)
        write_json(args.out / "benchmark.json", {"made_by": MADE_BY} | result)
        print(result["markdown"])
        print(f"\nCLIP baseline chosen on validation films: {result['clip_baseline']}")
        return 0

    return run_entry_point(work, "benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
