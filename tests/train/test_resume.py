"""A killed run continues to the same result; how a batch is spread does not matter.

The tests with DeepSpeed start two processes each and are marked slow; DeepSpeed builds a part of
itself the first time, which can take minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import ROOT, flags, losses, metrics

from revisionllm.train import trainer
from revisionllm.train.train import main

SAME = {"rel": 0, "abs": 5e-5}  # losses to 4 digits


class Killed(Exception):
    pass


def weights(run: Path) -> dict[str, torch.Tensor]:
    """LoRA and adapter of a run folder."""
    return load_file(run / "lora" / "adapter_model.safetensors") | load_file(
        run / "adapter.safetensors"
    )


def assert_same_run(run: Path, other: Path, *, atol: float = 1e-6) -> None:
    for kind in ("loss", "loss_present", "loss_not_present"):
        ours, theirs = ([record[kind] for record in metrics(it)] for it in (run, other))
        assert ours == pytest.approx(theirs, **SAME)
    assert [r["step"] for r in metrics(run)] == [r["step"] for r in metrics(other)]
    ours, theirs = weights(run), weights(other)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=0, msg=name)


def die_at(monkeypatch, step: int, *, while_saving: bool = False) -> None:
    """Stop with an exception when a step is logged, or inside the save of that step."""
    original = trainer.checkpoints.complete

    def complete(folder: Path, **facts) -> None:
        if while_saving and folder.name == f"checkpoint-{step}":
            raise Killed
        original(folder, **facts)

    monkeypatch.setattr(trainer.checkpoints, "complete", complete)
    if not while_saving:
        from revisionllm.train.run_log import RunLog

        log = RunLog.on_log

        def on_log(self, args, state, control, **rest):
            log(self, args, state, control, **rest)
            if state.global_step == step:
                raise Killed

        monkeypatch.setattr(RunLog, "on_log", on_log)


@pytest.mark.parametrize(("stage", "while_saving"), [("dense", False), ("sparse", True)])
def test_resume_equals_uninterrupted(trained, tmp_path, monkeypatch, stage, while_saving):
    """With dropout, over the end of an epoch (6 steps of 8 questions) and in micro-batches."""
    settings = {"max_steps": 9, "save_steps": 4, "per_device_batch_size": 4, "num_workers": 0}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(flags(trained, stage, output_dir=whole, **settings)) == 0
    with monkeypatch.context() as patched:
        die_at(patched, 8 if while_saving else 7, while_saving=while_saving)
        with pytest.raises(Killed):
            main(flags(trained, stage, output_dir=run, **settings))
    assert not (run / "config.json").exists()
    assert main(flags(trained, stage, output_dir=run, **settings)) == 0
    assert_same_run(run, whole)
    assert (run / "checkpoint-8.incomplete-1").exists() == while_saving


def test_killed_before_the_run_was_written(trained, tmp_path):
    """All steps done, but no run folder yet: it is written, and nothing is trained again."""
    run = tmp_path / "run"
    argv = flags(trained, "dense", output_dir=run, max_steps=3)
    assert main(argv) == 0
    before = weights(run)
    shutil.rmtree(run / "lora")
    (run / "config.json").unlink()
    assert main(argv) == 0
    after = weights(run)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(losses(run)) == 3


def test_accumulation_does_not_change_the_update(world, tmp_path):
    for per_device in (8, 4, 2):
        settings = {"output_dir": tmp_path / f"{per_device}", "lora_dropout": 0, "max_steps": 3}
        assert main(flags(world, "dense", per_device_batch_size=per_device, **settings)) == 0
    assert_same_run(tmp_path / "4", tmp_path / "8", atol=1e-4)
    assert_same_run(tmp_path / "2", tmp_path / "8", atol=1e-4)


def test_workers_change_nothing(world, tmp_path):
    for workers in (0, 2):
        run = tmp_path / f"{workers}"
        assert main(flags(world, "dense", output_dir=run, num_workers=workers, max_steps=3)) == 0
    assert_same_run(tmp_path / "2", tmp_path / "0")


def start(argv: list[str], *, processes: int = 2) -> subprocess.Popen:
    """The entry file under torch's launcher, as the training launchers start it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", str(processes), "revisionllm/train/train.py", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def kill_when(process: subprocess.Popen, reached) -> None:
    """SIGKILL to the launcher and all its processes as soon as `reached()` holds."""
    deadline = time.monotonic() + 900
    while not reached():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_sigkill_with_deepspeed_on_two_ranks(trained, tmp_path, zero):
    """Killed between saves, then while saving; the third start finishes."""
    settings = {"max_steps": 8, "save_steps": 2, "per_device_batch_size": 2}
    settings |= {"deepspeed": f"scripts/{zero}.json"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert start(flags(trained, "dense", output_dir=whole, **settings)).wait() == 0
    argv = flags(trained, "dense", output_dir=run, **settings)
    log = run / "metrics.jsonl"
    kill_when(start(argv), lambda: log.exists() and '"step": 3' in log.read_text())
    kill_when(start(argv), (run / "checkpoint-6").exists)
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-7")  # and one that tells lies
    (run / "checkpoint-7" / "scheduler.pt").write_bytes(b"")
    assert start(argv).wait() == 0
    assert_same_run(run, whole)
    assert (run / "checkpoint-7" / "scheduler.pt").exists()


@pytest.mark.slow
def test_two_ranks_equal_one(trained, tmp_path):
    """1 x 8, 2 x 4 and 2 x 2 x 2 accumulated: plain, ZeRO-2 and ZeRO-3."""
    cases = {
        "one": (1, 8, "none"),
        "zero2": (2, 4, "scripts/zero2.json"),
        "zero3": (2, 2, "scripts/zero3.json"),
    }
    for name, (processes, per_device, deepspeed) in cases.items():
        settings = {"per_device_batch_size": per_device, "deepspeed": deepspeed, "max_steps": 3}
        settings |= {"lora_dropout": 0, "output_dir": tmp_path / name}
        argv = flags(trained, "dense", **settings)
        assert start(argv, processes=processes).wait() == 0
    assert_same_run(tmp_path / "zero2", tmp_path / "one", atol=1e-4)
    assert_same_run(tmp_path / "zero3", tmp_path / "one", atol=1e-4)


@pytest.mark.slow
def test_alternating_output_under_zero3(trained, tmp_path):
    """Segments in even steps, frames in odd ones, on two ranks; all is gathered."""
    settings = {"per_device_batch_size": 4, "max_steps": 4, "output_dir": tmp_path / "run"}
    argv = flags(trained, "long", "chapters", deepspeed="scripts/zero3.json", **settings)
    assert start(argv).wait() == 0
    assert len(losses(tmp_path / "run")) == 4
    found, before = weights(tmp_path / "run"), weights(trained / "dense")
    assert found["alternate_layer_norm.weight"].shape == (64,)
    assert not torch.equal(found["alternate_layer_norm.bias"], torch.zeros(64))
    moved = [n for n in before if n in found and not torch.equal(found[n], before[n])]
    assert moved and all(".lora_" in name for name in moved)
