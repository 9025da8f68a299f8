"""The one loader: a run folder of ours or a published checkpoint in, a `GroundingModel` out; and
saving.

    from revisionllm.model.loading import load_model
    model = load_model("checkpoints/demo/dense")

Training, evaluation and the commands use nothing else.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from revisionllm.errors import UserError
from revisionllm.model.base import cast_llm, load_base, load_tokenizer
from revisionllm.model.config import (
    ADAPTER_NAME,
    LORA_NAME,
    RunConfig,
    is_run_folder,
    read_config,
    write_config,
)
from revisionllm.model.devices import DTYPES, choose_attention, choose_device, choose_dtype, say
from revisionllm.model.hub import local, missing
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.lora import load_lora, merge_lora, save_lora
from revisionllm.model.prompts import check_template
from revisionllm.model.quantized import NF4, quantize
from revisionllm.model.released import (
    AdapterWeights,
    adapter_file_in,
    is_released,
    read_adapter_weights,
    released_run,
)
from revisionllm.model.tensors import check_tensors, write_tensors
from revisionllm.versions import warn_if_newer

LORA_MODES = ("merge", "frozen", "train")
RECORDED_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def load_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    base_dtype: str | None = None,
    attention: str = "auto",
    lora_mode: str = "merge",
    lora_dropout: float | None = None,
    **overrides: Any,
) -> GroundingModel:
    """Load a run folder, or a published checkpoint.

    Args:
        source: run folder; or published LoRA folder, `mm_projector.bin`, base folder or GGUF file.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto, float32, bfloat16, float16.
        base_dtype: nf4 keeps the LLM's blocks in 4 bits (`model.quantized`), LoRAs that are merged
            included; None: as `dtype`.
        attention: auto, sdpa, eager, flash_attention_2.
        lora_mode: `merge` all LoRAs into the base; or keep the last one apart, `frozen` or to
            `train` (the ones before it are merged).
        lora_dropout: in front of the LoRA that is kept apart, 0..1; None: what its folder says.
        **overrides: fields of `RunConfig`. `adapter` with no `adapter_file` makes a new one (its
            `hidden_size` is that of the base); `adapter_file` alone (a file, or another run's or
            checkpoint's folder) takes that adapter, its kind and dimensions included. Published
            checkpoints may need `base`, `adapter_file`, `stage`; see `released_run`.

    Returns:
        The model in eval mode. Base and adapter are frozen unless `set_trainable` says otherwise.

    Raises:
        UserError: something is missing, does not fit or contradicts itself; the message says what.
    """
    if lora_mode not in LORA_MODES:
        raise UserError(f"lora_mode {lora_mode!r} is not one of {LORA_MODES}")
    if os.environ.get("RANK", "0") == "0":
        warn_if_newer()
    config, weights = describe(source, **overrides)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    attention = choose_attention(attention, chosen_device, chosen_dtype)

    tokenizer = load_tokenizer(config.base)
    check_template(tokenizer, config.prompt_template)
    apart = config.lora[-1:] if lora_mode != "merge" else []
    merged = config.lora[: len(config.lora) - len(apart)]
    load_dtype = DTYPES[config.merge_dtype] if merged else chosen_dtype
    llm = load_base(config.base, dtype=load_dtype, attention=attention)
    for folder in merged:
        llm = merge_lora(load_lora(llm, folder))
    cast_llm(llm.requires_grad_(False), chosen_dtype)
    if base_dtype == NF4:
        quantize(llm, chosen_dtype)
        llm.to(chosen_device)

    adapter = _load_adapter(config, weights, llm.config.hidden_size).to(chosen_dtype)
    model = GroundingModel(llm, adapter, tokenizer, config)
    model.merged_lora = merged
    for folder in apart:
        model.attach_lora(
            load_lora(llm, folder, trainable=lora_mode == "train", dropout=lora_dropout)
        )
    model.eval().to(chosen_device)
    say(describe_parameters(model))
    return model


def describe(source: str | Path, **overrides: Any) -> tuple[RunConfig, AdapterWeights | None]:
    """What a source is, without loading its LLM.

    Returns:
        The run config (local paths absolute), and the adapter weights; None for a new adapter.

    Raises:
        UserError: not a source, or something is missing beside it.
    """
    path = Path(local(source)).expanduser()
    overrides = {k: str(v) if isinstance(v, Path) else v for k, v in overrides.items()}
    if not is_run_folder(path):
        if (path / "complete.json").is_file():  # of train/checkpoints.py
            raise UserError(
                f"{path} is a checkpoint of a training; make a run of it:"
                f" revisionllm run from-checkpoint {path} --to FOLDER"
            )
        if not is_released(path):
            if not path.exists():
                raise UserError(f"no model at {path}: {missing(str(source))}")
            raise UserError(f"no model at {path}: neither a run folder nor a published checkpoint")
        return released_run(path.resolve(), **overrides)
    several = overrides.get("adapter_file")
    if isinstance(several, (list, tuple)):
        if len(several) != 1:
            raise UserError(f"run folder {path} takes one adapter_file, not {len(several)}")
        overrides["adapter_file"] = str(several[0])
    config = replace(read_config(path), **overrides)
    if "adapter" in overrides and "adapter_file" not in overrides:
        config.adapter_file = None
    if config.adapter_file is None:
        return config, None
    weights = read_adapter_weights([adapter_file_in(config.adapter_file)])
    if weights is None:
        raise UserError(f"no adapter weights in {config.adapter_file}")
    if "adapter_file" in overrides and "adapter" not in overrides:
        config.adapter = weights.config(config.stage)
    return config, weights


def _load_adapter(config: RunConfig, weights: AdapterWeights | None, hidden_size: int) -> nn.Module:
    """Build the adapter and fill it; a new one keeps its initial weights, and that is said."""
    if weights is None:
        config.adapter.hidden_size = hidden_size
    if config.adapter.hidden_size != hidden_size:
        raise UserError(
            f"the adapter gives tokens of width {config.adapter.hidden_size}, base {config.base}"
            f" wants {hidden_size}; is it the adapter of another base?"
        )
    adapter = build_adapter(config.adapter)
    if weights is None:
        say(f"new {config.adapter.kind} adapter, not trained yet")
    else:
        files = ", ".join(sorted({file for file, _ in weights.origin.values()}))
        check_tensors(weights.tensors, adapter.state_dict(), files)
        adapter.load_state_dict(weights.tensors)
    return adapter.requires_grad_(False)


def save_run(model: GroundingModel, folder: str | Path) -> Path:
    """Write a run folder: config, adapter, and the LoRA that is apart from the base.

    LoRAs that were merged stay where they are; the config names them. Under ZeRO-3 call it inside
    `deepspeed.zero.GatheredParameters`.

    Returns:
        The folder.
    """
    folder = Path(folder).resolve()
    write_tensors(model.projector.state_dict(), folder / ADAPTER_NAME)
    lora = list(model.merged_lora)
    if model.lora is not None:
        save_lora(model.lora, folder / LORA_NAME)
        lora.append(str(folder / LORA_NAME))
    config = replace(
        model.config,
        adapter_file=str(folder / ADAPTER_NAME),
        lora=lora,
        **provenance(),
    )
    write_config(config, folder)
    return folder


def provenance() -> dict[str, Any]:
    """Fields of `RunConfig` that say what wrote it: library versions, commit of this package."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        commit = result.stdout.strip() if result.returncode == 0 else None
    except OSError:  # no git here, or none that may be run
        commit = None
    return {
        "versions": {name: version(name) for name in RECORDED_LIBRARIES},
        "git_commit": commit,
    }


def describe_parameters(model: GroundingModel) -> str:
    """Parameter counts in one line, in millions: LLM, LoRA, adapter, trainable if any."""
    groups = {"LLM": [], "LoRA": [], "adapter": []}
    for name, parameter in model.named_parameters():
        group = "LoRA" if ".lora_" in name else "LLM" if name.startswith("llm.") else "adapter"
        groups[group].append(parameter)
    counts = [f"{group} {_millions(parameters)}" for group, parameters in groups.items()]
    trained = [p for p in model.parameters() if p.requires_grad]
    counts += [f"trainable {_millions(trained)}"] if trained else []
    return f"parameters: {', '.join(counts)}"


def _millions(parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> str:
    return f"{sum(p.numel() for p in parameters) / 1e6:.2f} M"
