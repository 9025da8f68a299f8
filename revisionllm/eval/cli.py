"""`revisionllm eval score`, `report`, `run`, `calibrate` and `videos`.

revisionllm eval score predictions.jsonl
revisionllm eval score hl_val_submission.jsonl highlight_val_release.jsonl --output out/score
revisionllm eval report checkpoints/a checkpoints/b --output out/report
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, claim_outputs, write_bytes, write_json, write_text
from revisionllm.formats.log_windows import add_log_arguments, log_arithmetic

if TYPE_CHECKING:
    from revisionllm.metrics.scoring import Scored
    from revisionllm.records.jsonl import Problem

# sub-commands in modules of their own, with add_arguments(parser) and run(args) -> exit code
MODULES = {
    "run": ("revisionllm.eval.run", "search films for all queries of an annotation file"),
    "calibrate": ("revisionllm.eval.calibrate", "fit confidence on validation predictions"),
    "videos": ("revisionllm.eval.videos", "which video: text-to-video retrieval (MSR-VTT)"),
}
# those of metrics/conventions.py, which costs NumPy to read; ours: the older name of field
CONVENTION_NAMES = (
    *("field", "ours", "released", "mad", "nlq", "qvhighlights"),
    *("vue-tr", "unitime", "vidchapters", "timelens"),
)
SCORE_FILES = ("report.json", "metrics.csv", "recall.png", "reliability.png")
REPORT_FILES = ("report.html", "report.md", "recall.png", "reliability.png")
STAGES = ("search", "dense")  # where a run folder keeps predictions to score, in this order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb and its two sub-commands."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    score = commands.add_parser("score", help="score predictions in any supported format")
    score.add_argument("predictions", metavar="PRED", help="predictions file, or a run folder")
    score.add_argument(
        "ground_truth", metavar="GT", nargs="?", help="annotations; unset: those in the predictions"
    )
    score.add_argument("--pred-format", help="format of PRED; detected if unset")
    score.add_argument("--json", action="store_true", help="print the whole report as JSON")
    score.add_argument("--output", help="folder for report.json, metrics.csv and the plots")
    _common(score)
    report = commands.add_parser("report", help="compare runs: one HTML and one Markdown page")
    report.add_argument("runs", metavar="RUN", nargs="+", help="predictions file, or a run folder")
    report.add_argument(
        "--gt", dest="ground_truth", help="annotations; unset: as in the predictions"
    )
    report.add_argument("--names", nargs="+", help="a name for each run; unset: from its path")
    report.add_argument("--output", default="out/report", help="folder to write (%(default)s)")
    report.add_argument("--queries", nargs="+", default=[], help="query ids to draw as figures")
    report.add_argument("--films", help="a film, or a folder of <video id>.mp4, for their frames")
    report.add_argument("--examples", type=int, default=5, help="best and worst queries per run")
    _common(report)
    for name, (module, help_text) in MODULES.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        importlib.import_module(module).add_arguments(command)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gt-format", help="format of the annotations; detected if unset")
    parser.add_argument(
        "--convention",
        choices=CONVENTION_NAMES,
        default="field",
        help="count as this peer's own evaluation does; docs/evaluation.md has the differences"
        " (%(default)s)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out true records that cannot be used"
    )
    add_log_arguments(parser)
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        help="bootstrap resamples; 0: no intervals (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (%(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that this project did not make"
    )


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; returns its exit code."""
    if args.command in MODULES:
        return importlib.import_module(MODULES[args.command][0]).run(args)
    return run_score(args) if args.command == "score" else run_report(args)


def load(path: str, args: argparse.Namespace, pred_format: str | None = None) -> Scored:
    """Read one run's predictions (and the ground truth) and score them."""
    from revisionllm.formats.registry import read_queries, read_rankings
    from revisionllm.metrics.conventions import CONVENTIONS
    from revisionllm.metrics.scoring import Accounting, queries_from, score

    accounting = Accounting()
    queries = []
    if args.ground_truth:
        queries, accounting.problems = read_queries(args.ground_truth, args.gt_format)
        if accounting.problems and not args.skip_bad:
            raise UserError(
                f"{accounting.problems[0]} ({len(accounting.problems)} such records in the ground"
                " truth); mend them, or leave those queries out with --skip-bad"
            )
    rankings = []
    truth = [args.ground_truth] if args.ground_truth else None
    files, missing_shards = find_predictions(path, truth)
    accounting.problems += missing_shards
    for file in files:
        found, problems = read_rankings(file, pred_format, queries, log_arithmetic(args))
        rankings += found
        accounting.problems += problems
    if not args.ground_truth:
        queries = queries_from(rankings)
        unknown = len({ranking.qid for ranking in rankings}) - len(queries)
        if unknown:
            accounting.notes.append(f"{unknown} queries without ground truth are not scored")
    return score(
        queries,
        rankings,
        accounting=accounting,
        num_resamples=args.resamples,
        seed=args.seed,
        convention=CONVENTIONS[args.convention],
    )


def find_predictions(
    path: str, data_path: Sequence[str] | None = None
) -> tuple[list[Path], list[Problem]]:
    """The prediction files of a run folder or stage folder (merged, else shards), or the file.

    Args:
        data_path: of a run folder: those for these annotation files; unset: the first ones.
    """
    from revisionllm.eval.made_with import stage_folder
    from revisionllm.eval.retrieval.filter import own_files
    from revisionllm.formats.released_log import is_released_folder

    place = Path(path)
    if not place.exists():
        raise UserError(f"no such file or folder: {path}")
    if place.is_file() or is_released_folder(place):
        return [place], []
    for folder in [*(stage_folder(place, stage, data_path) for stage in STAGES), place]:
        files, problems = own_files(folder, None)
        if files:
            return files, problems
    raise UserError(
        f"no predictions under {path} (predictions/search/, predictions/dense/ or itself)"
    )


def run_score(args: argparse.Namespace) -> int:
    """`revisionllm eval score`."""
    from revisionllm.eval.report.tables import score_text

    if args.output:
        _claim(args, SCORE_FILES, [args.predictions])
    scored = load(args.predictions, args, args.pred_format)
    for line in scored.accounting.lines():
        print(line, file=sys.stderr)
    if args.json:
        print(json.dumps(plain(scored.report), indent=2, allow_nan=False))
    else:
        print("\n".join(score_text(scored)))
    if args.output:
        _write_score(Path(args.output), Path(args.predictions).stem, scored)
    return 0


def _write_score(folder: Path, name: str, scored: Scored) -> None:
    from revisionllm.eval.report import figures
    from revisionllm.eval.report.tables import csv_text

    report = (
        {"made_by": MADE_BY}
        | plain(scored.report)
        | {"notes": scored.accounting.lines(most_named=1000)}
    )
    write_json(folder / "report.json", report)
    write_text(folder / "metrics.csv", csv_text(scored.report))
    if len(scored.ious):
        curves = figures.recall_curves({name: scored.ious})
        write_bytes(folder / "recall.png", curves)
    if scored.report["calibration"]:
        picture = figures.reliability({name: scored.report["calibration"]}, "0.5")
        write_bytes(folder / "reliability.png", picture)
    print(f"wrote {folder}", file=sys.stderr)


def run_report(args: argparse.Namespace) -> int:
    """`revisionllm eval report`."""
    from revisionllm.eval.report import comparison
    from revisionllm.eval.report import page as pages

    pictures = [f"query-{number}.png" for number in range(1, len(args.queries) + 1)]
    _claim(args, (*REPORT_FILES, *pictures), args.runs)
    runs = {name: load(path, args) for name, path in zip(_names(args), args.runs, strict=True)}
    if not all(len(scored.ious) for scored in runs.values()):
        raise UserError("no query has an event in its film: nothing to compare")
    comparison.check_same_queries(runs)
    pictures = pages.draw(runs, args.queries, args.films)
    files = {"Recall": ("recall.png", pictures.recall)}
    if pictures.reliability:
        files["Reliability"] = ("reliability.png", pictures.reliability)
    for index, (query, picture) in enumerate(pictures.qualitative):
        files[f"{args.queries[index]}: {query}"] = (f"query-{index + 1}.png", picture)
    folder = Path(args.output)
    for name, data in files.values():
        write_bytes(folder / name, data)
    named = {caption: name for caption, (name, _) in files.items()}
    page = pages.markdown_page(runs, named, args.examples)
    write_text(folder / "report.md", page)
    page = pages.html_page(runs, pictures, num_examples=args.examples)
    write_text(folder / "report.html", page)
    print(folder / "report.html")
    return 0


def _claim(args: argparse.Namespace, names: Sequence[str], runs: Sequence[str]) -> None:
    """Refuse to replace what others made, or what is read; the first name marks our folders."""
    sources = [*runs, args.ground_truth, getattr(args, "films", None)]
    claim_outputs(args.output, names, mark=names[0], inputs=sources, overwrite=args.overwrite)


def _names(args: argparse.Namespace) -> list[str]:
    """A distinct name per run."""
    if args.names is None:
        names = [Path(path).stem for path in args.runs]
        args.names = names if len(set(names)) == len(names) else args.runs
    if len(args.names) != len(args.runs) or len(set(args.names)) != len(args.names):
        raise UserError(f"{len(args.runs)} runs need as many different --names")
    return args.names


def plain(value: Any) -> Any:
    """A report with None in place of NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
