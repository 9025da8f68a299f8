"""How the demo's small LLaMA learns, from scratch, to ground sentences in windows of demo films.

`train_dense.py` is its command. Writes `base/` (the LLM and its tokenizer) and `dense/` (the run
folder with the frame adapter). A step takes a few windows and asks each of them many questions in
one packed sequence (`model.packing`). What helps an LLM of a few million parameters to learn this
from nothing in an hour on two cores: captioning questions that teach what frames and frame numbers
mean, most of them at the start; frame positions in digits (`model.projector`); and, in training
only, a pointer loss half-way up the LLM that asks which frames each question is about.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from revisionllm.demo.training.dense_data import (
    FEATURE_FPS,
    FRAMES_PER_WINDOW,
    STRIDE_S,
    WINDOW_S,
    PackedBatch,
    Packer,
    WindowSampler,
    random_window,
)
from revisionllm.demo.training.dense_losses import Pointer, forward
from revisionllm.demo.training.dense_readout import FrameReadout
from revisionllm.demo.training.film_features import training_films
from revisionllm.demo.training.frame_training import draw_windows, teach_frames
from revisionllm.demo.training.loop import Loop, moved, share
from revisionllm.files import write_json
from revisionllm.model.devices import choose_device

log = logging.getLogger("train_dense")


@dataclass
class Sizes:
    """The LLM's shape. Vocabulary and positions just fit the demo's prompts."""

    hidden_size: int = 192
    layers: int = 7
    heads: int = 6
    intermediate_size: int = 512
    vocab_size: int = 700
    max_positions: int = 512
    temporal_layers: int = 6
    temporal_kernel: int = 7


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
            feature_dim=clip_dim(args.clip),
            hidden_size=sizes.hidden_size,
            options={
                "input_norm": True,
                "temporal_layers": sizes.temporal_layers,
                "temporal_kernel": sizes.temporal_kernel,
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


def clip_dim(folder: Path) -> int:
    """D, from the CLIP's configuration."""
    config = json.loads((Path(folder) / "open_clip_config.json").read_text())
    return int(config["model_cfg"]["embed_dim"])


def write_tokenizer(folder: Path, vocab_size: int, seed: int) -> None:
    """Train the LLM's tokenizer on prompts, sentences, captions and answers of training films."""
    from revisionllm.demo.training.clip_data import plan_films, sample_frames
    from revisionllm.demo.training.dense_data import CAPTION_QUESTION, SPAN_QUESTION
    from revisionllm.demo.training.tokenizers import train_llm_tokenizer
    from revisionllm.demo.world.language import FactIndex, event_query
    from revisionllm.formats.questions import question_text
    from revisionllm.grounding.answers import NOT_PRESENT, format_span
    from revisionllm.model.prompts import SYSTEM, prompt_text

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


def make_batch(
    films, sampler: WindowSampler, packer: Packer, windows: int, rng, device: torch.device
) -> PackedBatch:
    """Draw `windows` random windows with their questions."""
    drawn = [sampler.window(*random_window(films, rng), rng) for _ in range(windows)]
    return moved(packer.batch(drawn), device)


def validate(model, pointer, packer, films, sampler, args, batches: int = 10) -> str:
    """Losses and hits on validation films."""
    rng = np.random.default_rng(12345)
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        outputs = [
            forward(
                model,
                pointer,
                make_batch(films, sampler, packer, 4, rng, device),
                packer,
                args.pointer_layer,
            )
            for _ in range(batches)
        ]
    model.train()
    loss = sum(o.answer_loss.item() for o in outputs) / batches
    return f"loss {loss:.3f} {share([o.hits for o in outputs])}"


def train(args: argparse.Namespace) -> None:
    """Train, resuming from args.out/dense_state.pt (frames_state.pt, as long as the adapter is
    trained alone) if it is there, and write base/ and dense/."""
    torch.manual_seed(args.seed)
    film_s = args.film_minutes * 60
    films = training_films(args.films, film_s, "train", args.clip, args.cache, args.workers)
    val_films = training_films(args.val_films, film_s, "val", args.clip, args.cache, args.workers)
    device = choose_device(args.device)
    model = build_model(args, args.out)
    packer = Packer(model.tokenizer)
    pointer, tokens = Pointer(Sizes().hidden_size), FrameReadout(Sizes().hidden_size)
    parts = {"model": model, "pointer": pointer, "tokens": tokens}
    for part in parts.values():
        part.to(device)
    log.info(
        "LLM %.2f M parameters, adapter %.2f M",
        sum(p.numel() for p in model.llm.parameters()) / 1e6,
        sum(p.numel() for p in model.projector.parameters()) / 1e6,
    )

    def on_save() -> None:
        checks = WindowSampler(12, 0, "val")
        log.info("val %s", validate(model, pointer, packer, val_films, checks, args))
        write_run(model, args)

    loop = Loop(
        "dense",
        parts,
        steps=args.steps,
        lr=args.lr,
        warmup=args.warmup,
        state_path=args.out / "dense_state.pt",
        save_every=args.save_every,
        on_save=on_save,
        bf16=args.bf16,
    )
    if not loop.resumed:
        frames_path = args.out / "frames_state.pt"
        teach_frames(
            *(model.projector, tokens, films),
            steps=args.frame_steps,
            windows=24,
            lr=args.frame_lr,
            seed=args.seed,
            state_path=frames_path,
            save_every=args.save_every,
        )
        loop.save()
        frames_path.unlink(missing_ok=True)  # a later run must not take it for its own
    model.train()
    for step in loop:
        rng = np.random.default_rng([args.seed, 101, step])
        captions = args.early_captions if step < args.caption_steps else args.captions
        sampler = WindowSampler(
            args.questions,
            captions,
            other_stages=args.other_stages,
            negatives=args.negatives,
        )
        batch = make_batch(films, sampler, packer, args.windows, rng, device)
        drawn = draw_windows(films, args.frame_windows, rng)
        more, table = (part.to(device) for part in drawn)
        with loop.autocast():
            output = forward(model, pointer, batch, packer, args.pointer_layer)
            frame_loss, frame_hits = tokens.frame_loss(model.projector(more), table)
        loop.take(
            output.loss + 0.2 * frame_loss,
            output.hits | {f"token_{name}": hit for name, hit in frame_hits.items()},
            loss=output.answer_loss,
            pointer=output.pointer_loss,
        )
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
    write_json(args.out / "dense" / "training.json", card)
