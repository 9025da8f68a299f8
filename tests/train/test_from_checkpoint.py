"""A run out of an unfinished training answers as the training left it."""

from __future__ import annotations

import pytest
import torch
from tiny_training import flags

from revisionllm.cli import main as command
from revisionllm.model.loading import load_model
from revisionllm.train.train import main


@pytest.mark.parametrize("stage", ["dense", "sparse", "long"])
def test_the_last_checkpoint_gives_the_run_itself(trained, tmp_path, stage):
    run = tmp_path / "run"
    assert main(flags(trained, stage, output_dir=run, max_steps=4, save_steps=2)) == 0
    for step, same in ((2, False), (4, True)):
        taken = tmp_path / f"at_{step}"
        checkpoint = str(run / f"checkpoint-{step}")
        assert command(["run", "from-checkpoint", checkpoint, "--to", str(taken)]) == 0
        first, second = (load_model(folder, device="cpu") for folder in (run, taken))
        states = first.state_dict(), second.state_dict()
        equal = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
        assert all(equal) == same
        assert second.config.stage == stage


def test_a_deepspeed_checkpoint_gives_its_run(trained, tmp_path):
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    settings = {"max_steps": 2, "save_steps": 2, "deepspeed": "scripts/zero2.json"}
    import subprocess
    import sys

    from tiny_training import ROOT

    words = flags(trained, "dense", output_dir=run, **settings)
    done = subprocess.run(
        [sys.executable, "revisionllm/train/train.py", *words], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    taken = tmp_path / "taken"
    assert command(["run", "from-checkpoint", str(run / "checkpoint-2"), "--to", str(taken)]) == 0
    first, second = (load_model(folder, device="cpu").state_dict() for folder in (run, taken))
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)


def test_a_checkpoint_itself_is_no_run(trained, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(trained, "dense", output_dir=run, max_steps=2, save_steps=2)) == 0
    before = sorted(path.name for path in (run / "checkpoint-2").iterdir())
    found = command(
        [
            "eval",
            "run",
            "--checkpoint",
            str(run / "checkpoint-2"),
            "--data_path",
            str(trained / "annotations.json"),
            "--features",
            str(trained / "features"),
        ]
    )
    assert found == 2
    told = capsys.readouterr().err
    assert "revisionllm run from-checkpoint" in told and "Traceback" not in told
    assert sorted(path.name for path in (run / "checkpoint-2").iterdir()) == before
    (run / "checkpoint-2" / "trained.safetensors").unlink()
    assert command(["run", "from-checkpoint", str(run / "checkpoint-2"), "--to", "x"]) == 2
    assert "trained.safetensors is missing" in capsys.readouterr().err
