"""Training launchers: flags for the real parser, inputs as in the table, one line when stuck."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
from tiny_training import ROOT

from revisionllm.train.arguments import accumulation, parse

LAUNCHERS = {
    "mad/stage1_dense.sh": "checkpoints/mad_stage1_dense",
    "mad/stage1_sparse.sh": "checkpoints/mad_stage1_sparse",
    "mad/stage2_long_33.sh": "checkpoints/mad_stage2_long_33",
    "mad/stage2_long_100.sh": "checkpoints/mad_stage2_long_100",
    "chapters/stage1_dense.sh": "checkpoints/chapters_stage1_dense",
    "chapters/stage1_sparse.sh": "checkpoints/chapters_stage1_sparse",
    "chapters/stage2_long_100.sh": "checkpoints/chapters_stage2_long_100",
}
SHELL = shutil.which("dash") or "sh"


def run(script: str, *flags: str, cwd=ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "NUM_", "NNODES"))}
    command = [SHELL, str(ROOT / "scripts" / script), *flags]
    return subprocess.run(command, cwd=cwd, env=kept | variables, capture_output=True, text=True)


def train_flags(line: str) -> list[str]:
    """What a printed command gives to train.py."""
    words = shlex.split(line)
    return words[words.index("revisionllm/train/train.py") + 1 :]


@pytest.mark.parametrize("script", LAUNCHERS)
def test_flags_parse_and_batches_divide(script, tmp_path):
    result = run(script, "--learning_rate", "3e-4", cwd=tmp_path, DRY_RUN="1", NUM_GPUS="8")
    assert result.returncode == 0, result.stderr
    assert "--nproc_per_node 8" in result.stdout
    args = parse(train_flags(result.stdout))
    assert args.output_dir == LAUNCHERS[script] and args.learning_rate == 3e-4
    for num_gpus in (1, 2, 4, 8):
        assert accumulation(args, num_gpus) >= 1


@pytest.mark.parametrize("script", LAUNCHERS)
def test_needs_are_the_inputs_of_the_stage(script):
    lines = (ROOT / "scripts" / script).read_text().splitlines()
    needs = [line.split()[1:] for line in lines if line.startswith("need ")]
    args = parse(train_flags(run(script, DRY_RUN="1").stdout))
    inputs = [[name, path] for name, paths in args.inputs().items() for path in paths]
    assert sorted(needs) == sorted(inputs)


def test_missing_inputs_are_one_line_and_exit_2():
    result = run("mad/stage2_long_33.sh", NUM_GPUS="1")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "checkpoints/mad_stage1_sparse" in result.stderr
    result = run("mad/stage2_long_33.sh", "--init_adapter", "/nowhere", NUM_GPUS="1")
    assert result.returncode == 2 and "mad_stage1_sparse" not in result.stderr


def test_several_machines():
    result = run("mad/stage1_dense.sh", DRY_RUN="1", NNODES="2", NODE_RANK="1", MASTER_ADDR="one")
    assert "--nnodes 2 --node_rank 1 --master_addr one" in result.stdout
    slurm = {"SLURM_NNODES": "4", "SLURM_NODEID": "3", "MASTER_ADDR": "one"}
    result = run("mad/stage1_dense.sh", DRY_RUN="1", **slurm)
    assert "--nnodes 4 --node_rank 3" in result.stdout


@pytest.mark.parametrize("quick", [True, False])
def test_demo_runs_all_stages_and_hands_over(quick):
    flags = ["--quick"] if quick else []
    result = run("demo/train_all.sh", *flags, DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "train.py" in line]
    stages = [parse(train_flags(line)) for line in lines]
    assert [args.stage for args in stages] == ["dense", "sparse", "long", "long"]
    dense, sparse, *long = stages
    assert sparse.init_lora == dense.output_dir
    start = next(line for line in result.stdout.splitlines() if "train_segments.py" in line)
    assert f"--out {sparse.init_adapter} " in start
    for args in long:
        assert (args.init_lora, args.init_adapter) == (dense.output_dir, sparse.output_dir)
    if not quick:  # the script's places are the table's; how long it trains is its own affair
        stages = [replace(args, max_steps=0, dtype="auto") for args in stages]
        defaults = [
            parse(["--dataset", "demo", "--stage", a.stage, "--num_segments", str(a.num_segments)])
            for a in stages
        ]
        assert defaults == stages
