"""`revisionllm eval calibrate`: fit confidence on validation predictions, keep it with the run.

revisionllm eval calibrate out/validation/predictions.jsonl --checkpoint checkpoints/demo/dense

A moment is right if it overlaps a true span by at least --iou. The fit is a map from a moment's
parts (presence, entropy, cosine) to the chance of being right; it goes to
<checkpoint>/calibration.json, which every later search of that run uses. The expected calibration
error (ECE) of each query's best moment is reported before, after, and after on films that the fit
has not seen (two halves, each scored by the other's fit). "found" is then: the best moment's
confidence reaches --threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError
from revisionllm.eval.metrics import span_iou
from revisionllm.eval.predictions import Moment, Prediction, read_predictions
from revisionllm.files import MADE_BY, write_json
from revisionllm.grounding.calibration import (
    Calibration,
    expected_calibration_error,
    fit_isotonic,
    fit_logistic,
    to_dict,
)

PARTS = ("presence", "entropy", "cosine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm eval calibrate`."""
    add = parser.add_argument
    add("predictions", metavar="PRED", help="predictions of validation queries: file or folder")
    add("--checkpoint", required=True, help="run folder that gets calibration.json")
    add("--kind", choices=("logistic", "isotonic"), default="logistic", help="(%(default)s)")
    add("--parts", nargs="+", default=list(PARTS), help="score parts; isotonic takes one")
    add("--iou", type=float, default=0.5, help="a moment is right from here on (%(default)s)")
    add("--overwrite", action="store_true", help="replace an existing calibration.json")
    add("--moments", type=int, default=5, help="moments per query to fit on (%(default)s)")


def fit(
    predictions: Sequence[Prediction],
    *,
    kind: str = "logistic",
    parts: Sequence[str] = PARTS,
    iou: float = 0.5,
    num_moments: int = 5,
) -> Calibration:
    """Fit on the best moments of predictions with ground truth (`gt` []: absent, all are wrong).

    Raises:
        UserError: a part is missing from the moments, or there is nothing to fit.
    """
    table, right = _table(predictions, parts, iou, num_moments)
    if not len(right):
        raise UserError("no moments with ground truth to fit a calibration on")
    if kind == "isotonic":
        if len(parts) != 1:
            raise UserError(f"an isotonic calibration takes one part, not {list(parts)}")
        return fit_isotonic(parts[0], table[:, 0], right)
    return fit_logistic({name: table[:, i] for i, name in enumerate(parts)}, right)


def best_moment_error(
    predictions: Sequence[Prediction], calibration: Calibration | None, iou: float = 0.5
) -> float:
    """ECE of each query's best moment; without a calibration its score is the confidence."""
    confidences, right = [], []
    for prediction in predictions:
        if prediction.gt is None or not prediction.moments:
            continue
        scores = [_confidence(moment, calibration) for moment in prediction.moments]
        best = int(np.argmax(scores))
        confidences.append(scores[best])
        right.append(_is_right(prediction.moments[best], prediction, iou))
    return expected_calibration_error(confidences, right)


def halves_error(predictions: Sequence[Prediction], **settings) -> float:
    """ECE of queries under a fit that has not seen them: two halves, split by film."""
    films = sorted({prediction.vid for prediction in predictions})
    if len(films) < 2:
        return float("nan")
    errors = []
    for half in (0, 1):
        unseen = [p for p in predictions if films.index(p.vid) % 2 == half]
        fitted = fit([p for p in predictions if films.index(p.vid) % 2 != half], **settings)
        errors.append(best_moment_error(unseen, fitted, settings.get("iou", 0.5)))
    return float(np.mean(errors))


def _confidence(moment: Moment, calibration: Calibration | None) -> float:
    return moment.score if calibration is None else float(calibration.confidence(moment.parts))


def _is_right(moment: Moment, prediction: Prediction, iou: float) -> bool:
    truth = np.array(prediction.gt, dtype=np.float64).reshape(-1, 2)
    found = span_iou(np.array([moment.start_s, moment.end_s]), truth)
    return bool((found >= iou).any())


def _table(predictions, parts, iou: float, num_moments: int) -> tuple[np.ndarray, np.ndarray]:
    rows, right = [], []
    for prediction in predictions:
        for moment in prediction.moments[:num_moments] if prediction.gt is not None else []:
            missing = [name for name in parts if name not in moment.parts]
            if missing:
                raise UserError(f"query {prediction.qid}: its moments have no {missing}; --parts")
            rows.append([moment.parts[name] for name in parts])
            right.append(_is_right(moment, prediction, iou))
    return np.array(rows, dtype=np.float64).reshape(-1, len(parts)), np.array(right, dtype=bool)


def write_calibration(calibration: Calibration, checkpoint: str | Path) -> Path:
    """Write `<checkpoint>/calibration.json` atomically."""
    path = Path(checkpoint) / "calibration.json"
    write_json(path, {"made_by": MADE_BY} | to_dict(calibration))
    return path


def run(args: argparse.Namespace) -> int:
    """Fit, report, store; returns 0."""
    from revisionllm.eval.cli import find_predictions

    if not Path(args.checkpoint).is_dir():
        raise UserError(f"no run folder at {args.checkpoint}")
    path = Path(args.checkpoint) / "calibration.json"
    if path.exists() and not args.overwrite:
        raise UserError(f"{path} is there already; --overwrite replaces it")
    files, _ = find_predictions(args.predictions)
    predictions = [p for file in files for p in read_predictions(file) if p.status == "ok"]
    settings = {"kind": args.kind, "parts": args.parts, "iou": args.iou}
    settings["num_moments"] = args.moments
    fitted = fit(predictions, **settings)
    path = write_calibration(fitted, args.checkpoint)
    errors = {
        "scores as predicted": best_moment_error(predictions, None, args.iou),
        "calibrated": best_moment_error(predictions, fitted, args.iou),
        "calibrated, unseen films": halves_error(predictions, **settings),
    }
    print(f"{path}: {args.kind} on {len(predictions)} queries")
    for name, error in errors.items():
        print(f"ECE {name}: {error:.4f}")
    return 0
