"""`scripts/demo/train_all.sh --quick`: every stage learns and hands over, two processes, ZeRO-2.

Takes about six minutes on one core.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from test_training_launchers import run
from tiny_training import ROOT, losses

from revisionllm.model.config import read_config


@pytest.mark.slow
def test_quick_curriculum(tmp_path):
    printed = run("demo/train_all.sh", "--quick", DRY_RUN="1").stdout
    for line in printed.replace("out/train_demo_quick", str(tmp_path)).splitlines():
        command = [sys.executable, *shlex.split(line)[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0, line
    runs = ("stage1_dense", "stage1_sparse", "stage2_long_33", "stage2_long_100")
    for name in runs:
        found = losses(tmp_path / name)
        assert sum(found[-3:]) / 3 <= 0.9 * found[0], (name, found)
    for name in runs[1:]:
        config = read_config(tmp_path / name)
        assert config.parent == str(tmp_path / "stage1_dense")
        assert config.adapter.kind == "clip"
    assert read_config(tmp_path / "stage2_long_33").num_segments == 33
