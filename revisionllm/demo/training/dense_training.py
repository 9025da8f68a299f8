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
import filecmp
import json
import logging
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from revisionllm.demo.training.dense_data import (
    FEATURE_FPS,
    FRAMES_PER_WINDOW,
    STRIDE_S,
    WINDOW_S,
    PackedBatch,
    Packer,
    TrainingFilm,
    WindowSampler,
    random_window,
)
from revisionllm.demo.training.dense_losses import Pointer, forward
from revisionllm.demo.training.dense_readout import FrameReadout
from revisionllm.demo.training.film_features import training_films
from revisionllm.demo.training.frame_training import (
    draw_windows,
    rate,
    set_rate,
    share,
    teach_frames,
)
from revisionllm.demo.training.loop import load_state, moved, save_state
from revisionllm.errors import UserError
from revisionllm.files import write_json
from revisionllm.model.base import choose_device

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
    if not args.init:
        write_tokenizer(base, sizes.vocab_size, args.seed)
    else:
        copy_tokenizer(args.init[0] / "base", base)
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


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files of another base."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("tokenizer*")):
        if path.resolve() != (folder / path.name).resolve():
            shutil.copyfile(path, folder / path.name)


def warm_start_from_mean(model, folders: list[Path], films: list[TrainingFilm]) -> None:
    """Start from the mean of the weights that several folders give (`warm_start`).

    It serves where one comes from another by further training: model soups,
    https://arxiv.org/abs/2203.05482.
    """
    states = []
    for folder in folders:
        warm_start(model, folder, films)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    model.load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})


def warm_start(model, folder: Path, films: list[TrainingFilm]) -> None:
    """Start from the weights of an earlier demo folder (base/, dense/, which names its CLIP).

    If its adapter reads another CLIP, this one is made to give the LLM nearly the same tokens from
    its own features, by least squares over frames of `films`. Further layers, of LLM and adapter,
    and wider kernels than it had begin without effect.
    """
    from revisionllm.model.clip import WEIGHTS_NAME
    from revisionllm.model.loading import load_model

    earlier = load_model(folder / "dense", device="cpu", dtype="float32")
    deepen(model.llm, earlier.llm)
    old, new = earlier.projector, model.projector
    for number, mixer in enumerate(new.temporal):
        if number < len(old.temporal):
            mixer.load_state_dict(widened(old.temporal[number], mixer))
        else:  # one more than the earlier adapter had: nothing changes at first
            nn.init.zeros_(mixer.pointwise.weight)
            nn.init.zeros_(mixer.pointwise.bias)
    new.position.load_state_dict(old.position.state_dict())
    clips = [Path(run.clip) / WEIGHTS_NAME for run in (earlier.config, model.config)]
    if filecmp.cmp(*clips, shallow=False):
        new.norm.load_state_dict(old.norm.state_dict())
        new.linear.load_state_dict(old.linear.state_dict())
    else:
        missed = fit_tokens(old, new, earlier.config.clip, films)
        log.info("frame tokens of %s fitted; %.0f %% of their variance missed", folder, missed)


@torch.no_grad()
def fit_tokens(old, new, old_clip, films: list[TrainingFilm]) -> float:
    """Let an adapter give the tokens that another gives for the same frames from another CLIP.

    Returns:
        The part of their variance that this misses, in per cent.
    """
    from revisionllm.demo.training.film_features import film_features
    from revisionllm.model.clip import load_clip

    clip = load_clip(old_clip)
    inputs, tokens = [], []
    for film in films:
        plan = film.plan
        rows = film_features(plan.seed, plan.duration_s, plan.split, clip)
        tokens.append(old.linear(old.norm(torch.from_numpy(rows).float())))
        inputs.append(new.norm(torch.from_numpy(film.features).float()))
    table = torch.cat(inputs)
    table = torch.cat([table, torch.ones(len(table), 1)], 1)
    target = torch.cat(tokens)
    solution = torch.linalg.lstsq(table, target).solution
    new.linear.weight.copy_(solution[:-1].T)
    new.linear.bias.copy_(solution[-1])
    return float(100 * (table @ solution - target).square().mean() / target.var(0).mean())


def deepen(llm, earlier) -> None:
    """Copy the weights of an LLM of the same width and as many or fewer layers.

    The layers that it lacks copy its last ones, each behind its own, and write nothing at first:
    block expansion, https://arxiv.org/abs/2401.02415.
    """
    layers, known = llm.model.layers, earlier.model.layers
    more = len(layers) - len(known)
    if not 0 <= more <= len(known):
        raise UserError(f"cannot grow an LLM of {len(known)} layers to {len(layers)}")
    blocks = []  # the layer to copy, and whether it is there already
    for source in range(len(known)):
        blocks.append((source, False))
        if source >= len(known) - more:
            blocks.append((source, True))
    state = {k: v for k, v in earlier.state_dict().items() if not k.startswith("model.layers.")}
    for number, (source, repeated) in enumerate(blocks):
        for name, value in known[source].state_dict().items():
            writes = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            state[f"model.layers.{number}.{name}"] = 0 * value if repeated and writes else value
    llm.load_state_dict(state)


def widened(old, new) -> dict:
    """The state of a `TemporalMixer` for one that sees as many or more neighbours."""
    state = old.state_dict()
    more = new.depthwise.kernel_size[0] - old.depthwise.kernel_size[0]
    state["depthwise.weight"] = nn.functional.pad(state["depthwise.weight"], (more // 2, more // 2))
    return state


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
    parameters = [p for part in parts.values() for p in part.parameters()]
    log.info(
        "LLM %.2f M parameters, adapter %.2f M",
        sum(p.numel() for p in model.llm.parameters()) / 1e6,
        sum(p.numel() for p in model.projector.parameters()) / 1e6,
    )
    state_path, first_step = args.out / "dense_state.pt", 0
    frames_path = args.out / "frames_state.pt"
    resumes = state_path.exists()
    if args.init and not resumes:
        warm_start_from_mean(model, args.init, films[:3])
        start_heads(pointer, tokens, args.init[-1] / state_path.name)
    for part in parts.values():
        part.to(device)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    parts["optimizer"] = optimizer
    if resumes:
        first_step, _ = load_state(state_path, parts)
    else:
        teach_frames(
            *(model.projector, tokens, films),
            steps=args.frame_steps,
            windows=24,
            lr=args.frame_lr,
            seed=args.seed,
            anchored=bool(args.init),
            state_path=frames_path,
            save_every=args.save_every,
        )
        save_state(state_path, parts, 0)
        frames_path.unlink(missing_ok=True)  # a later run must not take it for its own
    started, recent, losses = time.time(), [], []
    model.train()
    for step in range(first_step, args.steps):
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
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            output = forward(model, pointer, batch, packer, args.pointer_layer)
            frame_loss, frame_hits = tokens.frame_loss(model.projector(more), table)
        optimizer.zero_grad(set_to_none=True)
        (output.loss + 0.2 * frame_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(optimizer, args.lr * rate(step, args.steps, args.warmup))
        optimizer.step()
        recent.append(output.hits | {f"token_{name}": hit for name, hit in frame_hits.items()})
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
            save_state(state_path, parts, step + 1)
            checks = WindowSampler(12, 0, "val")
            log.info("val %s", validate(model, pointer, packer, val_films, checks, args))
            write_run(model, args)
    write_run(model, args)


def start_heads(pointer: Pointer, tokens: FrameReadout, earlier: Path) -> None:
    """Start the heads of the losses from an earlier run's dense_state.pt, if it is there.

    Raises:
        UserError: it has heads that these have not.
    """
    if not earlier.exists():
        return
    state = torch.load(earlier, map_location="cpu", weights_only=True)
    lacking, unknown = pointer.load_state_dict(state["pointer"], strict=False)
    if unknown:
        raise UserError(f"{earlier} has pointer heads of another version: {unknown}")
    log.info("pointer heads that %s lacks: %s", earlier, lacking or "none")
    if "tokens" in state:  # none before the adapter was taught by itself
        tokens.load_state_dict(state["tokens"])


def write_run(model, args: argparse.Namespace) -> None:
    """Write base/ (half precision, as it ships) and the run folder dense/."""
    from transformers import LlamaForCausalLM

    from revisionllm.model.loading import save_run

    half = LlamaForCausalLM(model.llm.config).half()
    half.load_state_dict(model.llm.state_dict())
    half.save_pretrained(args.out / "base")
    save_run(model, args.out / "dense")
    card = {"command": sys.argv, "sizes": asdict(Sizes()), "torch": torch.__version__}
    card["args"] = {
        name: list(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in vars(args).items()
    }
    write_json(args.out / "dense" / "training.json", card)
