"""Time limits: every test has one (pyproject.toml), slow ones a longer one; what tests print."""

from __future__ import annotations

import logging

import pytest

SLOW_LIMIT_S = 3600


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))


@pytest.fixture(autouse=True)
def no_log_left_behind():
    """The trainers log to the stderr they find, which is a test's own and closed behind it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test printed may hold bytes that are no UTF-8; pytest-xdist cannot send those."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
