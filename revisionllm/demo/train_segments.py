"""Teaches the demo's CLIP adapter (sparse and long stages) to find a sentence in a window's frames.

    python revisionllm/demo/train_segments.py --run checkpoints/demo/dense --out out/segments

The sparse stage asks one bit about a window of a frozen LLM; an adapter that starts from nothing
learns little from that on a CPU. This gives it a start, without the LLM: read-outs of its tokens
say which frames show whom the sentence is about, which show the event, and whether the window
does. Writes a run folder for `train.py --stage sparse --init_adapter` and resumes from
`segments_state.pt` there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import run_entry_point
from revisionllm.files import write_json
from revisionllm.options import Parser, Range

log = logging.getLogger("train_segments")


@dataclass(frozen=True)
class Pairs:
    """N (window, sentence) pairs: features [N, T, D], words [N, L, D] with their mask [N, L], the
    frames that show its actor and its event, bool [N, T], and whether the window has it, [N]."""

    features: object
    words: object
    mask: object
    shown: object
    inside: object
    present: object


def sentence_rows(clip, sentences: Sequence[str]) -> list:
    """What the adapter reads of sentences, a tensor [L, D] each."""
    import torch

    from revisionllm.records.films import query_rows

    distinct = list(dict.fromkeys(sentences))
    words, features = clip.encode_texts(distinct)
    rows = {
        sentence: torch.from_numpy(query_rows(row.numpy(), feature, reads_sentence=True))
        for sentence, row, feature in zip(distinct, words, features.numpy(), strict=True)
    }
    return [rows[sentence] for sentence in sentences]


class PairSampler:
    """Draws windows of training films with sentences.

    Args:
        clip: encodes the sentences.
        frames_per_window: T.
        questions: sentences per window.
        split: wording.
    """

    def __init__(self, clip, frames_per_window: int, questions: int, split: str = "train") -> None:
        from revisionllm.demo.training.dense_data import (
            FEATURE_FPS,
            FEATURE_STEP,
            FRAME_S,
            FRAMES_PER_WINDOW,
            WINDOW_S,
            WindowSampler,
        )
        from revisionllm.grounding.windows import WindowClock

        self.sampler = WindowSampler(questions, 0, split)
        clock = WindowClock(WINDOW_S, frames_per_window, FEATURE_FPS / FEATURE_STEP)
        # feature 0 is in the middle of its share
        self.frames = clock.feature_indices(-FRAME_S / 2, FRAMES_PER_WINDOW)
        self.clip = clip

    def draw(self, films, crossed: int, windows: int, rng) -> Pairs:
        """Pairs of a film's windows and sentences.

        Args:
            films: training films.
            crossed: so many windows of one film, each with an event's sentence, all with all: what
                a search meets. They come first, a row of windows per sentence.
            windows: windows of any film with questions that are hard to tell (`WindowSampler`).
            rng: draws everything.
        """
        from revisionllm.demo.training.dense_data import random_window

        asked = self._crossed(films[int(rng.integers(len(films)))], crossed, rng)
        for _ in range(windows):
            window = self.sampler.window(*random_window(films, rng), rng)
            asked += [(window.features, question) for question in window.questions]
        return self._pairs(asked)

    def _crossed(self, film, count: int, rng) -> list[tuple]:
        """(features, question): sentences of `count` events, each with the windows of all."""
        from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW, random_window

        found = []
        while len(found) < count:
            _, first = random_window([film], rng)
            query = self.sampler.event_of(film, first, rng)
            if query is not None:
                found.append((first, query))
        return [
            (
                film.features[first : first + FRAMES_PER_WINDOW],
                self.sampler.asked_of(film, first, query),
            )
            for _, query in found
            for first, _ in found
        ]

    def _pairs(self, asked) -> Pairs:
        import numpy as np
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW

        shown = np.zeros((len(asked), FRAMES_PER_WINDOW), bool)
        inside = shown.copy()
        for row, (_, question) in enumerate(asked):
            shown[row, list(question.shown)] = True
            if question.span:
                inside[row, question.span[0] : question.span[1] + 1] = True
        words = sentence_rows(self.clip, [question.sentence for _, question in asked])
        mask = [torch.ones(len(word), dtype=torch.bool) for word in words]
        features = np.stack([rows[self.frames] for rows, _ in asked])
        return Pairs(
            torch.from_numpy(features.astype(np.float32)),
            pad_sequence(words, batch_first=True),
            pad_sequence(mask, batch_first=True),
            torch.from_numpy(shown[:, self.frames]),
            torch.from_numpy(inside[:, self.frames]),
            torch.from_numpy(inside.any(1)),
        )


def build_heads(hidden_size: int):
    """Read-outs of tokens: of the global one (present) and of frames (shown, inside)."""
    from torch import nn

    return nn.ModuleDict({"segment": nn.Linear(hidden_size, 1), "frame": nn.Linear(hidden_size, 2)})


def losses(adapter, heads, pairs: Pairs, crossed: int = 0):
    """The loss, and hits: (right, all) of presence, of frames, and of the window that ranks first
    for each of the `crossed` sentences at the beginning."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    tokens = adapter(pairs.features, pairs.words, pairs.mask, output="all")
    present = heads["segment"](tokens[:, 0])[:, 0].float()
    frames = heads["frame"](tokens[:, 1:]).float()
    truth = torch.stack([pairs.shown, pairs.inside], -1)
    loss = cross_entropy(present, pairs.present.float())
    loss = loss + 2 * cross_entropy(frames, truth.float())
    hits = {}
    for name, is_so in (("present", pairs.present), ("absent", ~pairs.present)):
        right = (present > 0) == pairs.present
        hits[name] = (int(right[is_so].sum()), int(is_so.sum()))
    for number, name in enumerate(("shown", "inside")):
        right = (frames[..., number] > 0)[truth[..., number]]
        hits[name] = (int(right.sum()), len(right))
    if crossed:
        rows = present[: crossed**2].unflatten(0, (crossed, crossed))
        shows_it = pairs.present[: crossed**2].unflatten(0, (crossed, crossed))
        chances = rows.log_softmax(1).masked_fill(~shows_it, -torch.inf)
        loss = loss - chances.logsumexp(1).mean()
        best = shows_it.gather(1, rows.argmax(1, keepdim=True))
        hits["ranked"] = (int(best.sum()), crossed)
    return loss, hits


def train(args: argparse.Namespace) -> None:
    """Train, resuming, and write the run folder."""
    import numpy as np
    import torch

    from revisionllm.demo.training.film_features import training_films
    from revisionllm.demo.training.loop import Loop, moved
    from revisionllm.model.clip import load_clip
    from revisionllm.model.config import AdapterConfig
    from revisionllm.model.devices import choose_device
    from revisionllm.model.loading import describe, load_model, save_run

    torch.manual_seed(args.seed)
    told, known = describe(args.run)
    film_s = args.film_minutes * 60
    films = training_films(args.films, film_s, "train", Path(told.clip), args.cache, args.workers)
    device = choose_device(args.device)
    clip = load_clip(told.clip, device=str(device))
    options = {"ffn_dim": args.adapter_ffn_dim, "dropout": 0.0}
    options |= {"digit_position_segments": 100, "reads_sentence": True}
    width = told.adapter.feature_dim
    model = load_model(
        args.run,
        device=str(device),
        dtype="float32",
        adapter=AdapterConfig("clip", width, output="segment", options=options),
        stage="sparse",
        question="yes_no",
        frames_per_window=args.frames_per_window,
    )
    adapter = model.projector.requires_grad_(True)
    numbers = known.tensors.get("position.table")
    if numbers is not None and numbers.shape == adapter.position.table.shape:
        adapter.position.table.data.copy_(numbers)  # the LLM can read these: its frames have them
    heads = build_heads(adapter.hidden_size).to(device)
    sampler = PairSampler(clip, args.frames_per_window, args.questions)

    def on_save() -> None:
        save_run(model, args.out)
        card = {"command": sys.argv, "args": {k: str(v) for k, v in vars(args).items()}}
        write_json(args.out / "training.json", card)

    loop = Loop(
        "segments",
        {"adapter": adapter, "heads": heads},
        steps=args.steps,
        lr=args.lr,
        warmup=args.steps // 20,
        state_path=args.out / "segments_state.pt",
        save_every=args.save_every,
        on_save=on_save,
        bf16=args.bf16,
    )
    adapter.train()
    for step in loop:
        rng = np.random.default_rng([args.seed, 107, step])
        pairs = moved(sampler.draw(films, args.crossed, args.windows, rng), device)
        with loop.autocast():
            loss, hits = losses(adapter, heads, pairs, args.crossed)
        loop.take(loss, hits)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0], ranges={"lr": Range(0, 1e9)})
    add = parser.add_argument
    add("--run", type=Path, default=Path("checkpoints/demo/dense"), help="gives base LLM and CLIP")
    add("--out", type=Path, default=Path("out/train_demo/segments"), help="run folder to write")
    add("--cache", type=Path, default=Path("out/demo_features"), help="features of training films")
    add("--films", type=int, default=64, help="training films")
    add("--film_minutes", type=float, default=60.0, help="their length")
    add("--frames_per_window", type=int, default=100, help="frames the adapter sees of a window")
    add("--adapter_ffn_dim", type=int, default=512, help="feed-forward width of the adapter")
    add("--steps", type=int, default=4000, help="optimizer steps")
    add("--crossed", type=int, default=8, help="sentences per step asked in the others' windows")
    add("--windows", type=int, default=1, help="windows per step with questions hard to tell")
    add("--questions", type=int, default=16, help="sentences per window")
    add("--lr", type=float, default=1e-3, help="peak learning rate")
    add("--save_every", type=int, default=250, help="steps between states and run folders")
    add("--workers", type=int, help="processes for features (one per core, at most 8; 0: none)")
    add("--device", default="auto", help="auto, cpu, cuda ... (%(default)s)")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast")
    add("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return run_entry_point(lambda: train(args) or 0, "train_segments")


if __name__ == "__main__":
    raise SystemExit(main())
