"""`scripts/demo/train_all.sh --quick`: every step runs, hands over and is done only once.

Takes about four minutes on two cores.
"""

from __future__ import annotations

import math
import os
import subprocess

import pytest
from test_training_launchers import SHELL
from tiny_training import ROOT, losses

from revisionllm.model.config import read_config

STAGES = ("stage1_dense", "stage1_sparse", "stage2_long_33", "stage2_long_100")


@pytest.mark.slow
def test_quick_curriculum(tmp_path):
    out = tmp_path / "all"
    command = [SHELL, str(ROOT / "scripts/demo/train_all.sh"), "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OUT": str(out)}
    assert subprocess.run(command, env=environment).returncode == 0
    for name in STAGES:
        found = losses(out / name)
        assert len(found) == 12 and all(map(math.isfinite, found)), (name, found)
    # That stages dense and long learn, test_stages.py tests; 12 steps here lower no loss.
    for name in STAGES[1:]:
        config = read_config(out / name)
        assert config.parent == str(out / "stage1_dense")
        assert config.adapter.kind == "clip"
    assert read_config(out / "stage2_long_33").num_segments == 33
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "| stage2_long_100 |" in page and "long_100 > long_33 > dense" in page
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stderr.count(": done\n") == 11
