"""Small predictions for the tests of this room."""

from __future__ import annotations

from pathlib import Path

from revisionllm.grounding.levels import Cost, Moment, WindowAnswer
from revisionllm.records.predictions import Prediction, write_predictions


def make(qid: str, spans=(), *, gt=((10.0, 20.0),), scores=None, **fields) -> Prediction:
    """A prediction of film `film` (1000 s) with falling scores; `windows` are (start_s, end_s)."""
    if scores is None:
        scores = [0.9 - 0.1 * rank for rank in range(len(spans))]
    moments = [
        Moment(float(s), float(e), score) for (s, e), score in zip(spans, scores, strict=True)
    ]
    windows = fields.pop("windows", None)
    if windows is not None:
        windows = [WindowAnswer(i, float(s), float(e), "x") for i, (s, e) in enumerate(windows)]
    truth = None if gt is None else [tuple(map(float, span)) for span in gt]
    vid = fields.pop("vid", "film")
    found = fields.pop("found", bool(moments))
    return Prediction(
        qid,
        vid,
        f"query {qid}",
        1000.0,
        found,
        moments,
        Cost(),
        gt=truth,
        windows=windows,
        **fields,
    )


def write(path: Path, *predictions: Prediction) -> Path:
    """A file of our schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, predictions)
    return path
