"""What `scripts/demo/train_all.sh` made, on one page: <folder>/report.md.

python revisionllm/demo/curriculum_report.py --folder out/train_demo
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.files import write_text
from revisionllm.options import Parser

STEPS = (
    *("clip", "base", "data", "stage1_dense", "segments", "stage1_sparse"),
    *("stage2_long_33", "stage2_long_100", "judged", "tables"),
)
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "open_clip_torch")


def report(folder: Path) -> str:
    """The page's text.

    Raises:
        UserError: the folder holds no finished evaluation.
    """
    judged = folder / "judged" / "benchmark.json"
    if not judged.exists():
        raise UserError(f"no {judged}; sh scripts/demo/train_all.sh makes it")
    lines = [
        f"# {folder.name}",
        "",
        "| step | minutes | last loss | weights |",
        "|---|---|---|---|",
    ]
    for step in STEPS:
        done = folder / "done" / step
        spent = f"{int(done.read_text()) / 60:.1f}" if done.exists() else "-"
        lines.append(
            f"| {step} | {spent} | {last_loss(folder / step)} | {weights(folder / step)} |"
        )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines += [
        "",
        "Minutes are those of the last piece if a step was interrupted; weights in MB.",
        "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, seed 0.",
        "",
        "## Films that no training saw",
        "",
        json.loads(judged.read_text(encoding="utf-8"))["markdown"],
    ]
    for path in sorted((folder / "tables").glob("*.md")):
        lines += ["", path.read_text(encoding="utf-8").replace("### ", "## ").strip()]
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += ["", f"![{path.stem}](tables/{picture.name})"]
    return "\n".join(lines) + "\n"


def last_loss(run: Path) -> str:
    """Mean of the last ten logged losses of a training run, or "-"."""
    log = run / "metrics.jsonl"
    if not log.exists():
        return "-"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row][-10:]
    return f"{sum(losses) / len(losses):.3f}" if losses else "-"


def weights(folder: Path) -> str:
    """Megabytes of the safetensors directly in a run folder and in its LoRA, or "-"."""
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    size += sum(p.stat().st_size for p in folder.glob("lora/*.safetensors"))
    return f"{size / 1e6:.1f}" if size else "-"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("out/train_demo"), help="what it wrote")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        write_text(args.folder / "report.md", report(args.folder))
        print(args.folder / "report.md")
        return 0

    return run_entry_point(work, "curriculum_report")


if __name__ == "__main__":
    raise SystemExit(main())
