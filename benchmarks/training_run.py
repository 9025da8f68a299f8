"""A base and films of random numbers, and a recipe: what the trainer itself takes on a GPU.

    python benchmarks/training_run.py out/training_run --device cuda             # 13.5 GB of disk
    revisionllm train --recipe out/training_run/my.toml --max_steps 24 --global_batch_size 64 \\
        --val_data_path out/training_run/val.json --val_queries 20 --val_steps 24 --logging_steps 4

The log has questions per second, the share of the GPU's peak and the peak memory; `--estimate`
instead says what they should be. `--layers 8`: a base of the same width that fits anywhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from revisionllm.options import Parser

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "assets" / "model" / "ckpt_base"
WIDTH, FPS = 768, 5
RECIPE = """\
[all]
data_path = ["train.json"]
features = "features"
base = "base"
clip = "ViT-L-14"
window_s = 125.0
frames_per_window = 250
feature_fps = 5.0

[dense]
"""


def write_base(folder: Path, layers: int, device: str, narrow: bool) -> None:
    """A random LLaMA of Vicuna-7B's shape in bfloat16; narrow: a toy."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from revisionllm.train.estimate import VICUNA

    shape = VICUNA | {"num_hidden_layers": layers}
    if narrow:
        shape |= {"hidden_size": 64, "intermediate_size": 96}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    with torch.device(device):
        llm = LlamaForCausalLM(
            LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, dtype="bfloat16")
        )
    llm.to(torch.bfloat16).save_pretrained(folder, max_shard_size="5GB")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / name, folder / name)


def write_films(folder: Path, minutes: float) -> None:
    """Four films to train on, with 200 events each, and one to look at, with 100."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir()
    for split, films, events in (("train", 4, 200), ("val", 1, 100)):
        records = {}
        for film in range(films):
            name = f"{split}{film}"
            rows = rng.normal(size=(round(minutes * 60 * FPS), WIDTH)).astype(np.float16)
            np.save(folder / "features" / f"{name}.npy", rows)
            for number in range(events):
                start_s = float(rng.uniform(0, minutes * 60 - 20))
                records[f"{name}_{number}"] = {
                    "movie": name,
                    "sentence": f"A man, number {number}, opens the door slowly.",
                    "timestamps": [start_s, start_s + float(rng.uniform(2, 12))],
                    "movie_duration": minutes * 60,
                }
        (folder / f"{split}.json").write_text(json.dumps(records))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0], ranges={})
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--layers", type=int, default=32, help="of the base (%(default)s)")
    parser.add_argument("--minutes", type=float, default=120.0, help="of a film (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the weights are drawn")
    parser.add_argument("--narrow", action="store_true", help="a toy, to try the way")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True)
    write_base(args.out / "base", args.layers, args.device, args.narrow)
    write_films(args.out, args.minutes)
    (args.out / "my.toml").write_text(RECIPE)
    print(f"wrote {args.out / 'my.toml'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
