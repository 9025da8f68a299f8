"""What each part of the method is worth, measured on demo films that no training has seen.

    python revisionllm/demo/ablation.py --out out/ablation

Six tables with a plot each: ingredients, search order, confidence, window sampling,
errors by kind, and what single windows tell. The model answers every (sentence, window) at most
once; all searches and rankings that differ only in what they look at or how they rank read the same
answers. Intervals are 95 % bootstrap intervals that resample whole films. docs/ablation.md says
what came out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.files import claim_outputs, write_json, write_text
from revisionllm.grounder import DEFAULT_CHECKPOINT
from revisionllm.model.hub import path_argument
from revisionllm.options import Parser

TABLES = ("ingredients", "order", "confidence", "sampling", "errors", "windows")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which (all)")
    add(
        "--checkpoint",
        type=path_argument,
        default=DEFAULT_CHECKPOINT,
        help="dense run (%(default)s)",
    )
    add(
        "--long",
        nargs="*",
        type=path_argument,
        default=[],
        metavar="RUN",
        help="long runs, coarse first",
    )
    add("--no_negatives", type=Path, metavar="RUN", help="dense run trained without negatives")
    add("--films", type=int, default=6, help="films of each length (%(default)s)")
    add(
        "--minutes",
        type=float,
        nargs="+",
        default=[60, 180],
        help="lengths of `ingredients`; the others take the first",
    )
    add("--present", type=int, default=30, help="sentences per film that happen (%(default)s)")
    add("--absent", type=int, default=10, help="sentences that never happen (%(default)s)")
    add("--val_films", type=int, default=6, help="films that tune and calibrate (%(default)s)")
    add("--device", default="auto", help="(%(default)s)")
    add("--cache", type=Path, default=Path("out/ablation_features"), help="films' features")
    add(
        "--answers",
        type=Path,
        metavar="FOLDER",
        help="keep the model's answers here: the same command, stopped and started again, goes on",
    )
    add("--out", type=Path, default=Path("out/ablation"), help="folder for tables and plots")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        from revisionllm.demo.benchmark import markdown
        from revisionllm.demo.evaluation.ablation_tables import MEASURES, Setting
        from revisionllm.demo.evaluation.figures import draw_rows

        for run in [
            args.checkpoint,
            *args.long,
            *([args.no_negatives] if args.no_negatives else []),
        ]:
            if not Path(run).is_dir():
                raise UserError(f"no run at {run}; checkpoints/README.md says what makes it")
        setting = Setting(args)
        for table in args.tables:
            for title, rows in MEASURES[table](setting):
                name = title.lower().replace(" ", "_").replace(",", "")
                text = f"### {title}\n\n{markdown(rows)}\n"
                files = [f"{name}{suffix}" for suffix in (".png", ".md", ".json")]
                claim_outputs(args.out, files, mark=files[0])
                write_json(args.out / f"{name}.json", rows)
                write_text(args.out / f"{name}.md", text)
                draw_rows(rows, title, args.out / f"{name}.png")
                print(text, flush=True)
        return 0

    return run_entry_point(work, "ablation")


if __name__ == "__main__":
    raise SystemExit(main())
