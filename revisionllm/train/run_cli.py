"""`revisionllm run`: run folders to share, and out of unfinished trainings.

    revisionllm run export runs/my_dense --to share/my_dense
    revisionllm run from-checkpoint runs/my_dense/checkpoint-1000 --to out/at_1000

`export` merges the LoRAs into the base, so that `AutoModelForCausalLM.from_pretrained(FOLDER)`
loads the LLM and `FOLDER/run` is a run folder of ours with the adapter, the calibration and the
windows. `from-checkpoint` writes the run folder that a training would have written had it ended at
that step; every command takes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

from revisionllm.errors import UserError

RUN_FOLDER = "run"
CARD = """# {name}

A {family} LLM with an adapter for frame features, which finds when a sentence happens in a long
video; exported by ReVisionLLM {version} from a run of stage {stage}.

- The LLM alone: `AutoModelForCausalLM.from_pretrained("<this folder>")`.
- With its adapter: `revisionllm find film.mp4 "a sentence" --checkpoint <this folder>/run`.

| | |
| --- | --- |
| base | {base} |
| LoRAs merged | {loras} |
| adapter | {adapter}, features {feature_dim} wide |
| CLIP of the features | {clip} |
| windows | {window_s:g} s, {frames} frames, features at {fps:g} per second |
| prompt template | {template} |
| dtype | {dtype} |
| commit | {commit} |

The licences of the base and of the training data apply.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "merge a run's LoRAs into a plain Hugging Face folder, its adapter beside it"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument("run_folder", metavar="RUN", help="run folder or published checkpoint")
    export.add_argument("--to", required=True, metavar="FOLDER", help="must not exist yet")
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="bfloat16",
        help="of the LLM's weights (%(default)s)",
    )
    text = "the run folder of a training that has not ended, as it was at a checkpoint"
    taken = commands.add_parser("from-checkpoint", help=text, description=text)
    taken.add_argument("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoint-1000")
    taken.add_argument("--to", required=True, metavar="FOLDER", help="must not exist yet")


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; returns its exit code."""
    if Path(args.to).exists():
        raise UserError(f"{args.to} exists; give another folder, or move it away")
    return export(args) if args.command == "export" else from_checkpoint(args)


def from_checkpoint(args: argparse.Namespace) -> int:
    """Write a checkpoint's run folder; returns 0."""
    import torch

    from revisionllm.model.loading import save_run
    from revisionllm.train import checkpoints
    from revisionllm.train.arguments import TrainArguments
    from revisionllm.train.initial import initial_model
    from revisionllm.train.losses import QuestionLosses

    folder = Path(args.checkpoint)
    trouble = checkpoints.problem(folder)
    if trouble is not None:
        raise UserError(f"{folder} is no complete checkpoint of a training: {trouble}")
    facts = checkpoints.facts_of(folder)
    known = {item.name for item in fields(TrainArguments)}
    said = {name: value for name, value in facts["arguments"].items() if name in known}
    trained = TrainArguments(**said | {"device": "cpu"})
    model = QuestionLosses(initial_model(trained, dtype="float32"))
    tensors = checkpoints.trained_tensors(folder)
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if wanted.keys() != tensors.keys():
        raise UserError(f"{folder} was trained from something else than {folder.parent} says")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    print(f"wrote {save_run(model.model, args.to)}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Merge and write; returns 0."""
    from revisionllm import __version__
    from revisionllm.files import write_text
    from revisionllm.model.base import DTYPES, cast_llm
    from revisionllm.model.config import CALIBRATION_NAME
    from revisionllm.model.loading import load_model, save_run

    target = Path(args.to)
    if not Path(args.run_folder).exists():
        raise UserError(f"no run at {args.run_folder}; checkpoints/README.md says what makes one")
    model = load_model(args.run_folder, device="cpu", dtype="float32")
    config = model.config
    loras = ", ".join(Path(folder).parent.name or folder for folder in config.lora) or "none"
    cast_llm(model.llm, DTYPES[args.dtype])
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.llm.save_pretrained(partial)
    model.tokenizer.save_pretrained(partial)
    model.merged_lora = []
    model.config = replace(config, base=str(partial.resolve()), base_revision=None, lora=[])
    save_run(model, partial / RUN_FOLDER)
    fitted = Path(args.run_folder) / CALIBRATION_NAME
    if fitted.is_file():
        shutil.copyfile(fitted, partial / RUN_FOLDER / CALIBRATION_NAME)
    card = CARD.format(
        name=target.name,
        family=model.llm.config.model_type,
        version=__version__,
        stage=config.stage,
        base=Path(config.base).name,
        loras=loras,
        adapter=config.adapter.kind,
        feature_dim=config.adapter.feature_dim,
        clip=Path(config.clip).name if config.clip else "not noted",
        window_s=config.window_s,
        frames=config.frames_per_window,
        fps=config.feature_fps,
        template=config.prompt_template,
        dtype=args.dtype,
        commit=config.git_commit or "not noted",
    )
    write_text(partial / "README.md", card)
    os.replace(partial, target)
    print(
        f"wrote {target}: {sum(p.numel() for p in model.llm.parameters()) / 1e6:.1f} M parameters"
    )
    return 0
