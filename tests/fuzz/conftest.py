"""Files to damage are made once; see `damage.py`."""

from __future__ import annotations

import pytest

from revisionllm import files


@pytest.fixture(autouse=True)
def short_check(monkeypatch):
    """What never ends is given up sooner."""
    monkeypatch.setattr(files, "PROBE_S", 5.0)
