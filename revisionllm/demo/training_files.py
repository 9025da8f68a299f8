"""Writes what the training stages need of the demo world: annotations, features, a start.

    python revisionllm/demo/training_files.py --films 30
    python revisionllm/demo/training_files.py --films 3 --minutes 8 --tiny_base

The folder gets `annotations.json` (MAD's format), `features/<film>.npy`, `text_features/` (LMDB),
and with --tiny_base a run `start/` with a random LLaMA: small enough to see all stages train in
minutes, too small to find anything. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by path: put the repository on the import path
    sys.path[0] = str(Path(__file__).resolve().parents[2])


from revisionllm.errors import UserError, run_entry_point

FILM_FPS = 5.0
TINY = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "positions": 1024}
# Wide: with LLaMA's 0.02 a random model of this width can neither attend nor be sure of anything.
INITIALIZER_RANGE = 0.2


def film_plans(num_films: int, minutes: float) -> list[Any]:
    """Plans of training films."""
    from revisionllm.demo.world import plan_film

    return [plan_film(seed, minutes * 60, "train") for seed in range(num_films)]


def annotations(plans: list[Any], per_film: int) -> dict[str, dict]:
    """Sentences that are true of one event each, in MAD's format."""
    from revisionllm.demo.films import film_sentences, mad_record

    return {
        sentence.query_id: mad_record(plan, sentence)
        for plan in plans
        for sentence in film_sentences(plan, per_film, 0)
    }


def query_records(records: dict[str, dict], clip: Any) -> Iterator[tuple[str, dict]]:
    """Word and sentence features of every query."""
    for query_id, record in records.items():
        tokens, sentence = clip.encode_texts([record["sentence"]])
        arrays = {"token_features": tokens[0].numpy(), "cls_features": sentence[0].numpy()}
        yield query_id, arrays


def write_files(args: argparse.Namespace) -> None:
    """Write what is missing in `args.out`."""
    from tqdm import tqdm

    from revisionllm.data.feature_writers import save_npy, write_lmdb
    from revisionllm.demo.film_features import encode_frames
    from revisionllm.demo.films import write_annotations
    from revisionllm.demo.render import frames
    from revisionllm.model.clip import load_clip

    clip = load_clip(args.clip)
    plans = film_plans(args.films, args.minutes)
    records = annotations(plans, args.sentences)
    (args.out / "features").mkdir(parents=True, exist_ok=True)
    for plan in tqdm(plans, desc="features of films"):
        path = args.out / "features" / f"{plan.film_id}.npy"
        if not path.exists():
            save_npy(path, encode_frames(frames(plan), clip))
    if not (args.out / "text_features").exists():
        write_lmdb(args.out / "text_features", query_records(records, clip))
    write_annotations(args.out / "annotations.json", records)
    if args.tiny_base and not (args.out / "start" / "config.json").exists():
        write_tiny_start(args.out, args.tokenizer, clip)


def write_tiny_start(out: Path, tokenizer_folder: Path, clip: Any) -> None:
    """A run with a random LLaMA and a linear projector: what stage dense starts from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from revisionllm.model.base import load_tokenizer
    from revisionllm.model.config import AdapterConfig, RunConfig
    from revisionllm.model.llama import GroundingModel, build_adapter
    from revisionllm.model.loading import save_run

    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TINY["hidden_size"],
        intermediate_size=TINY["intermediate_size"],
        num_hidden_layers=TINY["layers"],
        num_attention_heads=TINY["heads"],
        max_position_embeddings=TINY["positions"],
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    llm = LlamaForCausalLM(config)
    llm.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    adapter = AdapterConfig(feature_dim=clip.dim, hidden_size=TINY["hidden_size"])
    run = RunConfig(base=os.path.abspath(out / "base"), adapter=adapter, feature_fps=FILM_FPS)
    save_run(GroundingModel(llm, build_adapter(adapter), tokenizer, run), out / "start")


def is_written(args: argparse.Namespace) -> bool:
    """Is everything there, for the same arguments?"""
    note = args.out / "made_with.json"
    return note.exists() and json.loads(note.read_text(encoding="utf-8")) == _settings(args)


def _settings(args: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(args).items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/train_demo/data"), help="folder to write")
    add("--films", type=int, default=30, help="training films (30)")
    add("--minutes", type=float, default=60.0, help="length of a film (60)")
    add("--sentences", type=int, default=60, help="sentences per film (60)")
    add("--clip", type=Path, default=Path("checkpoints/demo/clip"), help="the demo's CLIP")
    add("--tiny_base", action="store_true", help="write a random LLaMA to start from")
    add("--tokenizer", type=Path, default=Path("checkpoints/demo/base"), help="of the tiny base")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        if is_written(args):
            return 0
        if (args.out / "made_with.json").exists():
            raise UserError(
                f"{args.out} was made with other arguments; give another --out or move it away"
            )
        write_files(args)
        note = args.out / "made_with.json"
        note.write_text(json.dumps(_settings(args), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.out}")
        return 0

    return run_entry_point(work, "training_files")


if __name__ == "__main__":
    raise SystemExit(main())
