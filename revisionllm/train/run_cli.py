"""`revisionllm run`: run folders to share, and out of unfinished trainings.

    revisionllm run export runs/my_dense --to share/my_dense
    revisionllm run push runs/my_dense hf:owner/name
    revisionllm run from-checkpoint runs/my_dense/checkpoint-1000 --to out/at_1000

`export` merges the LoRAs into the base, so that `AutoModelForCausalLM.from_pretrained(FOLDER)`
loads the LLM and `FOLDER/run` is a run folder of ours with the adapter, the calibration and the
windows. `push` uploads an exported folder, or a run folder with the LoRAs that it goes on top of;
`--checkpoint hf:owner/name` reads it. `from-checkpoint` writes the run folder that a training would
have written had it ended at that step; every command takes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from revisionllm.errors import UserError
from revisionllm.model.config import (
    ADAPTER_NAME,
    CALIBRATION_NAME,
    RunConfig,
    is_run_folder,
    write_config,
)
from revisionllm.model.hub import (
    Reference,
    is_reference,
    local,
    missing,
    parse,
    path_argument,
    reference_to,
)

RUN_FOLDER = "run"
CARD = """---
library_name: revisionllm
tags: [temporal-grounding, video-moment-retrieval]
---

# {name}

A {family} LLM with an adapter for frame features, which finds when a sentence happens in a long
video; made by ReVisionLLM {version} from a run of stage {stage}.

{usage}

| | |
| --- | --- |
| base | {base} |
| LoRAs | {loras} |
| adapter | {adapter}, features {feature_dim} wide |
| CLIP of the features | {clip} |
| windows | {window_s:g} s, {frames} frames, features at {fps:g} per second |
| prompt template | {template} |
| dtype | {dtype} |
| commit | {commit} |

The licences of the base and of the training data apply.
"""
USE_EXPORT = """\
- The LLM alone: `AutoModelForCausalLM.from_pretrained("<this folder>")`.
- With its adapter: `revisionllm find film.mp4 "a sentence" --checkpoint <this folder>/run`.\
"""
USE_RUN = """\
`revisionllm models get {where}`, then `--checkpoint {where}` wherever a run folder is taken.\
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "merge a run's LoRAs into a plain Hugging Face folder, its adapter beside it"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument(
        "run_folder", metavar="RUN", type=path_argument, help="run folder or published checkpoint"
    )
    export.add_argument("--to", required=True, metavar="FOLDER", help="must not exist yet")
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="bfloat16",
        help="of the LLM's weights (%(default)s)",
    )
    text = "upload a run, or an exported folder, to the Hugging Face hub"
    pushed = commands.add_parser("push", help=text, description=text)
    pushed.add_argument(
        "run_folder", metavar="RUN", type=path_argument, help="run folder, or what export wrote"
    )
    pushed.add_argument("to_hub", metavar="hf:OWNER/NAME", help="made if it is not there")
    pushed.add_argument("--base", help="hf: reference of the base, if the run names a folder")
    pushed.add_argument("--clip", help="hf: reference or NAME:TAG, if the run names a folder")
    pushed.add_argument("--public", action="store_true", help="a new one is private otherwise")
    text = "the run folder of a training that has not ended, as it was at a checkpoint"
    taken = commands.add_parser("from-checkpoint", help=text, description=text)
    taken.add_argument("checkpoint", metavar="CHECKPOINT", help="RUN/checkpoint-1000")
    taken.add_argument("--to", required=True, metavar="FOLDER", help="must not exist yet")


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; returns its exit code."""
    if args.command == "push":
        return push(args)
    if Path(args.to).exists():
        raise UserError(f"{args.to} exists; give another folder, or move it away")
    return export(args) if args.command == "export" else from_checkpoint(args)


def from_checkpoint(args: argparse.Namespace) -> int:
    """Write a checkpoint's run folder; returns 0."""
    if not Path(args.checkpoint).is_dir():
        raise UserError(missing(args.checkpoint, "checkpoint"))
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
    trained = TrainArguments(**said | {"device": "cpu", "base_dtype": "same"})
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
    target = Path(args.to)
    if not Path(args.run_folder).exists():
        where = missing(args.run_folder, "run")
        raise UserError(f"{where}; checkpoints/README.md says what makes one")
    from revisionllm.files import write_text
    from revisionllm.model.base import cast_llm
    from revisionllm.model.devices import DTYPES
    from revisionllm.model.loading import load_model, save_run

    model = load_model(args.run_folder, device="cpu", dtype="float32")
    config = model.config
    cast_llm(model.llm, DTYPES[args.dtype])
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.llm.save_pretrained(partial)
    model.tokenizer.save_pretrained(partial)
    model.merged_lora = []
    model.config = replace(config, base=str(partial.resolve()), lora=[])
    save_run(model, partial / RUN_FOLDER)
    fitted = Path(args.run_folder) / CALIBRATION_NAME
    if fitted.is_file():
        shutil.copyfile(fitted, partial / RUN_FOLDER / CALIBRATION_NAME)
    card = card_of(
        config, target.name, USE_EXPORT, dtype=args.dtype, family=model.llm.config.model_type
    )
    write_text(partial / "README.md", card)
    os.replace(partial, target)
    print(
        f"wrote {target}: {sum(p.numel() for p in model.llm.parameters()) / 1e6:.1f} M parameters"
    )
    return 0


def card_of(config: RunConfig, name: str, usage: str, *, dtype: str, family: str) -> str:
    """The model card: what the run is made of, without paths of this machine."""
    from revisionllm import __version__

    return CARD.format(
        name=name,
        family=family,
        usage=usage,
        version=__version__,
        stage=config.stage,
        base=_shown(config.base),
        loras=", ".join(_shown(str(Path(path).parent)) for path in config.lora) or "none",
        adapter=config.adapter.kind,
        feature_dim=config.adapter.feature_dim,
        clip=_shown(config.clip) if config.clip else "not noted",
        window_s=config.window_s,
        frames=config.frames_per_window,
        fps=config.feature_fps,
        template=config.prompt_template,
        dtype=dtype,
        commit=config.git_commit or "not noted",
    )


def _shown(place: str) -> str:
    """A path or name for readers elsewhere."""
    reference = reference_to(place)
    return str(reference) if reference else place if is_reference(place) else Path(place).name


def push(args: argparse.Namespace) -> int:
    """Upload; returns 0."""
    from huggingface_hub import HfApi

    from revisionllm.model.models_cli import hub_errors

    reference = parse(args.to_hub)
    if reference != Reference(reference.repository):
        raise UserError(f"{args.to_hub}: give hf:owner/name alone; it becomes the newest revision")
    folder = Path(args.run_folder)
    if not folder.is_dir():
        raise UserError(missing(args.run_folder, "run"))
    with TemporaryDirectory() as place:
        if not is_run_folder(folder / RUN_FOLDER):
            folder = shareable(args, reference, Path(place) / "share")
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"{len(files)} files, {size:.1f} MB, to {reference}", file=sys.stderr)
        with hub_errors(str(reference)):
            api = HfApi()
            api.create_repo(reference.repository, private=not args.public, exist_ok=True)
            commit = api.upload_folder(
                repo_id=reference.repository,
                folder_path=folder,
                commit_message=f"ReVisionLLM run {Path(args.run_folder).name}",
            )
    print(f"pushed {replace(reference, revision=commit.oid)}")
    return 0


def shareable(args: argparse.Namespace, reference: Reference, target: Path) -> Path:
    """A copy of a run folder that needs nothing of this machine; returns it.

    Raises:
        UserError: its base is a folder here and `--base` does not say where others find it.
    """
    from revisionllm.files import write_text
    from revisionllm.model.base import llm_config
    from revisionllm.model.loading import describe
    from revisionllm.model.lora import CONFIG_FILE, lora_weights_file
    from revisionllm.model.tensors import write_tensors

    config, weights = describe(args.run_folder)
    base = args.base or config.base
    if not (is_reference(base) or reference_to(base)):
        raise UserError(
            f"{args.run_folder} names its base as a folder of this machine, {base}; give --base"
            " hf:owner/name, or push what `revisionllm run export` writes"
        )
    clip = args.clip or config.clip
    if clip and Path(clip).exists() and not reference_to(clip):
        print(f"left out: the CLIP, a folder of this machine, {clip}; see --clip", file=sys.stderr)
        clip = None
    loras = []
    for number, lora in enumerate(config.lora, start=1):
        copy = target / f"lora_{number}"
        copy.mkdir(parents=True)
        for file in (Path(local(lora)) / CONFIG_FILE, lora_weights_file(lora)):
            shutil.copyfile(file, copy / file.name)
        loras.append(str(copy.resolve()))
    if weights is not None:
        write_tensors(weights.tensors, target / ADAPTER_NAME)
    fitted = Path(args.run_folder) / CALIBRATION_NAME
    if fitted.is_file():
        shutil.copyfile(fitted, target / CALIBRATION_NAME)
    file = str((target / ADAPTER_NAME).resolve()) if weights is not None else None
    shared = replace(config, base=base, clip=clip, lora=loras, adapter_file=file, parent=None)
    write_config(shared, target)
    usage = USE_RUN.format(where=reference)
    family = llm_config(config.base).model_type
    named = replace(config, base=base, clip=clip)
    card = card_of(named, reference.repository, usage, dtype="as trained", family=family)
    write_text(target / "README.md", card)
    return target
