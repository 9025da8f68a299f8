"""Shared by the training tests: one tiny world, its stages trained once."""

from __future__ import annotations

import pytest
from tiny_training import flags, write_start, write_world

from revisionllm.train.train import main


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Data and the model that a dense stage starts from."""
    return write_start(write_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="session")
def trained(world):
    """The same folder after stages dense and sparse, three steps each."""
    for stage in ("dense", "sparse"):
        assert main(flags(world, stage, max_steps=3)) == 0
    return world
