"""LoRA through peft: new, from a folder, merged (https://arxiv.org/abs/2106.09685).

LoRA goes on all linear layers inside the LLM's blocks and on nothing else: the LM head and the
adapter stay as they are. The layers sit inside the LLM, which therefore keeps its class and use.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from revisionllm.errors import UserError, reading
from revisionllm.files import read_json
from revisionllm.model.hub import local
from revisionllm.model.quantized import block_linears
from revisionllm.model.tensors import check_tensors, read_tensors, write_tensors

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def new_lora(
    llm: PreTrainedModel,
    *,
    rank: int = 64,
    alpha: int = 128,
    dropout: float = 0.05,
    targets: Sequence[str] = LINEAR_LAYERS,
) -> PeftModel:
    """Put new, trainable LoRA layers (a no-op until trained) into `llm`, in float32.

    Args:
        targets: names of the linear layers that get one.

    Raises:
        UserError: the LLM's blocks have no layer of such a name.
    """
    there = {name.rpartition(".")[2] for name, _ in block_linears(llm)}
    unknown = [name for name in targets if name not in there]
    if unknown:
        raise UserError(
            f"no linear layers {', '.join(unknown)} in this base for a LoRA; there are"
            f" {', '.join(sorted(there))}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    return _attach(llm, config)


def _attach(llm: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put the layers in, in the LLM's own mode: peft's dropouts would start in training mode."""
    return get_peft_model(llm, config).train(llm.training)


def _ordered(modules: str | set[str] | list[str] | None) -> str | list[str] | None:
    """Module names in one order, which peft's sets have not; a pattern stays as it is."""
    return sorted(modules) if isinstance(modules, set | list) else modules


def lora_weights_file(folder: str | Path) -> Path:
    """The weight file of a LoRA folder.

    Raises:
        UserError: the folder holds no LoRA.
    """
    folder = Path(local(folder))
    for name in WEIGHT_FILES:
        if (folder / CONFIG_FILE).is_file() and (folder / name).is_file():
            return folder / name
    raise UserError(f"not a LoRA folder: {folder} needs {CONFIG_FILE} and one of {WEIGHT_FILES}")


def load_lora(
    llm: PreTrainedModel,
    folder: str | Path,
    *,
    trainable: bool = False,
    dropout: float | None = None,
) -> PeftModel:
    """Put the LoRA of a folder into `llm`, its parameters in float32.

    Args:
        trainable: its parameters will be trained.
        dropout: in front of it while training, 0..1; None: what the folder says.

    Raises:
        UserError: a kind of LoRA that cannot be merged exactly, or weights that do not fit.
    """
    peft_model, weights = read_lora(llm, folder, trainable=trainable, dropout=dropout)
    set_peft_model_state_dict(peft_model, weights)
    return peft_model


def read_lora(
    llm: PreTrainedModel,
    folder: str | Path,
    *,
    trainable: bool = False,
    dropout: float | None = None,
) -> tuple[PeftModel, dict[str, Tensor]]:
    """Put LoRA layers as a folder describes them into `llm`, and read the weights that fit them.

    Raises:
        UserError: a kind of LoRA that cannot be merged exactly, or weights that do not fit.
    """
    path = lora_weights_file(folder)
    config = read_lora_config(folder)
    with reading(f"cannot read {Path(folder) / CONFIG_FILE}", "copy the LoRA again"):
        rank, alpha = float(config.r), float(config.lora_alpha)
    if not 0 < rank < 10**5 or not math.isfinite(alpha):
        raise UserError(
            f"{Path(folder) / CONFIG_FILE}: r is {config.r}, lora_alpha {config.lora_alpha}"
        )
    if config.use_dora or config.bias != "none" or config.modules_to_save:
        raise UserError(f"{folder}: only plain LoRA is read (no DoRA, biases or modules_to_save)")
    config.inference_mode = not trainable
    if dropout is not None:
        config.lora_dropout = dropout
    config.base_model_name_or_path = llm.name_or_path
    config.target_modules = _ordered(config.target_modules)  # two loads train alike
    with reading(f"cannot use {Path(folder) / CONFIG_FILE}", "is it the LoRA of another base?"):
        peft_model = _attach(llm, config)
    weights = read_tensors(path)
    _refuse_wrapped(weights, path)
    check_tensors(weights, get_peft_model_state_dict(peft_model), path)
    return peft_model, weights


def read_lora_config(folder: str | Path) -> LoraConfig:
    """What a LoRA folder says about its LoRA.

    Raises:
        UserError: it cannot be read, or tells of another kind.
    """
    path = Path(local(folder)) / CONFIG_FILE
    described = _described(path)
    with reading(f"cannot read {path}", "copy the LoRA again"):
        return LoraConfig(**described)


def _described(path: Path) -> dict[str, Any]:
    """What a LoRA's config says, as far as this peft knows it.

    Raises:
        UserError: no LoRA's, or it uses something that a newer peft brought.
    """
    document = read_json(path, kind=dict, mend="copy the LoRA again")
    if document.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{path}: peft_type is {str(document['peft_type'])[:40]!r}, not LORA")
    known = {item.name for item in fields(LoraConfig) if item.init}
    # plain numbers are sizes of what a flag or a config turns on
    used = [
        name
        for name, value in document.items()
        if name not in known | {"peft_version"} and value and type(value) not in (int, float)
    ]
    if used:
        raise UserError(
            f"{path}: this peft does not know {', '.join(used[:5])}; install a newer one"
        )
    return {name: value for name, value in document.items() if name in known}


def _refuse_wrapped(weights: dict[str, Tensor], path: Path) -> None:
    """Raises UserError for names that a training wrapper changed, and says how to mend them."""
    for part, cure in (
        (".default.", "save it with peft's save_pretrained, or take '.default' out of the names"),
        ("module.", "save the model inside the wrapper, or take 'module.' off the names"),
    ):
        wrapped = [n for n in weights if n.startswith(part) or (part[0] == "." and part in n)]
        if wrapped:
            raise UserError(f"{path}: names like {wrapped[0]} hold {part!r}; {cure}")


@torch.no_grad()
def merge_lora(peft_model: PeftModel) -> PreTrainedModel:
    """Add B A alpha / r to the base weights and take the LoRA layers out.

    The product is computed in float32 and rounded to the dtype of the base weights before it is
    added, as in the released evaluation. peft's own merge adds unrounded products, or products of
    float16 factors, depending on its version: off by up to 1e-4 from the published models' numbers.
    """
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            for name in module.active_adapters:
                weight += module.get_delta_weight(name).to(weight.dtype)
    return peft_model.unload()


def save_lora(peft_model: PeftModel, folder: str | Path) -> None:
    """Write the LoRA in `peft_model` as a folder; see `write_lora`."""
    weights = get_peft_model_state_dict(peft_model)
    write_lora(peft_model.active_peft_config, weights, folder)


def write_lora(config: LoraConfig, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Write peft's folder (config and safetensors), complete before it gets its name."""
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_tensors(weights, temporary / WEIGHT_FILES[0])
    config = replace(config)
    config.base_model_name_or_path = Path(config.base_model_name_or_path or "").name
    config.target_modules = _ordered(config.target_modules)
    config.save_pretrained(str(temporary))
    replaced = folder.with_name(folder.name + ".old")
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(temporary, folder)
    shutil.rmtree(replaced, ignore_errors=True)
