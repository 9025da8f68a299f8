"""`revisionllm train`: stages of a recipe, one after the other, on every GPU of this machine.

    revisionllm train --recipe my.toml                          # the whole curriculum
    revisionllm train --recipe my.toml --stages dense long_33   # some of it; long_N: N segments

Further flags go to every stage (`revisionllm/train/train.py --help` lists them). A stage that
is trained already is left alone and a killed one goes on, so the same command finishes what was
begun. `--estimate` prints memory and hours of each stage and trains nothing. NUM_GPUS=2 takes two
GPUs, or two processes on a CPU; DRY_RUN=1 prints the commands only. On several machines start it on
each with NNODES, NODE_RANK and MASTER_ADDR set, or under `srun`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from revisionllm.errors import UserError

HERE = Path(__file__).resolve().parent
LONG = re.compile(r"long_(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "--recipe", required=True, help="mad, chapters, demo, or a .toml file (docs/own-data.md)"
    )
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="of the recipe's (all); long_33: 33 segments"
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code of the first stage that fails, or 0."""
    from revisionllm.train.arguments import parse

    stages = wanted(args)
    for words in stages:
        parse(["--recipe", args.recipe, *words, *args.flags])  # a wrong flag ends it here
    commands = [command_of(args.recipe, words, args.flags) for words in stages]
    for command in commands:
        print(f"+ {shlex.join(command)}", file=sys.stderr)
        if os.environ.get("DRY_RUN", "0") == "1":
            continue
        code = subprocess.run(command).returncode
        if code:
            return code
    return 0


def wanted(args: argparse.Namespace) -> list[list[str]]:
    """The flags of each stage that is asked for, in the order of the curriculum.

    Raises:
        UserError: the recipe has no such stage.
    """
    from revisionllm.train.stages import read_recipe

    recipe = read_recipe(args.recipe)
    stages = list(recipe)
    # a shipped recipe's alignment has no data of its own: only when asked for
    chosen = args.stages or [name for name in stages if recipe[name].defaults.get("data_path")]
    found = []
    for name in chosen:
        long = LONG.fullmatch(name)
        stage = "long" if long else name
        if stage not in stages:
            raise UserError(f"recipe {args.recipe} has no stage {name}: {', '.join(stages)}")
        words = ["--stage", stage, *(["--num_segments", long[1]] if long else [])]
        found.append((stages.index(stage), words))
    return [words for _, words in sorted(found, key=lambda pair: pair[0])]


def command_of(recipe: str, words: list[str], flags: list[str]) -> list[str]:
    """What starts a stage on all devices of this machine; an estimate needs none of them."""
    if "--estimate" in flags:
        return [sys.executable, str(HERE / "train.py"), "--recipe", recipe, *words, *flags]
    command = [sys.executable, str(HERE / "launch.py"), "--nproc_per_node", str(num_devices())]
    environment = os.environ
    nodes = environment.get("NNODES", environment.get("SLURM_NNODES", "1"))
    if nodes != "1":
        rank = environment.get("NODE_RANK", environment.get("SLURM_NODEID"))
        address = environment.get("MASTER_ADDR") or _first_of_slurm()
        if rank is None or address is None:
            raise UserError(
                f"NNODES={nodes}: set NODE_RANK to this machine's number and MASTER_ADDR to the"
                " first machine's name or address"
            )
        command += ["--nnodes", nodes, "--node_rank", rank, "--master_addr", address]
        command += ["--master_port", environment.get("MASTER_PORT", "29500")]
    return [*command, str(HERE / "train.py"), "--recipe", recipe, *words, *flags]


def num_devices() -> int:
    """NUM_GPUS, else the GPUs that there are, else 1."""
    said = os.environ.get("NUM_GPUS")
    if said is not None:
        if not said.isdecimal() or int(said) < 1:
            raise UserError(f"NUM_GPUS is {said!r}, not a number of devices")
        return int(said)
    import torch

    return max(1, torch.cuda.device_count())


def _first_of_slurm() -> str | None:
    """The first machine of a SLURM job."""
    names = os.environ.get("SLURM_JOB_NODELIST")
    if not names:
        return None
    shown = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True, text=True)
    return next(iter(shown.stdout.split()), None)
