"""Trains the demo's small LLaMA, from scratch, to ground sentences in windows of demo films.

    python revisionllm/demo/train_dense.py --out checkpoints/demo

Writes `base/` (the LLM and its tokenizer) and `dense/` (the run folder with the frame adapter), and
resumes from `dense_state.pt`. How it learns: `dense_training.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

if __package__ in (
    None,
    "",
):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.options import Parser


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("checkpoints/demo"), help="folder for base/ and dense/")
    add("--clip", type=Path, default=Path("checkpoints/demo/clip"), help="the demo CLIP")
    add("--cache", type=Path, default=Path("out/demo_features"), help="features of training films")
    add("--films", type=int, default=90, help="training films")
    add("--val_films", type=int, default=4, help="validation films")
    add("--film_minutes", type=float, default=60.0, help="their length")
    add("--steps", type=int, default=6000, help="optimizer steps")
    add("--windows", type=int, default=4, help="windows per step")
    add("--questions", type=int, default=12, help="questions per window")
    add("--captions", type=int, default=2, help="captioning questions among them")
    add("--early_captions", type=int, default=5, help="the same during the first --caption_steps")
    add("--caption_steps", type=int, default=1000, help="steps with more captioning questions")
    add("--other_stages", type=float, default=0.15, help="share asked as sparse and long stages do")
    add(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for what a window does not show, too; without: for the ablation",
    )
    add("--frame_steps", type=int, default=3000, help="steps of the adapter alone, first")
    add("--frame_lr", type=float, default=3e-3, help="peak learning rate of these")
    add("--frame_windows", type=int, default=12, help="windows for the adapter per later step")
    add("--pointer_layer", type=int, default=3, help="LLM layers below the pointer loss")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate")
    add("--warmup", type=int, default=200, help="steps of linear warm-up")
    add("--save_every", type=int, default=250, help="steps between states, checks and run folders")
    add("--workers", type=int, help="processes for features (one per core, at most 8; 0: none)")
    add("--device", default="auto", help="auto, cpu, cuda ... (%(default)s)")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast")
    add("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

    def work() -> int:
        if not (args.clip / "open_clip_model.safetensors").is_file():
            raise UserError(f"no CLIP in {args.clip}; make it with: sh scripts/demo/train_clip.sh")
        from revisionllm.demo.training.dense_training import train

        train(args)
        return 0

    return run_entry_point(work, "train_dense")


if __name__ == "__main__":
    raise SystemExit(main())
