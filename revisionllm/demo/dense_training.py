"""How the demo's small LLaMA learns, from scratch, to ground sentences in windows of demo films.

`train_dense.py` is its command. Writes `base/` (the LLM and its tokenizer) and `dense/` (the run
folder with the frame adapter). A step takes a few windows and asks each of them many questions in
one packed sequence (`engine.packing`). What helps an LLM of a few million parameters to learn this
from nothing in an hour on two cores: captioning questions that teach what frames and frame numbers
mean, most of them at the start; frame positions in digits (`model.projector`); and, in training
only, a pointer loss half-way up the LLM that asks which frames each question is about.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from revisionllm.demo.dense_data import (
    FEATURE_FPS,
    FRAMES_PER_WINDOW,
    STRIDE_S,
    WINDOW_S,
    PackedBatch,
    Packer,
    Question,
    WindowSampler,
    random_window,
)
from revisionllm.demo.film_features import training_films
from revisionllm.engine.packing import additive_mask, packed_mask

log = logging.getLogger("train_dense")
FILM_S = 3600.0


@dataclass
class Sizes:
    """The LLM's shape. Vocabulary and positions just fit the demo's prompts."""

    hidden_size: int = 192
    layers: int = 5
    heads: int = 6
    intermediate_size: int = 512
    vocab_size: int = 700
    max_positions: int = 512


# Behind the last prompt token come From, a space piece, two digits, to, a space piece, two digits:
# offsets of the tokens that predict the digits of the first and of the last frame.
DIGIT_OFFSETS = ((2, 3), (6, 7))


class Pointer(nn.Module):
    """Training only: which frames is a question about? Scores first, last and inside per frame."""

    def __init__(self, hidden_size: int, head_dim: int = 64) -> None:
        super().__init__()
        self.ask = nn.Linear(hidden_size, 3 * head_dim)
        self.frame = nn.Linear(hidden_size, 3 * head_dim)
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, asks_BQH: Tensor, frames_BFH: Tensor) -> Tensor:
        """Scores [B, 3, Q, F]."""
        asks = self.ask(asks_BQH).unflatten(-1, (3, -1)).transpose(1, 2)
        frames = self.frame(frames_BFH).unflatten(-1, (3, -1)).transpose(1, 2)
        return asks @ frames.transpose(-1, -2) / math.sqrt(asks.shape[-1])

    def digit_loss(self, packed_BNH: Tensor, frames_BFH: Tensor, batch: PackedBatch) -> Tensor:
        """Cross-entropy of the frame that each digit of an answer is about.

        The token before a digit is to look for its frame itself; the layers above then only copy
        the digit from there.
        """
        row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
        if not len(row):
            return packed_BNH.sum() * 0
        frames = self.frame(frames_BFH).unflatten(-1, (3, -1))
        losses = []
        for end, offsets in enumerate(DIGIT_OFFSETS):
            for offset in offsets:
                tokens = packed_BNH[row, batch.ask[row, question] + offset]
                asks = self.ask(tokens).unflatten(-1, (3, -1))[:, end]
                scores = torch.einsum("nd,nfd->nf", asks, frames[row, :, end])
                target = batch.spans[row, question, end]
                losses.append(
                    functional.cross_entropy(scores.float() / math.sqrt(asks.shape[-1]), target)
                )
        return torch.stack(losses).mean()

    def loss(self, scores: Tensor, spans: Tensor, grounds: Tensor) -> Tensor:
        """Cross-entropy of first and last frame, binary cross-entropy of being inside."""
        first, last, inside = scores.float().unbind(1)
        present = spans[..., 0] >= 0
        if not present.any():
            return scores.sum() * 0
        ends = functional.cross_entropy(first[present], spans[present][:, 0])
        ends = ends + functional.cross_entropy(last[present], spans[present][:, 1])
        frame = torch.arange(scores.shape[-1])
        target = (frame >= spans[..., :1]) & (frame <= spans[..., 1:]) & present[..., None]
        cover = functional.binary_cross_entropy_with_logits(
            inside[grounds] + self.bias, target[grounds].float()
        )
        return ends / 2 + 4 * cover


def build_model(args: argparse.Namespace, out: Path):
    """A fresh `GroundingModel` with its tokenizer trained and written to out/base."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from revisionllm.model.config import AdapterConfig, RunConfig
    from revisionllm.model.llama import GroundingModel, build_adapter

    sizes = Sizes()
    base = out / "base"
    write_tokenizer(base, sizes.vocab_size, args.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.max_positions,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    run = RunConfig(
        base=str(base.resolve()),
        clip=str(Path(args.clip).resolve()),
        adapter=AdapterConfig(
            feature_dim=128,
            hidden_size=sizes.hidden_size,
            options={
                "input_norm": True,
                "temporal_layers": 2,
                "temporal_kernel": 5,
                "digit_position_frames": FRAMES_PER_WINDOW,
            },
        ),
        window_s=WINDOW_S,
        stride_s=STRIDE_S,
        frames_per_window=FRAMES_PER_WINDOW,
        feature_fps=FEATURE_FPS,
    )
    llm = LlamaForCausalLM(config)
    return GroundingModel(llm, build_adapter(run.adapter), tokenizer, run)


def write_tokenizer(folder: Path, vocab_size: int, seed: int) -> None:
    """Train the LLM's tokenizer on prompts, sentences, captions and answers of training films."""
    from revisionllm.data.conversations import SYSTEM, prompt_text, question_text
    from revisionllm.demo.clip_data import plan_films, sample_frames
    from revisionllm.demo.dense_data import CAPTION_QUESTION, SPAN_QUESTION
    from revisionllm.demo.language import FactIndex, event_query
    from revisionllm.demo.tokenizers import train_llm_tokenizer
    from revisionllm.grounding.answers import NOT_PRESENT, format_span

    rng = np.random.default_rng([seed, 11])
    corpus = [frame.caption for frame in sample_frames(plan_films(40, "train"), 2000, rng)]
    for plan in plan_films(40, "train"):
        index = FactIndex(plan)
        queries = (event_query(index, fact, rng) for fact in plan.facts)
        texts = [question_text(q.sentence, "frames") for q in queries if q]
        corpus += [prompt_text(text) + " " + NOT_PRESENT for text in texts]
    numbers = [(i * 37) % 100 for i in range(200)]
    corpus += [format_span(n, n) + prompt_text(CAPTION_QUESTION.format(frame=n)) for n in numbers]
    corpus += [prompt_text(SPAN_QUESTION.format(first=n, last=n)) for n in numbers]
    corpus += [SYSTEM] * 200
    train_llm_tokenizer(corpus, folder, vocab_size)


@dataclass
class Output:
    """Losses and hits of one step; hits are (correct, all) pairs."""

    loss: Tensor
    answer_loss: Tensor
    pointer_loss: Tensor
    hits: dict[str, tuple[int, int]]


def forward(
    model, pointer: Pointer, batch: PackedBatch, packer: Packer, pointer_layer: int
) -> Output:
    """One packed forward pass with its losses."""
    embed = model.llm.get_input_embeddings()
    windows = len(batch.features)
    before = embed(torch.tensor(packer.before)).expand(windows, -1, -1)
    shared = embed(torch.tensor(packer.shared_ids)).expand(windows, -1, -1)
    frames = model.projector(batch.features)
    embeds = torch.cat([before, frames.to(before), shared, embed(batch.ids)], 1)
    prefix = packer.prefix_length
    allowed = packed_mask(batch.owners, prefix, batch.visible)
    positions = torch.cat([torch.arange(prefix).expand(windows, -1), batch.positions], 1)
    result = model.llm.model(
        inputs_embeds=embeds,
        attention_mask=additive_mask(allowed, embeds.dtype),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    packed = result.last_hidden_state[:, prefix:]
    wanted = batch.labels != -100
    logits = model.llm.lm_head(packed[wanted]).float()
    labels = batch.labels[wanted]
    answer_loss = functional.cross_entropy(logits, labels)
    middle = result.hidden_states[pointer_layer]
    first_frame = len(packer.before)
    asks = middle[:, prefix:].gather(1, batch.ask[..., None].expand(-1, -1, middle.shape[-1]))
    scores = pointer(asks, middle[:, first_frame : first_frame + FRAMES_PER_WINDOW])
    pointer_loss = pointer.loss(scores, batch.spans, batch.grounds)
    hits = count_hits(batch, wanted, logits.argmax(-1), labels, scores)
    decision_loss = decision(model, packed, batch)
    frames = middle[:, first_frame : first_frame + FRAMES_PER_WINDOW]
    digit_loss = pointer.digit_loss(middle[:, prefix:], frames, batch)
    copy_loss = copy_head_loss(model, middle, allowed, positions, batch, packer, pointer_layer)
    total = answer_loss + 0.5 * decision_loss + 0.3 * pointer_loss
    total = total + 0.3 * digit_loss + 0.3 * copy_loss + written_digits(model, packed, batch)
    return Output(total, answer_loss, pointer_loss, hits)


def copy_head_loss(
    model, middle, allowed, positions, batch: PackedBatch, packer: Packer, layer_index: int
) -> Tensor:
    """Where one attention head looks when a digit is due: at the frame that carries the digit.

    A head learns to copy a digit only once it looks at the right frame, and is drawn to the right
    frame only once copying pays; asking for the first breaks the circle. Head 0 of the layer above
    the pointers; its own queries and keys, nothing is added to the model.
    """
    row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
    if not len(row):
        return middle.sum() * 0
    layer = model.llm.model.layers[layer_index]
    head_dim = layer.self_attn.head_dim
    states = layer.input_layernorm(middle)
    cos, sin = model.llm.model.rotary_emb(states, positions)
    query = layer.self_attn.q_proj(states)[:, None, :, :head_dim]
    key = layer.self_attn.k_proj(states)[:, None, :, :head_dim]
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    losses = []
    for end, offsets in enumerate(DIGIT_OFFSETS):
        for offset in offsets:
            column = packer.prefix_length + batch.ask[row, question] + offset
            scores = torch.einsum("nd,ntd->nt", query[row, 0, column], key[row, 0])
            scores = scores.float() / math.sqrt(head_dim)
            scores = scores.masked_fill(~allowed[row, 0, column], -1e9)
            target = len(packer.before) + batch.spans[row, question, end]
            losses.append(functional.cross_entropy(scores, target))
    return torch.stack(losses).mean()


def written_digits(model, packed: Tensor, batch: PackedBatch) -> Tensor:
    """Cross-entropy of the digits of present answers, the tokens that say when."""
    row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
    if not len(row):
        return packed.sum() * 0
    offsets = torch.tensor([offset for end in DIGIT_OFFSETS for offset in end])
    column = batch.ask[row, question][:, None] + offsets
    logits = model.llm.lm_head(packed[row[:, None], column]).float()
    return functional.cross_entropy(
        logits.flatten(0, 1), batch.labels[row[:, None], column].flatten()
    )


def decision(model, packed: Tensor, batch: PackedBatch) -> Tensor:
    """Cross-entropy of the first answer token of grounding questions, "From" or "Not".

    Most tokens of an answer follow from the grammar; the one that decides presence would drown in
    the mean over all of them.
    """
    row, question = batch.grounds.nonzero(as_tuple=True)
    column = batch.ask[row, question]
    logits = model.llm.lm_head(packed[row, column]).float()
    return functional.cross_entropy(logits, batch.labels[row, column])


def count_hits(batch, wanted, best, labels, scores) -> dict[str, tuple[int, int]]:
    """Right first tokens of present and absent questions, right later tokens, pointers within 1."""
    correct = torch.zeros_like(wanted)
    correct[wanted] = best == labels
    first = correct.gather(1, batch.ask)
    present = batch.grounds & (batch.spans[..., 0] >= 0)
    absent = batch.grounds & (batch.spans[..., 0] < 0)
    owner_present = present.gather(1, batch.owners.clamp(min=0)) & (batch.owners >= 0)
    later = wanted & owner_present
    caption = wanted & ~batch.grounds.gather(1, batch.owners.clamp(min=0)) & (batch.owners >= 0)
    near = (scores[:, 0].argmax(-1) - batch.spans[..., 0]).abs() <= 1
    return {
        "present": (int(first[present].sum()), int(present.sum())),
        "absent": (int(first[absent].sum()), int(absent.sum())),
        "span_tokens": (int(correct[later].sum()), int(later.sum())),
        "caption_tokens": (int(correct[caption].sum()), int(caption.sum())),
        "pointer": (int(near[present].sum()), int(present.sum())),
    }


def make_batch(films, sampler: WindowSampler, packer: Packer, windows: int, rng) -> PackedBatch:
    """Draw `windows` random windows with their questions."""
    drawn: list[tuple[np.ndarray, list[Question]]] = []
    for _ in range(windows):
        film, first = random_window(films, rng)
        questions = sampler.questions(film, first, rng)
        drawn.append((film.features[first : first + FRAMES_PER_WINDOW], questions))
    return packer.batch(drawn)


def share(hits: list[dict[str, tuple[int, int]]]) -> str:
    """Hits of several steps as text."""
    parts = []
    for name in hits[0]:
        right, total = (sum(h[name][i] for h in hits) for i in (0, 1))
        parts.append(f"{name} {right / max(1, total):.3f}")
    return " ".join(parts)


def validate(model, pointer, packer, films, sampler, args, batches: int = 10) -> str:
    """Losses and hits on validation films."""
    rng = np.random.default_rng(12345)
    model.eval()
    with torch.inference_mode():
        outputs = [
            forward(
                model,
                pointer,
                make_batch(films, sampler, packer, 4, rng),
                packer,
                args.pointer_layer,
            )
            for _ in range(batches)
        ]
    model.train()
    loss = sum(o.answer_loss.item() for o in outputs) / batches
    return f"loss {loss:.3f} {share([o.hits for o in outputs])}"


def save_state(path: Path, model, pointer, optimizer, step: int) -> None:
    """Everything a resumed run needs, written atomically."""
    state = {
        "model": model.state_dict(),
        "pointer": pointer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, str(path) + ".tmp")
    Path(str(path) + ".tmp").replace(path)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then cosine to a twentieth."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def train(args: argparse.Namespace) -> None:
    """Train, resuming from args.out/dense_state.pt if it is there, and write base/ and dense/."""
    torch.manual_seed(args.seed)
    films = training_films(args.films, FILM_S, "train", args.clip, args.cache, args.workers)
    val_films = training_films(4, FILM_S, "val", args.clip, args.cache, args.workers)
    model = build_model(args, args.out)
    packer = Packer(model.tokenizer)
    pointer = Pointer(Sizes().hidden_size)
    parameters = [*model.parameters(), *pointer.parameters()]
    log.info(
        "LLM %.2f M parameters, adapter %.2f M",
        sum(p.numel() for p in model.llm.parameters()) / 1e6,
        sum(p.numel() for p in model.projector.parameters()) / 1e6,
    )
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    state_path, first_step = args.out / "dense_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        pointer.load_state_dict(state["pointer"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
        log.info("resuming at step %d", first_step)
    started, recent, losses = time.time(), [], []
    model.train()
    for step in range(first_step, args.steps):
        rng = np.random.default_rng([args.seed, 101, step])
        captions = args.early_captions if step < args.caption_steps else args.captions
        sampler = WindowSampler(args.questions, captions)
        batch = make_batch(films, sampler, packer, args.windows, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            output = forward(model, pointer, batch, packer, args.pointer_layer)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.step()
        recent.append(output.hits)
        losses.append((output.answer_loss.item(), output.pointer_loss.item()))
        if (step + 1) % 50 == 0:
            spent_s = time.time() - started
            eta_min = spent_s / (step + 1 - first_step) * (args.steps - step - 1) / 60
            mean = np.mean(losses, axis=0)
            log.info(
                "step %d/%d loss %.3f pointer %.3f %s, %.2f s/step, eta %.0f min",
                *(step + 1, args.steps, *mean, share(recent), spent_s / (step + 1 - first_step)),
                eta_min,
            )
            recent, losses = [], []
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_state(state_path, model, pointer, optimizer, step + 1)
            checks = WindowSampler(12, 0, "val")
            log.info("val %s", validate(model, pointer, packer, val_films, checks, args))
            write_run(model, args)
    write_run(model, args)


def write_run(model, args: argparse.Namespace) -> None:
    """Write base/ (half precision, as it ships) and the run folder dense/."""
    from transformers import LlamaForCausalLM

    from revisionllm.model.loading import save_run

    half = LlamaForCausalLM(model.llm.config).half()
    half.load_state_dict(model.llm.state_dict())
    half.save_pretrained(args.out / "base")
    save_run(model, args.out / "dense")
    card = {"command": sys.argv, "sizes": asdict(Sizes()), "torch": torch.__version__}
    card["args"] = {name: str(value) for name, value in vars(args).items()}
    (args.out / "dense" / "training.json").write_text(json.dumps(card, indent=2) + "\n")
