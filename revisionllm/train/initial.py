"""The model a stage starts with: base, adapter and LoRA, the right parts frozen."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
from revisionllm.errors import UserError
from revisionllm.model.config import AdapterConfig, is_run_folder, read_config
from revisionllm.model.devices import DTYPES, choose_attention, choose_device, choose_dtype
from revisionllm.model.llama import GroundingModel
from revisionllm.model.loading import describe, load_model
from revisionllm.model.lora import new_lora, read_lora_config
from revisionllm.train.arguments import TrainArguments

NEW_LORA_DROPOUT = 0.05


def training_dtype(args: TrainArguments) -> str:
    """Name of the dtype that frozen weights have; trained ones are kept in float32."""
    chosen = choose_dtype(args.dtype, choose_device(args.device))
    return next(name for name, dtype in DTYPES.items() if dtype == chosen)


def starting_adapter(args: TrainArguments) -> AdapterConfig:
    """The adapter of `initial_model`, without loading an LLM."""
    source = args.init_lora or args.base
    settings = _config_settings(args) | _adapter_settings(args, source)
    adapter = describe(source, **settings)[0].adapter
    if args.stage == "long" and args.train_projector and adapter.output != "segment":
        # a step sees a part of it only, which data parallel training cannot have
        raise UserError(
            f"--train_projector: the adapter of {args.init_adapter} gives {adapter.output!r};"
            " only one that gives 'segment' is trained in stage long"
        )
    return adapter


def lora_dropout(args: TrainArguments) -> float:
    """--lora_dropout; if it is not given, that of the LoRA which is trained on, or a new one's."""
    if args.lora_dropout is not None:
        return args.lora_dropout
    if args.lora_init != "continue":
        return NEW_LORA_DROPOUT
    source = args.init_lora or args.base
    settings = _config_settings(args) | _adapter_settings(args, source)
    folders = describe(source, **settings)[0].lora
    return read_lora_config(folders[-1]).lora_dropout if folders else NEW_LORA_DROPOUT


def known_clip(args: TrainArguments) -> str | None:
    """Fingerprint of the CLIP whose features the start was trained on; None if nothing says."""
    source = args.init_adapter or args.init_lora
    if not source or not is_run_folder(Path(source)):
        return None
    return read_config(source).clip_fingerprint


def initial_model(args: TrainArguments, *, dtype: str, offload: bool = False) -> GroundingModel:
    """Load what the stage starts from, add what is new, freeze what it does not train.

    Args:
        args: resolved and checked.
        dtype: of the frozen weights.
        offload: leave the model in main memory; DeepSpeed moves it piece by piece.
    """
    source = args.init_lora or args.base
    settings = _config_settings(args) | _adapter_settings(args, source)
    if args.lora_init == "new" or not args.init_lora:
        settings["lora"] = []
    modes = {"continue": "train", "merge_then_new": "merge", "new": "merge", None: "frozen"}
    device = _device(args, offload)
    # a block mask needs an attention that takes masks
    attention = "sdpa" if args.is_packed else choose_attention("auto", device, DTYPES[dtype])
    model = load_model(
        source,
        device=str(device),
        dtype=dtype,
        base_dtype=None if args.base_dtype == "same" else args.base_dtype,
        attention=attention,
        lora_mode=modes[args.lora_init],
        lora_dropout=args.lora_dropout,  # None: as its folder says
        **settings,
    )
    if "adapter" in settings and args.stage in ("align", "dense"):
        _size_like_words(model)
    if args.row.trains == "lora" and model.lora is None:
        made = new_lora(
            model.llm,
            rank=args.lora_rank,
            alpha=args.lora_alpha,
            dropout=lora_dropout(args),
            targets=args.lora_targets,
        )
        model.attach_lora(made)
    if args.row.trains_output_norm:
        _add_output_norm(model)
        _add_frame_projector(model, source, settings)
    freeze(model, args)
    model.config.parent = os.path.abspath(source)
    return model


def _device(args: TrainArguments, offload: bool) -> torch.device:
    if offload or args.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def _config_settings(args: TrainArguments) -> dict[str, Any]:
    """Fields of the run's config that the arguments decide."""
    settings: dict[str, Any] = {
        "stage": "dense" if args.stage == "align" else args.stage,  # a dense run, its LLM untouched
        "question": args.question,
        "answer_end": "inclusive",
        "time_mapping": args.time_mapping,
        "window_s": args.window_s,
        "stride_s": args.window_s / 2,
        "frames_per_window": args.frames_per_window,
        "double_rate_short": args.double_rate_short,
        "feature_fps": args.feature_fps,
        "num_segments": args.num_segments,
        "segment_stride_s": args.segment_stride_s,
    }
    if args.prompt_template:
        settings["prompt_template"] = args.prompt_template
    for name in ("base", "clip"):
        if getattr(args, name):
            settings[name] = _absolute(getattr(args, name))
    return settings


def _absolute(path: str) -> str:
    """Absolute if it is there; ids of a hub and names of open_clip stay as they are."""
    return os.path.abspath(path) if os.path.exists(path) or path.startswith("checkpoints") else path


def _adapter_settings(args: TrainArguments, source: str) -> dict[str, Any]:
    """Which adapter: the source's own, another file's, or (sparse) a new CLIP adapter."""
    given = args.init_adapter or args.init_projector
    if given:
        return {"adapter_file": os.path.abspath(given)}
    if args.stage in ("align", "dense") and not args.init_lora:
        return {"adapter": _new_projector(args)}
    if args.stage != "sparse":
        return {}
    # the released loader wants to know the base and a stage before it can describe a LoRA folder
    extra = {"base": os.path.abspath(args.base)} if args.base else {}
    width = describe(source, **extra)[0].adapter.feature_dim
    options = {"ffn_dim": args.adapter_ffn_dim}
    if args.digit_position_segments:
        options["digit_position_segments"] = args.digit_position_segments
    if args.reads_sentence:
        options["reads_sentence"] = True
    words = _width_of_words(args)
    made = AdapterConfig(
        kind="clip",
        feature_dim=width,
        text_width=None if words == width else words,
        output="segment",
        options=options,
    )
    if made.problems():
        raise UserError("; ".join(made.problems()))
    return {"adapter": made}


def _width_of_words(args: TrainArguments) -> int:
    """Width of the queries' word features; one record tells."""
    records = LmdbRecords(args.text_features)
    keys = records.keys()
    if not keys:
        raise UserError(f"no text features in {args.text_features}")
    return read_query(records, keys[0])[0].shape[1]


def _new_projector(args: TrainArguments) -> AdapterConfig:
    """A linear projector that has learned nothing yet, for features as wide as those there are."""
    from revisionllm.data.stores.feature_store import open_features

    store = open_features(args.features)
    name = next(iter(store.keys()), None)
    if name is None:
        raise UserError(f"no features in {args.features}")
    return AdapterConfig(
        kind="linear", feature_dim=store.shape(name)[1], options={"input_norm": True}
    )


@torch.no_grad()
def _size_like_words(model: GroundingModel) -> None:
    """Make a new projector's tokens as large as the base's words.

    Its features are normalised, so torch's initial weights give tokens of deviation 0.58 where
    words have 0.02 to 0.14: what the layers add to the residual stream would drown in them.
    """
    linear = model.projector.linear
    words = model.llm.get_input_embeddings().weight.float().std()
    factor = words / (linear.weight.float().std() * linear.in_features**0.5)
    linear.weight.mul_(factor)
    linear.bias.mul_(factor)


def _add_output_norm(model: GroundingModel) -> None:
    """Alternating output: a layer norm on the tokens, new unless the adapter brought one."""
    adapter, config = model.projector, model.config.adapter
    if isinstance(adapter.alternate_layer_norm, nn.Identity):
        like = next(adapter.parameters())
        adapter.alternate_layer_norm = nn.LayerNorm(adapter.hidden_size).to(like)
    model.config.adapter = replace(
        config, output="alternate", options=config.options | {"output_norm": True}
    )


def _add_frame_projector(model: GroundingModel, source: str, settings: dict[str, Any]) -> None:
    """Odd steps of alternating output see frames through the dense run's linear projector."""
    adapter, config = model.projector, model.config.adapter
    given = {name: settings[name] for name in ("base",) if name in settings}
    weights = describe(source, **given)[1]
    if adapter.frame_projector is not None or weights is None or weights.kind != "linear":
        return
    if set(weights.tensors) != {"linear.weight", "linear.bias"}:
        raise UserError(f"{source}: its projector has more than a linear map; it cannot alternate")
    like = next(adapter.parameters())
    adapter.frame_projector = nn.Linear(config.feature_dim, config.hidden_size).to(like)
    names = ("weight", "bias")
    adapter.frame_projector.load_state_dict({n: weights.tensors[f"linear.{n}"] for n in names})
    model.config.adapter = replace(config, options=config.options | {"frame_projector": True})


def recompute_activations(model: GroundingModel) -> None:
    """Keep a layer's input alone; the backward pass computes the rest again."""
    with warnings.catch_warnings():  # its coming name is not in all versions that we support
        warnings.simplefilter("ignore", FutureWarning)
        model.llm.gradient_checkpointing_enable({"use_reentrant": False})


def freeze(model: GroundingModel, args: TrainArguments) -> None:
    """Leave trainable what the row says, in float32: small steps are lost in half precision."""
    trains_adapter = args.row.trains == "adapter" or args.train_projector
    model.set_trainable(adapter=trains_adapter, lora=args.row.trains == "lora")
    if args.row.trains_output_norm:
        model.projector.alternate_layer_norm.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
