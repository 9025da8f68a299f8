"""Dense training: queries per second, a window's questions packed, against one query per sample.

    python benchmarks/training.py
    python benchmarks/training.py --shape tiny --rounds 1         # a quick look
    python benchmarks/training.py --shape vicuna7b --device cuda --dtype bfloat16 --peak_tflops 989

A LLaMA with random weights, with prompts as long as MAD's (250 frames) and 10 questions a window,
makes training steps of a LoRA, forward and backward, in one process; both ways in turn, best of
the rounds. On a CPU processor seconds are counted, which other programs disturb less than the
clock; on a GPU the clock. The losses of every question are compared as well. Target: at least 4
times.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.lora import new_lora
from revisionllm.options import Parser
from revisionllm.train.estimate import Shape, one_pass
from revisionllm.train.losses import QuestionLosses

FRAMES, FEATURE_DIM = 250, 768  # MAD
# Tokens of a MAD prompt with Vicuna's tokenizer: before the video, behind it for all questions, a
# question's own, and an answer ("From 05 to 123." has 11, "Not Present" 3).
BEFORE, SHARED, OWN, ANSWER = 35, 8, 17, 7
WANTED_RATIO = 4.0
LARGEST_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.1}  # of a question's loss
# hidden, layers, heads, intermediate
SHAPES = {
    "tiny": (768, 1, 12, 2048),
    "small": (768, 12, 12, 2048),
    "vicuna7b": (4096, 32, 32, 11008),
}


def build_model(shape: str, device: str, dtype: torch.dtype) -> QuestionLosses:
    """LLaMA, frozen linear projector, LoRA of rank 64 on all linear layers; random weights."""
    hidden, layers, heads, intermediate = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )
    adapter = AdapterConfig(feature_dim=FEATURE_DIM, hidden_size=hidden)
    with torch.device(device):
        llm, projector = LlamaForCausalLM(config).to(dtype), build_adapter(adapter).to(dtype)
        model = GroundingModel(llm, projector, None, RunConfig(adapter=adapter))
        model.attach_lora(new_lora(model.llm, dropout=0.0))
    model.to(dtype)
    model.set_trainable(adapter=False, lora=True)
    return QuestionLosses(model).train()


def make_batches(questions: int) -> tuple[dict, dict]:
    """One window's questions as a plain batch, a row each, and as one packed row."""
    draw = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(3, 32000, shape, generator=draw)

    before, shared, own = tokens(BEFORE), tokens(SHARED), tokens(questions, OWN + ANSWER)
    features = torch.randn(1, FRAMES, FEATURE_DIM, generator=draw)
    video = torch.tensor([VIDEO_TOKEN_ID])
    ids = torch.stack([torch.cat([before, video, shared, row]) for row in own])
    labels = ids.clone()
    labels[:, :-ANSWER] = IGNORE_INDEX
    plain = {"input_ids": ids, "labels": labels, "images": features.expand(questions, -1, -1)}
    prefix = BEFORE + FRAMES + SHARED
    target = torch.full_like(own, IGNORE_INDEX)
    target[:, OWN - 1 : -1] = own[:, OWN:]
    packed = {
        "images": features,
        "before_ids": before,
        "shared_ids": shared,
        "ids": own.flatten()[None],
        "labels": target.flatten()[None],
        "owners": torch.arange(questions).repeat_interleave(OWN + ANSWER)[None],
        "positions": torch.arange(prefix, prefix + OWN + ANSWER).repeat(questions)[None],
        "visible": torch.full((1, own.numel()), prefix),
    }
    return plain, packed


def step(model: QuestionLosses, batch: dict, rows: int | None) -> tuple[torch.Tensor, float]:
    """Losses of one forward and backward pass, `rows` at a time, and its seconds."""
    on_gpu = batch["images"].is_cuda
    now = time.perf_counter if on_gpu else time.process_time
    started, losses = now(), []
    count = len(batch["images"])
    for first in range(0, count, rows or count):
        part = batch
        if rows:
            part = {name: value[first : first + rows] for name, value in batch.items()}
        loss = model(**part)
        loss.sum().backward()
        losses.append(loss.detach())
    model.zero_grad()
    if on_gpu:
        torch.cuda.synchronize()
    return torch.cat(losses).float(), now() - started


def tokens_of(batch: dict) -> int:
    """Tokens that the LLM reads, padding and all."""
    frames = len(batch["images"]) * FRAMES
    if "before_ids" in batch:
        frames += len(batch["images"]) * (BEFORE + SHARED)
        return frames + batch["ids"].numel()
    return frames + batch["input_ids"].numel() - len(batch["images"])  # one stands for the video


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if packing is fast enough and changes no loss."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=10, help="about one window (10)")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the LLM (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, or meta: memory by --estimate's count alone"
    )
    parser.add_argument("--dtype", choices=LARGEST_DIFFERENCE, default="float32", help="of weights")
    parser.add_argument("--peak_tflops", type=float, help="of the device, to give shares of it")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = build_model(args.shape, args.device, dtype)
    if args.device == "meta":
        text = BEFORE + SHARED + OWN + ANSWER
        shape = Shape(args.questions, FRAMES, text, args.questions * ANSWER, 0, 0)
        count = one_pass(model.model, shape, recompute=False)
        weights = count.frozen_bytes + dtype.itemsize * count.trained
        print(f"batch {args.questions}: {(weights + count.live_bytes) / 2**30:.1f} GiB estimated")
        return 0
    base = sum(p.numel() for n, p in model.named_parameters() if ".lora_" not in n)
    layers = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
    plain, packed = (
        {
            name: value.to(args.device, dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }
        for batch in make_batches(args.questions)
    )
    ways = {
        "one query per sample, batch 1": (plain, 1),
        f"one query per sample, batch {args.questions}": (plain, None),
        "packed": (packed, None),
    }
    step(model, packed, None)  # warms up
    best: dict[str, float] = {}
    found: dict[str, torch.Tensor] = {}
    for _ in range(args.rounds):
        for name, (batch, rows) in ways.items():
            found[name], seconds = step(model, batch, rows)
            best[name] = min(seconds, best.get(name, seconds))
    print(
        f"{args.shape}, {base / 1e6:.0f} M parameters, {args.dtype}, {args.device}, "
        f"{args.questions} questions a window, {args.threads} threads"
    )
    for name, seconds in best.items():
        tokens = tokens_of(ways[name][0])
        # forward and backward to the inputs: two products of each weight with each token
        tflops = 4 * layers * tokens / seconds / 1e12
        line = f"{name:32} {args.questions / seconds:8.3f} queries/s, {tokens / seconds:8.0f} "
        line += f"tokens/s, {tflops:.3g} TFLOP/s"
        if args.peak_tflops:
            line += f" ({100 * tflops / args.peak_tflops:.0f} % of peak)"
        print(line)
    if args.device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    ratio = min(seconds for name, seconds in best.items() if name != "packed") / best["packed"]
    *unpacked, together = found.values()
    difference = max(float((losses - together).abs().max()) for losses in unpacked)
    print(f"packed is {ratio:.2f} times as fast (target {WANTED_RATIO:g}), ", end="")
    print(f"largest difference of a loss {difference:.1e}")
    return 0 if ratio >= WANTED_RATIO and difference < LARGEST_DIFFERENCE[args.dtype] else 1


if __name__ == "__main__":
    raise SystemExit(main())
