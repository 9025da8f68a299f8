"""Time limits: every test has one (pyproject.toml), slow ones a longer one."""

from __future__ import annotations

import pytest

SLOW_LIMIT_S = 3600


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))
