"""Files to damage are made once; see `damage.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from revisionllm import files

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "data"):
    sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def short_check(monkeypatch):
    """What never ends is given up sooner."""
    monkeypatch.setattr(files, "PROBE_S", 5.0)
