"""Runs that were begun before an argument existed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from revisionllm.errors import UserError
from revisionllm.train.arguments import TrainArguments
from revisionllm.train.train import check_same


def test_an_argument_that_the_run_did_not_have_is_its_default():
    now = {"world_size": 1, "total_steps": 5, "arguments": asdict(TrainArguments())}
    known = {k: v for k, v in now["arguments"].items() if k != "reads_sentence"}
    check_same(now | {"arguments": known}, now, Path("run"))
    changed = now | {"arguments": now["arguments"] | {"reads_sentence": True}}
    with pytest.raises(UserError, match="--reads_sentence was False, is True"):
        check_same(now | {"arguments": known}, changed, Path("run"))
