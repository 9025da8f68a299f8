"""`revisionllm demo`: a film is rendered, sentences are grounded in it, and the answers are shown.

Writes film.mp4, predictions.jsonl, view.html and timeline.png, and prints a table with the truth
beside the answers. The film's seed belongs to the test split: no training has seen its cast, shots
or wording.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from revisionllm.files import MADE_BY, claim_output
from revisionllm.grounder import DEFAULT_CHECKPOINT, SEARCHES, long_runs_beside
from revisionllm.model.hub import path_argument

FILES = ("film.mp4", "predictions.jsonl", "view.html", "timeline.png")
MARK_SUFFIX = ".plan.txt"  # of the file beside the film that says which film it is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (out/demo)")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the film (60)")
    parser.add_argument("--present", type=int, default=8, help="sentences that happen (8)")
    parser.add_argument("--absent", type=int, default=2, help="sentences that never happen (2)")
    parser.add_argument("--seed", type=int, default=1000, help="which film (1000)")
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="recursive",
        help="recursive: through all levels (default) | planned: the cheapest way | exhaustive:"
        " every window",
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        default=DEFAULT_CHECKPOINT,
        help="run folder (the demo's)",
    )
    parser.add_argument(
        "--long",
        type=path_argument,
        nargs="*",
        metavar="RUN",
        help="runs of the long stage, the coarsest first (recursive: those beside the demo's run)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.errors import UserError
    from revisionllm.grounder import Grounder
    from revisionllm.records.predictions import write_predictions
    from revisionllm.viewer.page import write_view
    from revisionllm.viewer.timeline import write_timeline

    started = time.perf_counter()
    try:
        plan = plan_film(args.seed, args.minutes * 60, "test")
        sentences = film_sentences(plan, args.present, args.absent)
    except ValueError as error:
        raise UserError(f"cannot make the film: {error}; choose more --minutes") from error
    mark = (args.out / "film.mp4").with_suffix(MARK_SUFFIX)
    for name in FILES:
        claim_output(args.out / name, overwrite=mark.is_file())
    args.out.mkdir(parents=True, exist_ok=True)
    film_path = render(plan, args.out / "film.mp4")
    long_runs = args.long
    if long_runs is None:  # the demo's cheapest plan never has them: no need to load them
        long_runs = long_runs_beside(args.checkpoint) if args.search == "recursive" else ()
    grounder = Grounder.from_checkpoint(args.checkpoint, long_runs=long_runs)
    film = grounder.open_film(film_path, features_dir=args.out / "features")
    texts = [sentence.sentence for sentence in sentences]
    predictions = grounder.ground(film, texts, search=args.search, verbose=True)
    for prediction, sentence in zip(predictions, sentences, strict=True):
        prediction.qid = sentence.query_id
        prediction.gt = [] if sentence.span_s is None else [sentence.span_s]
    num_windows = count_windows(grounder, film.duration_s)
    print(table(predictions, num_windows))
    print(summary(predictions, num_windows))
    write_predictions(args.out / "predictions.jsonl", predictions)
    about = {"duration_s": film.duration_s, "predictions": predictions, "num_windows": num_windows}
    write_view(args.out / "view.html", video_path=film_path, title="ReVisionLLM demo", **about)
    write_timeline(args.out / "timeline.png", title="ReVisionLLM demo", **about)
    print(f"\nwrote {args.out}/: {' '.join(FILES)}")
    print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    return 0


def render(plan, path: Path) -> Path:
    """Render the film unless the same one is there: a file beside it remembers which it is."""
    from tqdm import tqdm

    from revisionllm.demo.world.plans import FILM_FPS, WORLD_VERSION
    from revisionllm.demo.world.render import write_film

    mark = path.with_suffix(MARK_SUFFIX)
    name = f"{plan.film_id} {plan.duration_s:g} s, world {WORLD_VERSION}, made_by: {MADE_BY}\n"
    if path.exists() and mark.exists() and mark.read_text() == name:
        return path
    num_frames = round(plan.duration_s * FILM_FPS)
    write_film(
        plan,
        path,
        progress=lambda frames: tqdm(frames, total=num_frames, desc="rendering the film"),
    )
    mark.write_text(name)
    return path


def count_windows(grounder, duration_s: float) -> int:
    """How many dense windows cover a film."""
    from revisionllm.grounding.windows import dense_windows

    config = grounder.config
    return len(dense_windows(duration_s, window_s=config.window_s, stride_s=config.stride_s))


def table(predictions, num_windows: int) -> str:
    """Sentence, found span or "not present", true span, IoU, score, seconds, windows visited."""
    from revisionllm.metrics.recall import span_iou
    from revisionllm.records.clock import clock

    def span_text(span) -> str:
        return f"{clock(span[0], 1)}-{clock(span[1], 1)}"

    rows = [("sentence", "found", "true", "IoU", "score", "seconds", "LLM windows")]
    for prediction in predictions:
        best = prediction.moments[0] if prediction.moments else None
        truth = prediction.gt[0] if prediction.gt else None
        span = (best.start_s, best.end_s) if best else None
        iou = f"{float(span_iou(span, truth)):.2f}" if span and truth else "-"
        rows.append(
            (
                prediction.query,
                span_text(span) if prediction.found and span else "not present",
                span_text(truth) if truth else "not present",
                iou if prediction.found else "-",
                f"{best.score:.2f}" if best else "-",
                f"{prediction.cost.seconds:.2f}",
                f"{prediction.cost.dense_windows} of {num_windows}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]
    )


def summary(predictions, num_windows: int) -> str:
    """What the table adds up to."""
    from revisionllm.metrics.recall import span_iou

    present = [p for p in predictions if p.gt]
    absent = [p for p in predictions if p.gt == []]
    hits = [
        p
        for p in present
        if p.found
        and p.moments
        and span_iou((p.moments[0].start_s, p.moments[0].end_s), p.gt[0]) >= 0.5
    ]
    visited = sum(p.cost.dense_windows for p in predictions) / len(predictions) / num_windows
    return (
        f"\n{len(hits)} of {len(present)} events found at IoU 0.5, "
        f"{sum(not p.found for p in absent)} of {len(absent)} absent ones recognised; "
        f"{visited:.0%} of the LLM windows visited"
    )
