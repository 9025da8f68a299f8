"""The layouts of published checkpoints, read as a run config and adapter weights.

`mm_projector.bin`; a LoRA folder with `non_lora_trainables.bin` beside it; a CLIP adapter inside
`mm_projector.` or `cross_attn.`; the layer norm of alternating output. Names are mapped here and
nowhere else. Sources: the formats page of this project, section 1, measured on the released code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from revisionllm.errors import UserError
from revisionllm.files import read_json
from revisionllm.model.config import (
    ADAPTER_NAME,
    AdapterConfig,
    RunConfig,
    is_run_folder,
    read_config,
)
from revisionllm.model.hub import local
from revisionllm.model.lora import CONFIG_FILE
from revisionllm.model.tensors import read_tensors

NON_LORA_NAME = "non_lora_trainables.bin"
NORM = "alternate_layer_norm"
FRAMES = "frame_projector"  # our name of the linear projector beside a CLIP adapter
# base_model.model.model.mm_projector.mm_projector.bias -> (mm_projector, mm_projector.bias)
RELEASED_KEY = re.compile(
    r"^(?:module\.)?(?:base_model\.)?(?:model\.)*(mm_projector|cross_attn|alternate_layer_norm)\.(.+)$"
)
# what the released launchers used; chapters differ in the numbers, which the caller overrides
STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "dense": {"question": "frames", "answer_end": "inclusive"},
    "sparse": {"question": "frames", "answer_end": "inclusive"},
    "long": {"question": "video", "answer_end": "exclusive"},
}


@dataclass
class AdapterWeights:
    """Adapter tensors under this project's names.

    Attributes:
        kind: linear or clip.
        tensors: name -> tensor.
        origin: name -> (file, name in that file).
        unused: (file, name in that file) -> why it is not needed.
    """

    kind: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, str]] = field(default_factory=dict)
    unused: dict[tuple[str, str], str] = field(default_factory=dict)

    def config(self, stage: str) -> AdapterConfig:
        """The config of the run the weights come from; of a published file, what they tell."""
        folder = Path(next(iter(self.origin.values()))[0]).parent
        config = read_config(folder).adapter if is_run_folder(folder) else self._guess(stage)
        if any(key.startswith(NORM) for key in self.tensors):
            config.options = config.options | {"output_norm": True}
        if f"{FRAMES}.weight" in self.tensors:
            config.options = config.options | {"frame_projector": True}
        return config

    def _guess(self, stage: str) -> AdapterConfig:
        name = "linear.weight" if self.kind == "linear" else "mm_projector.weight"
        if name not in self.tensors or self.tensors[name].dim() != 2:
            found = [*self.tensors[name].shape] if name in self.tensors else "missing"
            raise UserError(
                f"adapter: {name} is {found}; a [LLM width, feature dim] matrix is needed"
            )
        hidden_size, feature_dim = self.tensors[name].shape
        has_norm = any(key.startswith(NORM) for key in self.tensors)
        output = "frames" if self.kind == "linear" else "segment"
        # the legacy encoder has no text-to-video layers
        without_text = self.kind == "clip" and not any(
            key.startswith("t2v_encoder.") for key in self.tensors
        )
        return AdapterConfig(
            kind=self.kind,
            feature_dim=feature_dim,
            hidden_size=hidden_size,
            output="alternate" if has_norm and stage == "long" else output,
            options={"num_text_layers": 0} if without_text else {},
        )


def adapter_file_in(path: str | Path) -> Path:
    """The file with adapter weights: `path` itself, or the one inside a run or released folder."""
    path = Path(local(path))
    for name in (ADAPTER_NAME, NON_LORA_NAME, "mm_projector.bin"):
        if (path / name).is_file():
            return path / name
    return path


def read_adapter_weights(paths: list[Path]) -> AdapterWeights | None:
    """Read adapter tensors, those of later files over earlier ones; None if there are none.

    A CLIP adapter replaces a linear projector, whichever comes first, except where a layer norm of
    alternating output stands beside the adapter (chapters): there odd steps send the frames through
    the linear projector. Where the adapter is the projector (MAD), its file has the norm as well.

    Raises:
        UserError: tensors that belong to no adapter, or to a legacy one.
    """
    linear, clip = AdapterWeights("linear"), AdapterWeights("clip")
    norm: dict[str, tuple[Tensor, tuple[str, str]]] = {}
    adapter_files: set[Path] = set()
    for path in paths:
        tensors = read_tensors(path)
        if path.name == ADAPTER_NAME:
            _add_own(linear if "linear.weight" in tensors else clip, tensors, path)
            continue
        for key, tensor in tensors.items():
            group, name = _split_key(key, path)
            origin = (str(path), key)
            if group == NORM:
                norm[f"{NORM}.{name}"] = (tensor, origin)
                continue
            is_linear = group == "mm_projector" and name in ("weight", "bias")
            target, name = (linear, f"linear.{name}") if is_linear else (clip, name)
            target.tensors[name], target.origin[name] = tensor, origin
            if target is clip and group == "mm_projector":
                adapter_files.add(path)
    weights = clip if clip.tensors else linear
    if not weights.tensors:
        return None
    if weights is clip:
        clip.tensors.update({name: tensor for name, (tensor, _) in norm.items()})
        clip.origin.update({name: origin for name, (_, origin) in norm.items()})
        beside = norm and not {Path(origin[0]) for _, origin in norm.values()} & adapter_files
        if beside and set(linear.tensors) == {"linear.weight", "linear.bias"}:
            for name, tensor in linear.tensors.items():
                own = name.replace("linear", FRAMES)
                clip.tensors[own], clip.origin[own] = tensor, linear.origin[name]
        else:
            clip.unused = dict.fromkeys(
                linear.origin.values(), "linear projector: the CLIP adapter has its own"
            )
    else:
        linear.unused = {origin: "layer norm of a CLIP adapter" for _, origin in norm.values()}
    return weights


def _add_own(weights: AdapterWeights, tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors of a run folder of ours: names need no mapping."""
    weights.tensors.update(tensors)
    weights.origin.update({name: (str(path), name) for name in tensors})


def _split_key(key: str, path: Path) -> tuple[str, str]:
    match = RELEASED_KEY.match(key)
    if match is None:
        raise UserError(f"{path}: {key} belongs to no adapter (mm_projector, cross_attn, {NORM})")
    if match[2].startswith("text_mm_projector."):
        raise UserError(
            f"{path}: {key} is of the legacy cross attention without a pretrained adapter"
        )
    return match[1], match[2]


def is_released(path: Path) -> bool:
    """True for a published LoRA folder, a projector file, or a plain base folder or GGUF file."""
    return (path / CONFIG_FILE).is_file() or path.suffix in (".bin", ".gguf") or path.is_dir()


def released_run(
    source: Path,
    *,
    stage: str | None = None,
    adapter_file: str | Path | Sequence[str | Path] | None = None,
    lora: list[str] | None = None,
    **overrides: Any,
) -> tuple[RunConfig, AdapterWeights | None]:
    """Describe a published checkpoint as a run.

    Args:
        source: LoRA folder, `mm_projector.bin`, or base folder / GGUF file.
        stage: dense, sparse or long; a CLIP adapter does not tell its own.
        adapter_file: projector or adapter that the checkpoint expects beside it (file or folder);
            several: chapters' alternating runs have the sparse adapter and `mm_projector.bin`.
        lora: all LoRA folders in order, if `source` goes on top of others; [] for none at all.
        **overrides: fields of `RunConfig`.

    Returns:
        The config, and the adapter weights; None if there are none and `adapter` asks for a new
        one.

    Raises:
        UserError: names what must be given beside the checkpoint.
    """
    has_lora = (source / CONFIG_FILE).is_file()
    loras = [str(path) for path in ([source] if has_lora and lora is None else lora or [])]
    given = [adapter_file] if isinstance(adapter_file, (str, Path)) else adapter_file or []
    files = [adapter_file_in(path) for path in given]
    files += [source] if source.suffix == ".bin" else []
    folders = dict.fromkeys([*map(Path, loras), source])
    files += [f / NON_LORA_NAME for f in folders if (f / NON_LORA_NAME).is_file()]
    new_adapter = "adapter" in overrides and adapter_file is None
    weights = None if new_adapter else read_adapter_weights(files)
    _require(weights, stage, source, new_adapter=new_adapter)
    stage = stage or "dense"
    if "base" not in overrides:
        overrides["base"] = str(_find_base(source, has_lora))
    if weights is not None:
        _report_unused(weights)
        overrides.setdefault("adapter", weights.config(stage))
    settings = {"time_mapping": "released", "merge_dtype": "float16", **STAGE_DEFAULTS[stage]}
    config = RunConfig(
        **{**settings, "parent": str(source), "stage": stage, "lora": loras, "adapter_file": None}
        | overrides
    )
    return config, weights


def _require(
    weights: AdapterWeights | None, stage: str | None, source: Path, new_adapter: bool
) -> None:
    """Say by name what the checkpoint needs beside it."""
    if new_adapter:
        return
    if stage in ("sparse", "long") and (weights is None or weights.kind != "clip"):
        raise UserError(
            f"{source}: a {stage} checkpoint needs the sparse CLIP adapter it was trained with;"
            " give adapter_file (the sparse checkpoint's folder or its non_lora_trainables.bin)"
        )
    if weights is None:
        raise UserError(
            f"{source} holds no projector; give adapter_file (VTimeLLM stage 1: mm_projector.bin)"
        )
    if weights.kind == "clip" and stage is None:
        raise UserError(
            f"{source} has a CLIP adapter, which does not say its stage; give stage sparse or long"
        )


def _find_base(source: Path, has_lora: bool) -> Path:
    """The base that a LoRA folder names, looked for here and beside the folder."""
    if not has_lora:
        if source.suffix == ".bin":
            raise UserError(f"{source} is a projector only; give base (Vicuna-7B v1.5 folder)")
        return source
    name = read_json(source / CONFIG_FILE, kind=dict).get("base_model_name_or_path")
    if not isinstance(name, str | None):
        raise UserError(f"{source / CONFIG_FILE}: base_model_name_or_path is no text")
    for path in (Path(name or ""), source.parent / Path(name or "").name):
        if name and path.is_dir():
            return path.resolve()
    raise UserError(f"{source} was trained on {name!r}, which is not here; give base (its folder)")


def _report_unused(weights: AdapterWeights) -> None:
    for (path, key), reason in weights.unused.items():
        print(f"{path}: {key} is not used ({reason})", file=sys.stderr)
