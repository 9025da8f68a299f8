"""`revisionllm convert-checkpoint SRC DST`: a published checkpoint becomes a run folder.

    revisionllm convert-checkpoint checkpoints/mad_dense_released checkpoints/mad_stage1_dense \\
        --base checkpoints/vicuna-7b-v1.5 \\
        --adapter_file checkpoints/vtimellm-vicuna-v1-5-7b-stage1/mm_projector.bin

Every tensor of every file is reported on stdout (tab-separated: file, name, shape, dtype, what
became of it); all names and shapes are checked against the base's config without loading its
weights.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import UserError
from revisionllm.model.config import (
    ADAPTER_NAME,
    CHOICES,
    LORA_NAME,
    RunConfig,
    is_run_folder,
    write_config,
)
from revisionllm.model.hub import missing

if TYPE_CHECKING:
    from revisionllm.model.released import AdapterWeights

NUMBERS = {
    "window_s": float,
    "stride_s": float,
    "frames_per_window": int,
    "feature_fps": float,
    "num_segments": int,
    "segment_stride_s": float,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; what is not given keeps the released launchers' value."""
    helps = {f.name: f.metadata["help"] for f in fields(RunConfig)}
    parser.add_argument("source", help="published LoRA folder or mm_projector.bin")
    parser.add_argument("destination", help="run folder to write; must not hold a run yet")
    parser.add_argument("--base", help=helps["base"] + " (default: the one the LoRA names)")
    parser.add_argument("--clip", help=helps["clip"])
    parser.add_argument(
        "--adapter_file",
        nargs="+",
        help="projector or sparse adapter it was trained with, file or folder; chapters'"
        " alternating runs: the sparse adapter and mm_projector.bin",
    )
    parser.add_argument(
        "--lora", nargs="+", metavar="FOLDER", help="all LoRA folders in order (default: SRC alone)"
    )
    parser.add_argument("--stage", choices=CHOICES["stage"], help=helps["stage"])
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, help=helps[name])


def run(args: argparse.Namespace) -> int:
    """Convert and report. Returns 0.

    Raises:
        UserError: the source is none, something is missing beside it, or nothing may be
        overwritten.
    """
    destination = Path(args.destination)
    if not Path(args.source).exists():
        raise UserError(f"no model at {args.source}: {missing(args.source)}")
    if is_run_folder(Path(args.source)):
        raise UserError(f"{args.source} is a run folder already; nothing to convert")
    if is_run_folder(destination):
        raise UserError(f"{destination} holds a run already; choose another folder or remove it")
    from revisionllm.model.base import meta_llm
    from revisionllm.model.llama import build_adapter
    from revisionllm.model.loading import describe, provenance
    from revisionllm.model.tensors import check_tensors, write_tensors

    names = ("base", "clip", "adapter_file", "lora", "stage", *NUMBERS)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    config, weights = describe(args.source, **given)

    check_tensors(weights.tensors, build_adapter(config.adapter).state_dict(), args.source)
    llm = meta_llm(config.base)
    if config.adapter.hidden_size != llm.config.hidden_size:
        raise UserError(
            f"the adapter gives width {config.adapter.hidden_size}, base {config.base} has"
            f" {llm.config.hidden_size}; give the base it was trained on"
        )
    _report("file", "tensor", "shape", "dtype", "result")
    config.lora = _convert_loras(llm, config.lora, destination)
    write_tensors(weights.tensors, destination / ADAPTER_NAME)
    _report_adapter(weights)
    config.adapter_file = str(destination.resolve() / ADAPTER_NAME)
    write_config(replace(config, **provenance()), destination)
    print(f"run folder written: {destination}", file=sys.stderr)
    return 0


def _convert_loras(llm, folders: list[str], destination: Path) -> list[str]:
    """Check each LoRA against the LLM and write it as safetensors; the last one is named `lora`."""
    from revisionllm.model.lora import lora_weights_file, read_lora, write_lora

    written = []
    for index, folder in enumerate(folders):
        is_last = index == len(folders) - 1
        target = destination.resolve() / (LORA_NAME if is_last else f"{LORA_NAME}_{index}")
        peft_model, tensors = read_lora(llm, folder)
        write_lora(peft_model.active_peft_config, tensors, target)
        llm = peft_model.unload()
        for name, tensor in tensors.items():
            result = f"{target.name}: same name"
            _report(lora_weights_file(folder), name, [*tensor.shape], tensor.dtype, result)
        written.append(str(target))
    return written


def _report_adapter(weights: AdapterWeights) -> None:
    for name, (file, key) in weights.origin.items():
        tensor = weights.tensors[name]
        _report(file, key, [*tensor.shape], tensor.dtype, f"{ADAPTER_NAME}: {name}")
    for (file, key), reason in weights.unused.items():
        _report(file, key, "", "", f"not used: {reason}")


def _report(*columns: object) -> None:
    print("\t".join(str(column) for column in columns))
