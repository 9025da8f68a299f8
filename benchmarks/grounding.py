"""Speed and memory of the engine against the plain loop, on a film of random features.

    python benchmarks/grounding.py                                   # 58.5 M LLaMA, 2 CPU cores
    python benchmarks/grounding.py --full                            # with the segment levels
    python benchmarks/grounding.py --shape tiny --minutes 10 --full  # seconds, to try it out
    python benchmarks/grounding.py --shape vicuna7b --device cuda --dtype bfloat16 \\
        --queries 1 20 640                                           # random weights, one GPU

Measured in one process, medians of --repeats:
  (a)   the plain loop as released: every window for every query, batches of 16, logits of all
        positions, hidden states kept; (a') the same with logits of the last position alone
  floor one bare forward over a prefix, one over packed questions (no prefix to attend to)
  (b)   the engine, every dense window, at each of --queries
  full  the released evaluation (dense, 100 and 33 segments at zooms 4, 2, 1) against the engine's
Answers are scripted so that --positive of the windows are positive. The plain loop is timed on few
batches and counted up to the film; the engine runs the whole film.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.engine.decoder import Decoder
from revisionllm.engine.dense import DenseEngine, shared_tokens
from revisionllm.engine.reference import answer_segments
from revisionllm.engine.segments import SegmentEngine, segment_grammar
from revisionllm.grounding.levels import Level, Question
from revisionllm.grounding.windows import Window, WindowClock, dense_windows
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.options import Parser
from revisionllm.records.films import Query
from revisionllm.search.cost import ModelShape

TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "assets" / "model" / "ckpt_base"
# hidden, layers, heads, intermediate, vocabulary
SHAPES = {
    "tiny": (64, 2, 4, 172, 512),
    "small": (512, 8, 8, 1376, 32000),
    "vicuna7b": (4096, 32, 32, 11008, 32000),
}
FEATURE_DIM, FEATURE_FPS, WINDOW_S, FRAMES = 768, 5.0, 125.0, 250
SEGMENT_STRIDE_S, ZOOMS, LEVELS = 25.0, (4, 2, 1), (100, 33)
# transformers 5.24 gave the argument of `forward` another name and takes the old one until 5.40
CACHE_ARGUMENT = (
    "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"
)
BATCH, NEW_TOKENS, ABSENT_TOKENS = 16, 12, 5  # of the plain loop
CHECKED = 3  # segment answers that are compared with the plain reference's


def build_model(args: argparse.Namespace, *, long: bool) -> GroundingModel:
    """A run with random weights: dense with a linear projector, or long with a clip adapter."""
    hidden, layers, heads, intermediate, vocabulary = SHAPES[args.shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
    )
    dtype = getattr(torch, args.dtype)
    with torch.device(args.device):
        llm = LlamaForCausalLM(config).to(dtype).eval()
        adapter = AdapterConfig("linear", FEATURE_DIM, hidden)
        if long:
            adapter = AdapterConfig("clip", FEATURE_DIM, hidden, "segment")
        module = build_adapter(adapter).to(dtype).eval()
    stage = {"stage": "long", "question": "video"} if long else {}
    run = RunConfig(adapter=adapter, frames_per_window=FRAMES, window_s=WINDOW_S, **stage)
    return GroundingModel(llm, module, load_tokenizer(str(TOKENIZER)), run)


DENSE = Level("dense", "dense", WINDOW_S, WINDOW_S / 2)
SEGMENTS = Level("long", "segments", WINDOW_S, SEGMENT_STRIDE_S)


class RandomFilm:
    """Random frame features of a film, and random sentences with word features about it."""

    def __init__(self, minutes: float, num_queries: int) -> None:
        rng = np.random.default_rng(0)
        self.duration_s, self.key = minutes * 60.0, None
        self.rows = rng.standard_normal((int(self.duration_s * FEATURE_FPS), FEATURE_DIM))
        self.rows = self.rows.astype(np.float32)
        words = ["man", "dog", "car", "boy"], ["opens", "sees", "takes"], ["a door", "a hat", "it"]
        picks = [rng.integers(0, len(part), num_queries) for part in words]
        parts = [[part[i] for i in pick] for part, pick in zip(words, picks, strict=True)]
        self.sentences = [f"a {' '.join(three)}" for three in zip(*parts, strict=True)]
        self.words = [rng.standard_normal((8, FEATURE_DIM)).astype(np.float32)] * num_queries
        self.windows = dense_windows(self.duration_s, window_s=WINDOW_S, stride_s=WINDOW_S / 2)
        self.segments = dense_windows(self.duration_s, window_s=WINDOW_S, stride_s=SEGMENT_STRIDE_S)

    def queries(self, distinct: bool = False) -> list[Query]:
        """The sentences, each with its number behind it if they are to be distinct."""
        return [
            Query(str(i), f"{sentence} {i}" if distinct else sentence, words=words)
            for i, (sentence, words) in enumerate(zip(self.sentences, self.words, strict=True))
        ]

    def window_frames(self, window: Window, config=None) -> np.ndarray:
        """See `records.films.Film`."""
        return self.features(window)

    def features(self, window: Window) -> np.ndarray:
        clock = WindowClock(WINDOW_S, FRAMES, FEATURE_FPS)
        return self.rows[clock.feature_indices(window.start_s, len(self.rows))]


class ScriptedDecoder(Decoder):
    """A decoder whose first choices are scripted: a share of them positive."""

    positive = 0.05

    def _feed(self, parts, history, valid):
        logits, step = super()._feed(parts, history, valid)
        if history is None:
            asks = [ask for _, part in parts for ask in part]
            positions = np.array([ask.position for ask in asks], dtype=np.uint64)
            drawn = positions * np.uint64(2654435761) % np.uint64(2**32) / 2**32
            column = np.searchsorted(self.choices.vocabulary, self.choices.grammar.absent_token)
            logits[:, column] = np.where(drawn < self.positive, -100.0, 100.0)
        return logits, step


def timed(work: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class Memory:
    """Peak memory above what is there at the start: of the device, or of the process."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
        self.start = self._now()

    def _now(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def peak_mb(self) -> float:
        return self._now() - self.start


@torch.inference_mode()
def plain_batch(model: GroundingModel, film: RandomFilm, steps: int, *, released: bool) -> None:
    """One batch of the plain loop: prefill, then `steps` tokens."""
    before, after = model.prompt_pieces(model.question(film.sentences[0]))
    embed = model.llm.get_input_embeddings()
    frames = np.stack([film.features(film.windows[i % len(film.windows)]) for i in range(BATCH)])
    visual = model.embed_frames(torch.from_numpy(frames).to(model.device))
    front, back = (
        embed(torch.tensor([ids] * BATCH, device=model.device)) for ids in (before, after)
    )
    output = model.llm(
        inputs_embeds=torch.cat([front, visual.to(front.dtype), back], 1),
        use_cache=True,
        output_hidden_states=released,
        logits_to_keep=0 if released else 1,
    )
    for _ in range(steps):
        output = model.llm(
            input_ids=output.logits[:, -1:].argmax(-1),
            **{CACHE_ARGUMENT: output.past_key_values},
            use_cache=True,
            output_hidden_states=released,
        )


def plain_dense_s(model: GroundingModel, film: RandomFilm, args, *, released: bool) -> float:
    """Seconds per query of the plain loop over the film, counted up from single batches."""
    count = -(-len(film.windows) // BATCH)
    with_answer = 1 - (1 - args.positive) ** BATCH  # batches that decode a span
    long_s, short_s = (
        timed(lambda s=s: plain_batch(model, film, s, released=released), args.repeats, args.device)
        for s in (NEW_TOKENS - 1, ABSENT_TOKENS - 1)
    )
    return count * (with_answer * long_s + (1 - with_answer) * short_s)


@torch.inference_mode()
def floor_s(model: GroundingModel, film: RandomFilm, args) -> tuple[float, float]:
    """Seconds of a bare forward: per prefix, and per packed question (its own tokens alone)."""
    suffixes = [model.prompt_pieces(model.question(s))[1] for s in film.sentences]
    shared = shared_tokens([*suffixes, model.prompt_pieces(model.question("x"))[1]])
    prefix_length = len(model.prompt_pieces(model.question("x"))[0]) + FRAMES + len(shared)
    length = round(statistics.mean(map(len, suffixes))) - len(shared)
    length += len(DenseEngine(model).choices.opening)
    rows = 4
    embeds = torch.randn(rows, prefix_length, model.llm.config.hidden_size).to(
        model.device, model.llm.dtype
    )
    prefix = timed(
        lambda: model.llm.model(inputs_embeds=embeds, use_cache=False), args.repeats, args.device
    )
    asked = 2048 // length
    ids = torch.ones(asked, length, dtype=torch.long, device=model.device)
    question = timed(
        lambda: model.llm.model(input_ids=ids, use_cache=False), args.repeats, args.device
    )
    return prefix / rows, question / asked


def engine_dense(model: GroundingModel, film: RandomFilm, queries: int, args) -> dict:
    """The engine over all windows for so many queries."""
    questions = [Question(query, (w,)) for query in range(queries) for w in film.windows]
    repeats = args.repeats if queries * len(film.windows) < 5000 else 1
    engine = DenseEngine(model, budget_mb=args.budget_mb)
    engine.decoder = ScriptedDecoder(
        model.llm, engine.choices, engine.budget, engine.cost, explore=1.0
    )
    engine.decoder.positive = args.positive
    memory = Memory(args.device)
    seconds = timed(
        lambda: engine.answer(DENSE, questions, film, film.queries()), repeats, args.device
    )
    tokens = engine.cost.llm_tokens / repeats
    flops = 2 * ModelShape(*(SHAPES[args.shape][i] for i in (0, 1, 3))).llm_params * tokens
    return {
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "peak_mb": memory.peak_mb(),
        "budget_mb": engine.budget.total / 2**20,
    }


def retrieval_calls(num_segments: int) -> dict[int, int]:
    """Forwards of the released retrieval per query: for each group size, over all zooms."""
    return {size: sum(-(-num_segments // (size // zoom)) for zoom in ZOOMS) for size in LEVELS}


@torch.inference_mode()
def plain_retrieval_s(model: GroundingModel, film: RandomFilm, args) -> float:
    """Seconds per query of the released retrieval: every shown position is encoded every time."""
    before, after = model.prompt_pieces(model.question(film.sentences[0]))
    embed = model.llm.get_input_embeddings()
    text = torch.from_numpy(film.words[0])[None].to(model.device)

    def call(size: int) -> None:
        shown = [film.features(film.segments[i % len(film.segments)]) for i in range(size)]
        frames = torch.from_numpy(np.stack(shown))[None].to(model.device)
        tokens = model.embed_frames(frames, text, output="segment")
        front, back = (embed(torch.tensor([i], device=model.device)) for i in (before, after))
        embeds = torch.cat([front, tokens.to(front.dtype), back], 1)
        output = model.llm(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
        for _ in range(NEW_TOKENS - 1):
            output = model.llm(
                input_ids=output.logits[:, -1:].argmax(-1),
                **{CACHE_ARGUMENT: output.past_key_values},
                use_cache=True,
            )

    return sum(
        calls * timed(lambda s=size: call(s), 1, args.device)
        for size, calls in retrieval_calls(len(film.segments)).items()
    )


def zoomed_questions(film: RandomFilm, queries: int) -> list[Question]:
    """The released retrieval's questions: both group sizes at every zoom, over all segments."""
    return [
        Question(query, tuple(film.segments[i : i + size // zoom]), repeat=zoom)
        for query in range(queries)
        for size in LEVELS
        for zoom in ZOOMS
        for i in range(0, len(film.segments), size // zoom)
    ]


def engine_segments(model: GroundingModel, film: RandomFilm, args) -> dict:
    """The engine over the same segment questions, for --full_queries queries."""
    queries = args.full_queries
    engine = SegmentEngine(model, budget_mb=args.budget_mb)
    asked = film.queries(distinct=True)
    questions, answers = zoomed_questions(film, queries), []
    memory = Memory(args.device)
    seconds = timed(
        lambda: answers.extend(engine.answer(SEGMENTS, questions, film, asked)),
        1,
        args.device,
    )
    peak_mb, step = memory.peak_mb(), -(-len(questions) // CHECKED)
    checked = range(0, len(questions), step)
    for number, question in ((i, questions[i]) for i in checked):
        plain = answer_segments(
            model,
            segment_grammar(model, question.num_positions),
            np.stack([film.features(window) for window in question.windows]),
            film.words[question.query],
            asked[question.query].sentence,
            repeat=question.repeat,
        )
        assert answers[number].answer == plain[0], (answers[number], plain)
    return {"seconds": seconds, "peak_mb": peak_mb, "same": len(checked)}


def run_dense(args: argparse.Namespace, film: RandomFilm) -> dict:
    """Dense rows of the report."""
    model = build_model(args, long=False)
    prefix, question = floor_s(model, film, args)
    found: dict = {"prefix_s": prefix, "question_s": question, "engine": {}}
    for queries in tqdm(args.queries, desc="engine", file=sys.stderr):
        row = engine_dense(model, film, queries, args)
        row["per_query_s"] = row["seconds"] / queries
        row["per_question_s"] = row["per_query_s"] / len(film.windows)
        row["floor_ratio"] = row["per_question_s"] / (prefix / queries + question)
        found["engine"][queries] = row
    if args.plain:
        found["a_s"] = plain_dense_s(model, film, args, released=True)
        found["a_last_s"] = plain_dense_s(model, film, args, released=False)
    return found


def print_dense(found: dict, film: RandomFilm, args: argparse.Namespace) -> None:
    """One table."""
    windows = len(film.windows)
    print(f"{args.shape}, {args.dtype}, {args.device}, {args.threads} threads, {windows} windows")
    floor = 1000 * found["prefix_s"], 1000 * found["question_s"]
    print("floor: {:.1f} ms per prefix, {:.2f} ms per question".format(*floor))
    if args.plain:
        print(f"(a)  as released        {found['a_s']:9.2f} s per query and film")
        print(f"(a') last logits alone  {found['a_last_s']:9.2f} s per query and film")
    for queries, row in found["engine"].items():
        line = f"(b)  {queries:4d} queries {row['per_query_s']:9.3f} s per query and film, "
        line += f"{row['floor_ratio']:.2f} x floor"
        if args.plain:
            ratios = [found[name] / row["per_query_s"] for name in ("a_s", "a_last_s")]
            line += ", {:.1f} x faster than (a), {:.1f} x than (a')".format(*ratios)
        line += f", {row['tokens_per_s']:.0f} tokens/s, {row['tflops']:.3g} TFLOP/s"
        if args.peak_tflops:
            line += f" ({100 * row['tflops'] / args.peak_tflops:.0f} % of peak)"
        print(f"{line}, peak {row['peak_mb']:.0f} of {row['budget_mb']:.0f} MiB")


def run_full(args: argparse.Namespace, film: RandomFilm, dense: dict) -> dict:
    """The released evaluation of a film against the engine's, per query."""
    model = build_model(args, long=True)
    ours = engine_segments(model, film, args)
    engine_s = dense["engine"][args.full_queries]["per_query_s"]
    engine_s += ours["seconds"] / args.full_queries
    plain_s = dense["a_s"] + plain_retrieval_s(model, film, args)
    return {"plain_s": plain_s, "engine_s": engine_s, "ratio": plain_s / engine_s, **ours}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="small", help="of the LLM (%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--dtype", default="float32", help="of the weights (%(default)s)")
    add("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    add("--minutes", type=float, default=120.0, help="length of the film (%(default)s)")
    add("--queries", type=int, nargs="+", default=[1, 20, 200], help="queries per film")
    add("--positive", type=float, default=0.05, help="share of positive windows (%(default)s)")
    add("--repeats", type=int, default=3, help="of what takes less than minutes (%(default)s)")
    add("--budget_mb", type=int, default=None, help="of the engine; unset: by the device")
    add("--plain", action=argparse.BooleanOptionalAction, default=True, help="run (a) and (a')")
    add("--full", action="store_true", help="compare the whole released evaluation too")
    add("--full_queries", type=int, default=20, help="queries of that comparison (%(default)s)")
    add("--peak_tflops", type=float, default=None, help="of the device, to give shares of it")
    add("--json", help="also write all numbers to this file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what the flags ask for and print one table."""
    args = build_parser().parse_args(argv)
    if args.full and not (args.plain and args.full_queries in args.queries):
        build_parser().error("--full needs --plain, and --full_queries among --queries")
    torch.set_num_threads(args.threads)
    film = RandomFilm(args.minutes, max([*args.queries, args.full_queries]))
    found = run_dense(args, film)
    print_dense(found, film, args)
    if args.full:
        full = found["full"] = run_full(args, film, found)
        line = "full evaluation, {plain_s:.1f} s per query as released, {engine_s:.2f} s ours:"
        line += " {ratio:.1f} x; segments' peak {peak_mb:.0f} MiB; {same} answers checked equal"
        print(line.format(**full))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
