"""A small film's predictions: found, found wrongly, not present, missed, failed, not annotated."""

from __future__ import annotations

import pytest

from revisionllm.grounding.levels import Cost, Moment, WindowAnswer
from revisionllm.records.predictions import Prediction

DURATION_S = 600.0


def make_prediction(query: str, **fields) -> Prediction:
    defaults = {
        "qid": query[:8],
        "vid": "film_7",
        "query": query,
        "duration_s": DURATION_S,
        "found": True,
        "moments": [Moment(120.0, 124.0, 0.9, {"presence": 0.95}, "dense")],
        "cost": Cost(dense_windows=3, segments=20, llm_tokens=1234, seconds=0.5),
    }
    return Prediction(**{**defaults, **fields})


@pytest.fixture
def make():
    return make_prediction


@pytest.fixture
def predictions() -> list[Prediction]:
    windows = [WindowAnswer(i, 30.0 * i, 30.0 * i + 60.0, "Not Present") for i in (3, 4, 12)]
    candidates = [Moment(60.0 * rank, 60.0 * rank + 4, 0.4 - 0.05 * rank) for rank in range(7)]
    return [
        make_prediction("a red circle spins", gt=[(119.0, 123.0)], windows=windows),
        make_prediction("a blue star blinks", gt=[(500.0, 505.0)]),
        make_prediction("a false alarm", gt=[]),
        make_prediction("a cow flies", found=False, moments=candidates, gt=[]),
        make_prediction("a fox sleeps", found=False, moments=candidates[:1], gt=[(5.0, 9.0)]),
        make_prediction("it broke", found=False, moments=[], status="failed", reason="no memory"),
        make_prediction("no truth known"),
    ]
