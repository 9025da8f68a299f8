"""Arguments of training: one dataclass, every field with its meaning and unit.

Fields that are None take the value of the stage's row in `stages.py`. `resolve` fills them in and
reports everything that is contradictory or missing in one message, before anything is loaded.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.model.hub import is_reference, local, missing
from revisionllm.model.quantized import GET, NF4, is_there
from revisionllm.options import Parser, problems
from revisionllm.train.stages import DATASETS, STAGES, Stage, find_stage

# rate of the share of steps behind the warm-up, 0..1
SCHEDULES = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
# ours -> the Trainer's
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
LORA_INITS = ("new", "continue", "merge_then_new")
# arguments that take a model of the hub, too
MODELS = ("base", "init_projector", "init_lora", "init_adapter", "clip")
NO_DEEPSPEED = "none"
# input -> what makes it
MADE_BY = {
    "data_path": "data/README.md names the converter",
    "features": "data/README.md says what makes it",
    "text_features": "made by mad_clip_text_extractor.py or chapters_clip_text_extractor.py",
    "val_data_path": "data/README.md names the converter",
    "val_features": "data/README.md says what makes it",
    "val_text_features": "made as --text_features",
    "base": "checkpoints/README.md says where to get it",
    "init_projector": "checkpoints/README.md says where to get it",
    "init_lora": "the stage before writes it; checkpoints/README.md",
    "init_adapter": "the sparse stage writes it; checkpoints/README.md",
    "deepspeed": "scripts/zero2.json, zero3.json and zero3_offload.json come with the repository",
}


def _arg(default: Any, help_text: str, group: str, kind: type | None = None, **extra: Any) -> Any:
    """A field with its help, group and type (that of the default if not given)."""
    metadata = {"help": help_text, "group": group, "type": kind or type(default), **extra}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainArguments:
    """What one run of one stage is made of. None: the value of the stage's row."""

    dataset: str = _arg(
        "mad", f"recipe: {', '.join(DATASETS)}, or a .toml file (also --recipe)", "stage"
    )
    stage: str = _arg("dense", "which row of the curriculum", "stage", choices=STAGES)
    output_dir: str | None = _arg(None, "run folder to write", "stage", str)

    base: str | None = _arg(None, "LLM folder; by default that of --init_lora", "model", str)
    init_projector: str | None = _arg(
        None, "align, dense: linear projector to start from (run, folder or .bin)", "model", str
    )
    init_adapter: str | None = _arg(
        None, "sparse, long: CLIP adapter to start from; sparse makes a new one", "model", str
    )
    adapter_ffn_dim: int = _arg(2048, "sparse: feed-forward width of a new CLIP adapter", "model")
    digit_position_segments: int = _arg(
        0, "sparse: a new CLIP adapter numbers so many segments (small LLMs need it)", "model"
    )
    reads_sentence: bool = _arg(
        False, "sparse: a new CLIP adapter receives the frame-sentence similarity", "model"
    )
    train_projector: bool = _arg(
        False,
        "train the adapter, too; dense: the projector (a new one without --init_projector), long:"
        " the CLIP adapter",
        "model",
    )
    init_lora: str | None = _arg(None, "run or LoRA folder to start from", "model", str)
    lora_init: str | None = _arg(
        None,
        "train the LoRA on, or a new one (on top of the old, merged)",
        "model",
        str,
        choices=LORA_INITS,
    )
    prompt_template: str | None = _arg(
        None,
        "prompt around the question, vicuna_v1 or the base's own chat template (that of the start)",
        "model",
        str,
        choices=("vicuna_v1", "chat"),
    )
    lora_targets: list[str] = _arg(  # noqa: RUF009
        [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ],
        "linear layers that get a new LoRA",
        "model",
        str,
        nargs="+",
    )
    lora_rank: int = _arg(64, "rank of a new LoRA", "model")
    lora_alpha: int = _arg(128, "its scale is alpha / rank", "model")
    lora_dropout: float | None = _arg(
        None,
        "dropout in front of the LoRA, 0..1 (new: 0.05, continued: what it had)",
        "model",
        float,
    )
    clip: str | None = _arg(None, "CLIP of the features, recorded in the run", "model", str)

    data_path: list[str] | None = _arg(  # noqa: RUF009
        None, "annotation files", "data", str, nargs="+"
    )
    features: str | None = _arg(None, "frame features (HDF5, LMDB or .npy folder)", "data", str)
    text_features: str | None = _arg(None, "query features (LMDB)", "data", str)
    val_data_path: list[str] | None = _arg(  # noqa: RUF009
        None, "annotations to look at while training (none: no validation)", "data", str, nargs="+"
    )
    val_features: str | None = _arg(None, "their frame features (--features)", "data", str)
    val_text_features: str | None = _arg(
        None, "their query features (--text_features)", "data", str
    )
    val_queries: int = _arg(100, "queries of validation that are looked at", "data")
    skip_bad: bool = _arg(False, "leave bad annotations out, one line each, and go on", "data")
    window_s: float | None = _arg(None, "length of a window in seconds", "data", float)
    frames_per_window: int | None = _arg(None, "frames the model sees of a window", "data", int)
    feature_fps: float | None = _arg(None, "frame features per second", "data", float)
    segment_stride_s: float | None = _arg(
        None, "long: seconds between starts of segments (window_s / 5)", "data", float
    )
    num_segments: int = _arg(100, "long: segments in one prompt", "data")
    segment_repeats: list[int] = _arg(  # noqa: RUF009
        [1], "long: a row repeats its segments this often", "data", int, nargs="+"
    )
    min_duration_s: float = _arg(0.0, "shorter films are left out, seconds", "data")
    double_rate_short: bool = _arg(
        False, "films shorter than two windows: windows half as long", "data"
    )
    negatives_per_positive: int = _arg(1, "'Not Present' questions per event and epoch", "data")
    sparse_target: str = _arg(
        "yes_no", "sparse question: the paper's, or a span", "data", choices=("yes_no", "span")
    )
    time_mapping: str = _arg(
        "centered", "frames to seconds", "data", choices=("centered", "rounded", "released")
    )
    packed: bool = _arg(True, "dense: all questions of a window in one sequence", "data")
    questions_per_window: int = _arg(32, "packed: most questions about one window", "data")
    num_workers: int = _arg(4, "reading processes per device", "data")

    epochs: float | None = _arg(None, "passes over the data", "optimisation", float)
    max_steps: int = _arg(
        0, "optimizer steps instead of --epochs (0: epochs count)", "optimisation"
    )
    global_batch_size: int | None = _arg(
        None, "questions per optimizer step over all devices", "optimisation", int
    )
    per_device_batch_size: int | None = _arg(
        None, "questions per device and forward pass; accumulation follows", "optimisation", int
    )
    learning_rate: float = _arg(1e-4, "peak", "optimisation", float)
    lr_schedule: str = _arg(
        "cosine", "of the rate after warm-up", "optimisation", choices=tuple(SCHEDULES)
    )
    warmup_ratio: float = _arg(0.03, "part of the steps with rising rate, 0..1", "optimisation")
    weight_decay: float = _arg(0.0, "AdamW's", "optimisation")
    optimizer: str = _arg(
        "adamw",
        "adamw_8bit keeps its states in 8 bits, through bitsandbytes",
        "optimisation",
        choices=tuple(OPTIMIZERS),
    )
    max_grad_norm: float = _arg(1.0, "gradients are clipped to this norm", "optimisation")
    seed: int = _arg(0, "of samples, order, initial weights and dropout", "optimisation")

    deepspeed: str = _arg(
        "scripts/zero2.json", "DeepSpeed config, or none for plain data parallel", "machine"
    )
    device: str = _arg("auto", "GPU if there is one", "machine", choices=("auto", "cpu"))
    dtype: str = _arg(
        "auto",
        "auto: bfloat16 on a GPU that has it, float32 on a CPU",
        "machine",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    base_dtype: str = _arg(
        "same",
        "of the LLM's frozen weights: as --dtype, or nf4 (4 bits, through bitsandbytes)",
        "machine",
        choices=("same", NF4),
    )
    gradient_checkpointing: bool = _arg(True, "recompute activations to save memory", "machine")
    save_steps: int = _arg(1000, "optimizer steps between checkpoints", "machine")
    val_steps: int | None = _arg(
        None, "optimizer steps between looks at validation data (--save_steps)", "machine", int
    )
    logging_steps: int = _arg(10, "optimizer steps between log lines", "machine")
    report_to: list[str] = _arg(  # noqa: RUF009
        ["none"],
        "also log to tensorboard, wandb ... (transformers' names)",
        "machine",
        str,
        nargs="+",
    )

    @property
    def row(self) -> Stage:
        """The stage's row of the table."""
        return find_stage(self.dataset, self.stage)

    @property
    def is_packed(self) -> bool:
        """Several questions of a window in one sequence?"""
        return self.packed and self.stage == "dense"

    @property
    def question(self) -> str:
        """Wording, a key of `formats.questions.QUESTIONS`."""
        words = {"align": "frames", "dense": "frames", "long": "video", "sparse": "yes_no"}
        return "frames" if self.sparse_target == "span" else words[self.stage]

    def inputs(self) -> dict[str, list[str | None]]:
        """Argument -> local paths that must be there before training; None: not given."""
        found = {"data_path": self.data_path or [None], "features": [self.features]}
        if self.row.needs_text:
            found["text_features"] = [self.text_features]
        if self.val_data_path:
            found["val_data_path"] = self.val_data_path
            for name in ("val_features", "val_text_features"):
                if getattr(self, name):
                    found[name] = [getattr(self, name)]
        for name in MODELS[:-1]:
            if getattr(self, name) is not None:
                found[name] = [getattr(self, name)]
        if self.deepspeed != NO_DEEPSPEED:
            found["deepspeed"] = [self.deepspeed]
        return found


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag per field of `TrainArguments`; given flags only are set."""
    parser = Parser(
        prog="train",
        description="Train one stage of the curriculum.",
        epilog="Defaults that are not shown come from the recipe, train/recipes/mad.toml.",
        argument_default=argparse.SUPPRESS,
        ranges={},  # `check` reports all problems at once
    )
    groups: dict[str, Any] = {}
    for item in fields(TrainArguments):
        meta = item.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        group = groups[meta["group"]]
        has_default = item.default is not None and item.default is not MISSING
        text = meta["help"] + (f" (default {item.default})" if has_default else "")
        if meta["type"] is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(f"--{item.name}", action=action, help=text)
        else:
            extra = {key: meta[key] for key in ("choices", "nargs") if key in meta}
            flags = ["--dataset", "--recipe"] if item.name == "dataset" else [f"--{item.name}"]
            group.add_argument(*flags, type=meta["type"], help=text, **extra)
    groups["machine"].add_argument(
        "--estimate",
        action="store_true",
        help="print memory per device, FLOPs and hours, from shapes alone; nothing is loaded",
    )
    return parser


def wants_estimate(argv: list[str] | None = None) -> bool:
    """Is `--estimate` among the flags?"""
    return "estimate" in vars(build_parser().parse_args(argv))


def parse(argv: list[str] | None = None) -> TrainArguments:
    """Command line to arguments, the stage's defaults filled in; nothing is checked yet.

    An empty value (`--init_projector ""`) takes a default of the stage away.
    """
    given = {k: None if v == "" else v for k, v in vars(build_parser().parse_args(argv)).items()}
    given.pop("estimate", None)
    args = TrainArguments(**{k: given[k] for k in ("dataset", "stage") if k in given})
    args = replace(args, **(dict(args.row.defaults) | given))
    for name in MODELS:
        setattr(args, name, _in_cache(getattr(args, name)))
    if args.segment_stride_s is None:
        args.segment_stride_s = args.window_s / 5
    args.output_dir = args.output_dir.replace("{num_segments}", str(args.num_segments))
    return args


def _in_cache(place: str | None) -> str | None:
    """A hub's reference as its place in the local cache, if it is there."""
    if place is None or not is_reference(place):
        return place
    try:
        return local(place)
    except UserError:  # `check` says so, together with the rest
        return place


def accumulation(args: TrainArguments, world_size: int) -> int:
    """Micro-batches per optimizer step.

    Raises:
        UserError: the global batch size is not a multiple of devices x batch per device.
    """
    per_pass = args.per_device_batch_size * world_size
    if args.global_batch_size % per_pass:
        raise UserError(
            f"--global_batch_size {args.global_batch_size} is no multiple of {world_size} devices x"
            f" --per_device_batch_size {args.per_device_batch_size} = {per_pass} questions; change"
            " one of them"
        )
    return args.global_batch_size // per_pass


def check(args: TrainArguments, world_size: int = 1) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: every contradiction and every missing file, in one message.
    """
    problems = argument_problems(args)
    if min(args.per_device_batch_size, args.global_batch_size) > 0:
        try:
            accumulation(args, world_size)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{args.dataset} {args.stage}: " + "; ".join(problems))


def argument_problems(args: TrainArguments) -> list[str]:
    """Contradictions, numbers out of range and missing files, one phrase each."""
    return _contradictions(args) + _bad_numbers(args) + _missing(args)


def check_numbers(args: TrainArguments) -> None:
    """Refuse what cannot work, whatever files there are.

    Raises:
        UserError: every contradiction and every number out of range, in one message.
    """
    found = _contradictions(args) + _bad_numbers(args)
    if found:
        raise UserError(f"{args.dataset} {args.stage}: " + "; ".join(found))


def _contradictions(args: TrainArguments) -> list[str]:
    dense, sparse, align = (args.stage == stage for stage in ("dense", "sparse", "align"))
    rules = {
        "stages align and dense have a linear projector, not --init_adapter": (dense or align)
        and args.init_adapter,
        "--init_projector is for stages align and dense": not (dense or align)
        and args.init_projector,
        "stage align needs --base alone, no --init_lora": align
        and (args.init_lora or args.lora_init or not args.base),
        "stage long needs --init_adapter (the sparse stage's run)": args.stage == "long"
        and not args.init_adapter,
        "stage sparse keeps the LoRA as it is: no --lora_init": sparse and args.lora_init,
        "stages sparse and long need --init_lora (a dense run)": args.row.needs_text
        and not args.init_lora,
        "--lora_init continue and merge_then_new need --init_lora": not args.init_lora
        and args.lora_init in ("continue", "merge_then_new"),
        "without --init_lora, --base and --init_projector (or --train_projector, for a new one) are"
        " needed": dense
        and not args.init_lora
        and not (args.base and (args.init_projector or args.train_projector)),
        "--sparse_target span is for stage sparse": args.sparse_target == "span" and not sparse,
        "--segment_repeats is for stage long": args.segment_repeats != [1] and args.stage != "long",
        "--train_projector is for stages dense and long": args.train_projector
        and not (dense or args.stage == "long"),
        "--train_projector: alternating output trains the norm alone": args.train_projector
        and args.row.trains_output_norm,
        "--adapter_ffn_dim, --digit_position_segments and --reads_sentence are for stage sparse's"
        " new adapter": not sparse
        and (args.adapter_ffn_dim, args.digit_position_segments, args.reads_sentence)
        != (2048, 0, False),
        "--val_features, --val_text_features and --val_steps need --val_data_path": not (
            args.val_data_path
        )
        and (args.val_features or args.val_text_features or args.val_steps),
        "float16 needs a GPU": args.dtype == "float16" and args.device == "cpu",
    }
    return [text for text, broken in rules.items() if broken]


def _bad_numbers(args: TrainArguments) -> list[str]:
    found = problems(asdict(args))
    if any(not math.isfinite(n) for n in (args.window_s, args.feature_fps, args.segment_stride_s)):
        return found  # the rules below compare these
    if args.stage == "long" and args.segment_stride_s > args.window_s:
        found.append(
            f"--segment_stride_s {args.segment_stride_s:g} leaves gaps between segments of"
            f" --window_s {args.window_s:g}"
        )
    if args.frames_per_window > args.window_s * args.feature_fps:
        found.append(
            f"--frames_per_window {args.frames_per_window} of {args.window_s * args.feature_fps:g}"
            f" features (--window_s {args.window_s:g} x --feature_fps {args.feature_fps:g})"
        )
    if any(not 1 <= repeat <= args.num_segments for repeat in args.segment_repeats):
        found.append(f"--segment_repeats {args.segment_repeats} outside 1..{args.num_segments}")
    return found


def _missing(args: TrainArguments) -> list[str]:
    found = []
    if (args.base_dtype == NF4 or args.optimizer == "adamw_8bit") and not is_there():
        found.append(f"--base_dtype {NF4} and --optimizer adamw_8bit need bitsandbytes; {GET}")
    for name, paths in args.inputs().items():
        for path in paths:
            if path is None:
                found.append(f"--{name} is needed ({MADE_BY[name]})")
                continue
            if is_reference(path):
                found += _not_in_cache(name, path)
            elif not (Path(path).exists() or Path(f"{path}.h5").exists()):
                hint = missing(path).partition("; ")[2] if name in MODELS else ""
                found.append(f"--{name} {path} is not there ({hint or MADE_BY[name]})")
    return found


def _not_in_cache(name: str, reference: str) -> list[str]:
    try:
        local(reference)
    except UserError as error:
        return [f"--{name}: {error}"]
    return []
