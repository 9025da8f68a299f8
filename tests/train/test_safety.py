"""What would waste or spoil a training is refused before it, in one line; what may change may."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from test_resume import assert_same_run, weights
from tiny_training import FPS, ROOT, WIDTH, flags, metrics

from revisionllm.errors import UserError
from revisionllm.files import locked
from revisionllm.model.config import read_config
from revisionllm.train.arguments import TrainArguments
from revisionllm.train.train import check_same, main


@pytest.fixture
def own(world, tmp_path):
    """Features of one's own to spoil."""
    shutil.copytree(world / "features", tmp_path / "features")
    return tmp_path / "features"


def refusal(argv: list[str], capsys) -> str:
    assert main(argv) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if "error:" in row]
    return line


def spoil(folder, change) -> None:
    rows = np.load(folder / "film1.npy")
    np.save(folder / "film1.npy", change(rows))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: np.where(np.arange(len(rows))[:, None] == 7, np.nan, rows), "row 7 is not"),
        (lambda rows: np.where(np.arange(len(rows))[:, None] == 7, np.inf, rows), "row 7 is not"),
        (lambda rows: rows[:, :5], "features 5 wide, the adapter reads 16"),
        (lambda rows: rows[:16].T, "features"),
        (lambda rows: rows.T[:, :300], "rows and columns swapped"),
        (lambda rows: rows[: len(rows) // 4], "the annotation says"),
    ],
)
def test_bad_features_are_found_before_training(world, own, tmp_path, capsys, change, words):
    spoil(own, change)
    run = tmp_path / "run"
    argv = flags(world, "dense", features=own, output_dir=run, max_steps=1)
    assert refusal(argv, capsys)
    assert words in (run / "log.txt").read_text() or words in capsys.readouterr().err
    assert not (run / "config.json").exists()
    assert main([*argv, "--skip_bad"]) == 0
    found = weights(run)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in found.values())


def test_an_archive_under_the_name_of_an_array(world, own, tmp_path, capsys):
    with (own / "film1.npy").open("wb") as file:
        np.savez(file, features=np.ones((1000, WIDTH), np.float32))
    argv = flags(world, "dense", features=own, output_dir=tmp_path / "run", max_steps=1)
    refusal(argv, capsys)
    assert "npz archive" in (tmp_path / "run" / "log.txt").read_text()


def describe(folder, clips: dict[str, str]) -> None:
    for film, clip in clips.items():
        about = {"feature_fps": FPS, "clip_fingerprint": clip}
        (folder / f"{film}.json").write_text(json.dumps(about))


def test_features_of_another_clip_are_refused(world, own, tmp_path, capsys):
    run = tmp_path / "run"
    describe(own, {"film0": "one", "film1": "two"})
    argv = flags(world, "dense", features=own, output_dir=run, max_steps=1)
    refusal(argv, capsys)
    assert "features of CLIP two" in (run / "log.txt").read_text()
    describe(own, {"film0": "one", "film1": "one"})
    assert main(argv) == 0
    assert read_config(run).clip_fingerprint == "one"
    describe(own, {"film0": "two", "film1": "two"})
    next_run = tmp_path / "next"
    changes = {"init_lora": run, "lora_init": "continue", "output_dir": next_run, "max_steps": 1}
    refusal(flags(world, "dense", features=own, **changes), capsys)
    assert "of one" in (next_run / "log.txt").read_text()


def test_resuming_with_other_data_is_refused(world, own, tmp_path, capsys):
    annotations = tmp_path / "annotations.json"
    shutil.copy(world / "annotations.json", annotations)
    data = {"features": own, "data_path": annotations, "output_dir": tmp_path / "run"}
    argv = flags(world, "dense", max_steps=4, save_steps=2, **data)
    assert main(argv) == 0
    assert main(argv) == 0  # nothing to do
    document = json.loads(annotations.read_text())
    next(iter(document.values()))["sentence"] = "Something else happens."
    annotations.write_text(json.dumps(document))
    assert "other data: annotations" in refusal(argv, capsys)
    shutil.copy(world / "annotations.json", annotations)
    describe(own, {"film0": "one", "film1": "one"})
    assert "other data: features" in refusal(argv, capsys)


def test_another_batch_per_device_goes_on(trained, tmp_path, monkeypatch):
    """After an out-of-memory error one must not start over: a step holds the same questions."""
    from test_resume import Killed, die_at

    settings = {"max_steps": 6, "save_steps": 3, "lora_dropout": 0}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(flags(trained, "dense", output_dir=whole, **settings)) == 0
    with monkeypatch.context() as patched:
        die_at(patched, 5)
        with pytest.raises(Killed):
            main(flags(trained, "dense", output_dir=run, **settings))
    assert main(flags(trained, "dense", output_dir=run, per_device_batch_size=2, **settings)) == 0
    assert_same_run(run, whole, atol=1e-4)
    assert "--per_device_batch_size was 8, is 2" in (run / "log.txt").read_text()


def test_a_run_folder_of_others_is_refused(world, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    assert "holds another config.json" in refusal(flags(world, "dense", output_dir=other), capsys)
    assert json.loads((other / "config.json").read_text()) == {"model_type": "llama"}
    argv = flags(world, "dense", output_dir=world / "start")
    assert "is also --init_lora" in refusal(argv, capsys)


def test_one_training_in_a_folder(world, tmp_path, capsys):
    run = tmp_path / "run"
    with locked(run / ".lock", "trains"):
        argv = flags(world, "dense", output_dir=run, max_steps=1)
        assert "another process trains in" in refusal(argv, capsys)
    assert main(argv) == 0


def test_a_run_of_one_step_learns_and_says_its_loss(world, tmp_path):
    run = tmp_path / "run"
    assert main(flags(world, "dense", output_dir=run, max_steps=1, logging_steps=10)) == 0
    (record,) = metrics(run)
    assert record["step"] == 1 and record["learning_rate"] > 0
    moved = [n for n, tensor in weights(run).items() if "lora_B" in n and tensor.abs().max() > 0]
    assert moved


def test_first_and_last_step_are_logged(world, tmp_path):
    run = tmp_path / "run"
    assert main(flags(world, "dense", output_dir=run, max_steps=5, logging_steps=3)) == 0
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 3, 5]
    assert all(row["learning_rate"] > 0 for row in rows)


def test_a_loss_that_is_no_number_stops_the_run(world, tmp_path, capsys, monkeypatch):
    import torch

    from revisionllm.train import losses

    plain = losses._losses

    def broken(*args):
        found = plain(*args)
        return torch.where(torch.arange(len(found)) == 2, torch.nan, found)

    monkeypatch.setattr(losses, "_losses", broken)
    line = refusal(flags(world, "dense", output_dir=tmp_path / "run", max_steps=2), capsys)
    assert "loss of step 1 is not finite for queries q" in line


def heed_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def launch(argv: list[str], *, processes: int = 2) -> subprocess.Popen:
    command = [sys.executable, "revisionllm/train/launch.py", "--nproc_per_node", str(processes)]
    command += ["revisionllm/train/train.py", *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def test_an_error_of_all_ranks_is_one_line(world, tmp_path):
    changes = {"output_dir": tmp_path / "run", "per_device_batch_size": 4}
    started = launch(flags(world, "dense", features="/nowhere", **changes))
    error = started.communicate(timeout=120)[1]
    assert started.returncode == 2
    assert error.count("\n") == 1 and "/nowhere is not there" in error, error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_so_once(world, tmp_path, number, code):
    run = tmp_path / "run"
    argv = flags(world, "dense", output_dir=run, max_steps=5000, per_device_batch_size=4)
    started = launch(argv)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, number)
    error = started.communicate(timeout=60)[1]
    assert started.returncode == code, error
    assert "Traceback" not in error, error
    told = [line for line in error.splitlines() if "run the same command again" in line]
    assert len(told) == 1
    listed = subprocess.run(["pgrep", "-s", str(started.pid)], capture_output=True, text=True)
    assert listed.stdout == ""


def test_processes_of_one_machine_meet_on_loopback(world, tmp_path):
    """Whatever listens while two processes train listens on 127.0.0.1 or ::1 alone."""
    run = tmp_path / "run"
    argv = flags(world, "dense", output_dir=run, max_steps=5000, per_device_batch_size=4)
    started = launch(argv)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        own = subprocess.run(["pgrep", "-s", str(started.pid)], capture_output=True, text=True)
        inodes = set()
        for pid in own.stdout.split():
            for entry in os.scandir(f"/proc/{pid}/fd"):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        open_to_all = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for row in Path(table).read_text().splitlines()[1:]:
                words = row.split()
                is_listening = words[3] == "0A" and words[9] in inodes
                if is_listening and set(words[1].rpartition(":")[0]) == {"0"}:
                    open_to_all.append(row)
        assert inodes and not open_to_all
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def test_another_number_of_devices_goes_on(trained, tmp_path):
    """Two processes, killed; one goes on, equal but for rounding."""
    settings = {"max_steps": 40, "save_steps": 2, "lora_dropout": 0, "per_device_batch_size": 4}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main(flags(trained, "dense", output_dir=whole, **settings)) == 0
    argv = flags(trained, "dense", output_dir=run, **settings)
    started = launch(argv)
    while not (run / "checkpoint-4" / "complete.json").exists():
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.002)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    while subprocess.run(["pgrep", "-s", str(started.pid)], capture_output=True).stdout:
        time.sleep(0.05)  # the lock goes with the last of them
    assert not (run / "config.json").exists()
    assert main(argv) == 0
    assert "the number of devices was 2, is 1" in (run / "log.txt").read_text()
    assert_same_run(run, whole, atol=5e-3)


def test_deepspeed_checkpoints_are_cut_for_their_devices(tmp_path):
    arguments = asdict(TrainArguments(deepspeed="scripts/zero2.json"))
    facts = {"total_steps": 6, "world_size": 2, "arguments": arguments}
    now = facts | {"world_size": 1}
    with pytest.raises(UserError, match="number of devices was 2, is 1, which DeepSpeed"):
        check_same(facts, now, tmp_path)


def test_a_sentence_of_a_book(world, tmp_path, capsys):
    document = json.loads((world / "annotations.json").read_text())
    next(iter(document.values()))["sentence"] = "word " * 100_000
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    argv = flags(world, "dense", data_path=path, output_dir=tmp_path / "run", max_steps=1)
    refusal(argv, capsys)
    assert "500000 characters" in (tmp_path / "run" / "log.txt").read_text()


def test_a_stage_whose_parent_was_trained_again_is_not_done(trained, tmp_path, capsys):
    from revisionllm.model.tensors import read_tensors, write_tensors

    parent = trained / "parent"  # beside the base that its config names
    shutil.copytree(trained / "dense", parent)
    argv = flags(trained, "sparse", init_lora=parent, output_dir=tmp_path / "run", max_steps=1)
    assert main(argv) == 0
    assert main(argv) == 0  # nothing to do
    path = parent / "lora" / "adapter_model.safetensors"
    before = path.read_bytes()
    tensors = read_tensors(path)
    write_tensors({name: tensor + 1 for name, tensor in tensors.items()}, path)
    assert "--init_lora changed since" in refusal(argv, capsys)
    path.write_bytes(before)
    assert main(argv) == 0
