"""Will it fit, and how long: memory per device, FLOPs and hours of a stage, from shapes alone.

    sh scripts/mad/stage1_dense.sh --estimate
    revisionllm train --recipe my.toml --estimate

A forward and a backward pass run on torch's meta device, where tensors have shapes and no contents:
nothing is loaded. Every tensor that lives is counted (`LiveBytes`), so that recomputed activations,
LoRA and frozen parts are counted as they are. How weights, gradients and optimizer are spread is
ZeRO's arithmetic (https://arxiv.org/abs/1910.02054), over the parts that are trained.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from revisionllm.engine.attention import packed_forward
from revisionllm.errors import UserError
from revisionllm.model import clip_adapter
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.devices import DTYPES
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.lora import new_lora
from revisionllm.model.quantized import BITS, NF4, block_linears
from revisionllm.train.arguments import NO_DEEPSPEED, TrainArguments
from revisionllm.train.initial import (
    NEW_LORA_DROPOUT,
    freeze,
    recompute_activations,
    starting_adapter,
)
from revisionllm.train.losses import QuestionLosses

NAME = "revisionllm_counted"
GIB = 2**30
# name -> GiB, peak TFLOP/s in bfloat16 without sparsity (the makers' data sheets)
GPUS = {
    "RTX 4090": (24, 165),
    "A100 40GB": (40, 312),
    "A100 80GB": (80, 312),
    "H100 80GB": (80, 989),
    "H200 141GB": (141, 989),
}
DEVICES = (1, 2, 4, 8, 16, 32, 64)
SHARE_OF_PEAK = 0.3
RESERVED = 1.5 * GIB  # CUDA context, libraries' workspaces, fragments
MOMENTS = {"adamw": 8, "adamw_8bit": 2}  # bytes of both, per parameter
ZERO = ("zero2", "zero3", "offload")
# of scripts/zero2.json, zero3.json and zero3_offload.json, in numbers
BUCKET, LIVE_PARAMETERS = 50_000_000, 1_000_000_000
# tokens of a MAD question with Vicuna's tokenizer: before the video, behind it for every question,
# of one's own, of an answer; words of a query
BEFORE, SHARED, OWN, ANSWER, WORDS = 35, 8, 17, 7, 16
# where the base is not there yet: the shape of Vicuna-7B
VICUNA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are still alive.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def know(self, tensor: Tensor) -> None:
        """Leave a tensor's storage out: it was there before."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is not None:
            return

        def freed(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: its inputs, its output and a number per row."""

    @staticmethod
    def forward(ctx, counter: FusedAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.counter = counter
        counter.flops += 2 * _product(q, k)
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, *_ = ctx.saved_tensors
        ctx.counter.flops += 5 * _product(q, k)  # recomputed scores, and gradients
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _product(q: Tensor, k: Tensor) -> int:
    """FLOPs of queries times keys, or of weights times values."""
    return 2 * q.numel() * k.shape[-2]


class FusedAttention:
    """Takes the place of `scaled_dot_product_attention`, which has no fused kernel on meta.

    Attributes:
        flops: of the products.
    """

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        """q [B, H, N, D], k and v [B, H or fewer, M, D] to [B, H, N, D]."""
        return _Fused.apply(self, q, k, v)

    @contextmanager
    def inside(self, model: GroundingModel) -> Iterator[None]:
        """Let a model use it: the LLM through transformers' interface, the adapter by its name."""

        def interface(module, query, key, value, attention_mask, **_: Any):
            return self(query, key, value).transpose(1, 2), None

        AttentionInterface.register(NAME, interface)
        usual, own = (
            model.llm.config._attn_implementation,
            clip_adapter.scaled_dot_product_attention,
        )
        model.llm.config._attn_implementation = NAME
        clip_adapter.scaled_dot_product_attention = self
        try:
            yield
        finally:
            model.llm.config._attn_implementation = usual
            clip_adapter.scaled_dot_product_attention = own


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass on one device.

    Attributes:
        frozen_bytes: weights that are not trained, once.
        trained: parameters that are.
        live_bytes: most bytes of activations and gradients at once.
        flops: of the pass, recomputation included.
        kv_bytes_per_token: keys and values of all layers, in evaluation.
    """

    frozen_bytes: int
    trained: int
    live_bytes: int
    flops: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Shape:
    """What a pass reads: `rows` sequences of `frames` video tokens and `text` others, of which
    `answers` are supervised in all; `segments` windows of `window_frames` features behind each
    video (0: the frames themselves). `prefix`: of packed rows, tokens that questions share."""

    rows: int
    frames: int
    text: int
    answers: int
    segments: int
    window_frames: int
    prefix: int = 0


def shape_of(args: TrainArguments) -> Shape:
    """The largest pass: in packed training, windows with one event and its negatives each."""
    questions, asked = args.per_device_batch_size, OWN + ANSWER
    supervised = questions * ANSWER
    if args.stage == "align":
        return Shape(questions, args.frames_per_window, BEFORE + 2 * OWN, questions * OWN, 0, 0)
    if args.stage == "dense" and args.is_packed:
        per_window = min(questions, args.questions_per_window, 1 + args.negatives_per_positive)
        rows = math.ceil(questions / per_window)
        prefix = BEFORE + args.frames_per_window + SHARED
        text = BEFORE + SHARED + per_window * asked
        return Shape(rows, args.frames_per_window, text, supervised, 0, 0, prefix)
    text = BEFORE + SHARED + asked
    if args.stage == "dense":
        return Shape(questions, args.frames_per_window, text, supervised, 0, 0)
    segments = args.num_segments if args.stage == "long" else 1
    if args.sparse_target == "span" and args.stage == "sparse":
        return Shape(questions, args.frames_per_window, text, supervised, 0, 0)
    return Shape(questions, segments, text, supervised, segments, args.frames_per_window)


def build_model(args: TrainArguments, llm_config: Any, adapter: AdapterConfig, dtype: torch.dtype):
    """The stage's model on the meta device, what it trains in float32."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(llm_config).to(dtype)
        adapter = replace(adapter, hidden_size=llm_config.hidden_size)
        projector = build_adapter(adapter).to(dtype)
        model = GroundingModel(llm, projector, None, RunConfig(adapter=adapter))
        if args.row.trains == "lora":
            made = new_lora(
                llm,
                rank=args.lora_rank,
                alpha=args.lora_alpha,
                dropout=NEW_LORA_DROPOUT if args.lora_dropout is None else args.lora_dropout,
                targets=args.lora_targets,
            )
            model.attach_lora(made)
    freeze(model, args)
    return model


def one_pass(model: GroundingModel, shape: Shape, *, recompute: bool) -> Pass:
    """Count a forward and backward pass of a model on the meta device."""
    QuestionLosses(model).train()
    if recompute:
        recompute_activations(model)
    live, fused = LiveBytes(), FusedAttention()
    for tensor in (*model.parameters(), *model.buffers()):
        live.know(tensor)
    flops = FlopCounterMode(display=False)
    for mode in (live, flops):  # one by one: the counter of FLOPs keeps tensors alive
        with set_checkpoint_early_stop(False), fused.inside(model), torch.device("meta"), mode:
            _losses(model, shape).backward()
        model.zero_grad()
    trained = [p for p in model.parameters() if p.requires_grad]
    config = model.llm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    return Pass(
        frozen,
        sum(p.numel() for p in trained),
        live.peak,
        flops.get_total_flops() + fused.flops // 2,
        2 * config.num_hidden_layers * heads * dim * model.llm.dtype.itemsize,
    )


def in_four_bits(count: Pass, model: GroundingModel) -> Pass:
    """The pass with NF4 weights: one layer's at a time are there in the compute dtype, too."""
    layers = [m.weight for name, m in block_linears(model.llm) if ".lora_" not in name]
    saved = sum(w.nbytes - w.numel() * BITS / 8 for w in layers)
    return replace(
        count,
        frozen_bytes=int(count.frozen_bytes - saved),
        live_bytes=count.live_bytes + max(w.nbytes for w in layers),
    )


def _losses(model: GroundingModel, shape: Shape) -> Tensor:
    """`train.losses` where nothing can depend on contents: the mean loss of the answers."""
    rows, text = shape.rows, shape.text
    width = model.config.adapter.feature_dim
    words = model.llm.get_input_embeddings()(torch.zeros(rows, text, dtype=torch.long))
    if shape.segments:
        images = torch.empty(rows, shape.segments, shape.window_frames, width)
        queries = torch.empty(rows, WORDS, model.config.adapter.width_of_words)
        video = model.embed_frames(images, queries, torch.ones(rows, WORDS), output="segment")
    else:
        images = torch.empty(rows, shape.frames, width)
        video = model.embed_frames(images)
    embeds = torch.cat([video.to(words), words], 1)
    size = embeds.shape[1]
    positions = torch.zeros(rows, size, dtype=torch.long)
    inputs = {"inputs_embeds": embeds, "position_ids": positions, "use_cache": False}
    if shape.prefix:
        packed = torch.zeros(rows, size - shape.prefix, dtype=torch.long)
        found = packed_forward(model.llm, packed, shape.prefix, packed, **inputs)
    else:
        found = model.llm.model(**inputs)
    hidden = found.last_hidden_state.flatten(0, 1)[: shape.answers]
    logits = model.llm.lm_head(hidden).float()
    return cross_entropy(logits, torch.zeros(shape.answers, dtype=torch.long))


def memory(count: Pass, zero: str, devices: int, half: bool, moments: int = 8) -> int:
    """Bytes on each device while training.

    Args:
        count: of a device's pass.
        zero: none, zero2, zero3 or offload.
        devices: how many.
        half: the run's dtype has 16 bits (DeepSpeed then trains a copy in float32).
        moments: bytes of the optimizer's states per parameter.
    """
    trained, frozen = count.trained, count.frozen_bytes
    weight = 2 if half and zero != NO_DEEPSPEED else 4
    master = 4 if weight == 2 else 0
    if zero == NO_DEEPSPEED:
        buckets = 4 * trained if devices > 1 else 0  # of DistributedDataParallel
        return frozen + (4 + moments) * trained + buckets + count.live_bytes
    bucket = min(2 * BUCKET, trained) * weight  # one is filled while the other is sent
    states = (master + moments) * trained / devices
    if zero == "zero2":
        return int(frozen + weight * trained + states + bucket + count.live_bytes)
    whole = frozen + weight * trained
    unit = 2 if half else 4
    gathered = unit * (LIVE_PARAMETERS + BUCKET)  # and what is fetched ahead
    if zero == "offload":
        return int(min(whole, gathered) + bucket + count.live_bytes)
    held = whole / devices
    return int(min(whole, held + gathered) + states + bucket + count.live_bytes)


def flops_per_token(args: TrainArguments) -> float:
    """FLOPs of a forward and backward pass, without recomputation, for each token of the LLM."""
    model = build_model(args, _llm_config(args)[0], _adapter(args), torch.bfloat16)
    shape = shape_of(args)
    tokens = shape.rows * (shape.frames + shape.text)
    return one_pass(model, shape, recompute=False).flops / tokens


def peak_flops(device_name: str) -> float | None:
    """What a GPU can do per second in 16 bits, by its name in CUDA; None: not in `GPUS`."""
    for name, (_, teraflops) in GPUS.items():
        if name.split()[0 if "RTX" not in name else 1] in device_name:
            return teraflops * 1e12
    return None


def estimate(args: TrainArguments) -> str:
    """The page that `--estimate` prints."""
    llm_config, about = _llm_config(args)
    # auto is what a GPU takes, which is asked about here
    auto = "float32" if args.device == "cpu" else "bfloat16"
    dtype = DTYPES[auto if args.dtype == "auto" else args.dtype]
    shape = shape_of(args)
    model = build_model(args, llm_config, _adapter(args), dtype)
    count = one_pass(model, shape, recompute=args.gradient_checkpointing)
    if args.base_dtype == NF4:
        count = in_four_bits(count, model)
    half = dtype != torch.float32
    per_step = count.flops * args.global_batch_size / args.per_device_batch_size
    steps, counted = _steps(args)
    # 4-bit weights are not spread
    kinds = (NO_DEEPSPEED, *(ZERO[:1] if args.base_dtype == NF4 else ZERO))
    moments = MOMENTS[args.optimizer]
    optimizer = (moments + 4 * (half and args.deepspeed != NO_DEEPSPEED)) * count.trained
    lines = [
        f"{args.dataset} {args.stage}: {about}, {str(dtype).removeprefix('torch.')}",
        f"pass: {args.per_device_batch_size} questions in {shape.rows} sequences of"
        f" {shape.frames + shape.text} tokens, {count.flops / 1e12:.1f} TFLOP",
        f"weights: {count.frozen_bytes / GIB:.2f} GiB frozen, {count.trained / 1e6:.1f} M"
        f" parameters trained, their optimizer {optimizer / GIB:.2f} GiB",
        f"activations and gradients at their most: {count.live_bytes / GIB:.2f} GiB"
        f" ({'recomputed' if args.gradient_checkpointing else 'kept'})",
        f"evaluation: keys and values {count.kv_bytes_per_token / 2**20:.3f} MiB a token,"
        f" {count.kv_bytes_per_token * (shape.frames + BEFORE + SHARED) / 2**20:.0f} MiB a prompt",
        f"step: {args.global_batch_size} questions, {per_step / 1e12:.0f} TFLOP; {counted}",
        "",
        "GiB per device (and 1.5 for CUDA)",
        "devices " + "".join(f"{zero:>10}" for zero in kinds),
    ]
    table = {
        devices: {zero: memory(count, zero, devices, half, moments) for zero in kinds}
        for devices in DEVICES
    }
    for devices, row in table.items():
        lines.append(f"{devices:7} " + "".join(f"{size / GIB:10.1f}" for size in row.values()))
    lines += ["", f"hours for {steps:,} steps, at {SHARE_OF_PEAK:.0%} of peak (an assumption)"]
    lines.append("devices " + "".join(f"{name:>12}" for name in GPUS))
    for devices in DEVICES:
        hours = [
            steps * per_step / (devices * peak * 1e12 * SHARE_OF_PEAK) / 3600
            for _, peak in GPUS.values()
        ]
        lines.append(f"{devices:7} " + "".join(f"{hour:12.1f}" for hour in hours))
    lines.append("")
    for name, (size, _) in GPUS.items():
        fitting = [
            zero if first == 1 else f"{zero} from {first} devices"
            for zero in kinds
            if (first := _first_that_fits(table, zero, size * GIB - RESERVED))
        ]
        lines.append(f"{name}: " + (", ".join(fitting) or "nothing fits"))
    return "\n".join(lines)


def _first_that_fits(table: dict[int, dict[str, int]], zero: str, room: float) -> int | None:
    return next((devices for devices, row in table.items() if row[zero] <= room), None)


def _llm_config(args: TrainArguments) -> tuple[Any, str]:
    """The base's config; where the base is not there yet, Vicuna-7B's for what trains on it.

    Raises:
        UserError: the shape of the base is not known.
    """
    from transformers import LlamaConfig

    from revisionllm.model import base
    from revisionllm.model.loading import describe

    place = args.base
    source = args.init_lora or args.base
    if place is None and source and Path(source).exists():
        place = describe(source)[0].base
    if place and Path(place).exists():
        return base.llm_config(place), f"base {place}"
    if "vicuna-7b" not in (place or "").lower() and args.dataset not in ("mad", "chapters"):
        raise UserError(
            f"no base at {place or source}; --estimate reads the base's config.json, --base FOLDER"
            " says where"
        )
    return LlamaConfig(**VICUNA), "the shape of Vicuna-7B (the base is not there)"


def _adapter(args: TrainArguments) -> AdapterConfig:
    """The stage's adapter; where what it starts from is not there, the published shape."""
    sources = [args.init_lora, args.init_adapter, args.init_projector]
    if args.stage == "sparse":  # a new adapter is as wide as the words
        sources.append(args.text_features)
    if all(source is None or Path(source).exists() for source in sources) and any(sources):
        return starting_adapter(args)
    if args.stage in ("sparse", "long"):
        return AdapterConfig(kind="clip", output="segment", options={"ffn_dim": 2048})
    return AdapterConfig(kind="linear")


def _steps(args: TrainArguments) -> tuple[int, str]:
    """Optimizer steps, and how they were counted."""
    from revisionllm.formats.annotations import read_annotations

    if args.max_steps:
        return args.max_steps, f"{args.max_steps:,} steps (--max_steps)"
    paths = args.data_path or []
    if not paths or not all(Path(path).is_file() for path in paths):
        return 1000, "annotations not there: hours for 1,000 steps"
    events = sum(len(read_annotations(path).annotations) for path in paths)
    negatives = 0 if args.stage == "align" else args.negatives_per_positive
    steps = math.ceil(args.epochs * events * (1 + negatives) / args.global_batch_size)
    return steps, f"{events:,} annotations, {args.epochs:g} epochs, {steps:,} steps"
