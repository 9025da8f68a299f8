"""`revisionllm eval calibrate`: fit confidence on validation predictions, keep it with the run.

revisionllm eval calibrate checkpoints/mad_stage1_dense --data_path data/mad/MAD_val.json \\
    --checkpoint checkpoints/mad_stage1_dense

Two questions, two logistic fits. Over all moments: is this one right (IoU at least --iou)? That
weighs the parts, and so orders moments. Then over the best moment of each query: does the sentence
happen at all? Queries of both kinds count alike, so that 0.5 and more means "found". Where no query
is absent, the second fit asks whether the best moment is right.

The fit goes to <checkpoint>/calibration.json, which every later search of that run uses. Printed is
the expected calibration error (ECE) of the best moments, for the second question: with the scores
as predicted, calibrated, and calibrated on films that the fit has not seen (two halves, each judged
by the other's fit).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, write_json
from revisionllm.grounding.calibration import (
    LogisticCalibration,
    fit_logistic,
    to_dict,
)
from revisionllm.grounding.levels import Moment
from revisionllm.metrics import detection
from revisionllm.metrics.recall import span_iou
from revisionllm.records.predictions import Prediction, read_predictions

PARTS = ("log_odds", "entropy", "cosine", "support", "second_look", "seen_twice")
RIGHT_IOU = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm eval calibrate`."""
    add = parser.add_argument
    add(
        "predictions", metavar="PRED", help="predictions of validation queries: run, folder or file"
    )
    add("--checkpoint", required=True, help="run or model folder that gets calibration.json")
    add("--data_path", nargs="+", help="of a run: the annotations whose predictions are meant")
    add(
        "--gt",
        dest="ground_truth",
        help="annotations that say what is true, by film and sentence, where the predictions do not"
        " (those of `find --json`)",
    )
    add("--parts", nargs="+", help=f"score parts; unset: those there are of {', '.join(PARTS)}")
    add("--iou", type=float, default=RIGHT_IOU, help="a moment is right from here on (%(default)s)")
    add("--overwrite", action="store_true", help="replace an existing calibration.json")


def fit(
    predictions: Sequence[Prediction], parts: Sequence[str] = PARTS, *, iou: float = RIGHT_IOU
) -> LogisticCalibration:
    """Fit on predictions with ground truth (`gt` []: absent, all its moments are wrong).

    Raises:
        UserError: a part is missing from the moments, or there is nothing to fit.
    """
    known = [p for p in predictions if p.gt is not None and p.moments]
    if not known:
        raise UserError("no moments with ground truth to fit a calibration on")
    _check_parts(known, parts)
    moments = [(moment, p) for p in known for moment in p.moments]
    table = {name: [moment.parts[name] for moment, _ in moments] for name in parts}
    fitted = fit_logistic(table, [_is_right(moment, p, iou) for moment, p in moments])

    def logit(moment: Moment) -> float:
        chance = zip(fitted.names, fitted.weights, strict=True)
        return fitted.bias + sum(weight * moment.parts[name] for name, weight in chance)

    best = [(max(p.moments, key=logit), p) for p in known]
    holds = _question(known, iou)
    best = even_odds(best, [holds(*pair) for pair in best]) if _some_absent(known) else best
    scaled = fit_logistic({"logit": [logit(m) for m, _ in best]}, [holds(*pair) for pair in best])
    factor = scaled.weights[0]
    return replace(
        fitted,
        weights=[factor * weight for weight in fitted.weights],
        bias=factor * fitted.bias + scaled.bias,
    )


def even_odds(items: Sequence, happens: Sequence[bool]) -> list:
    """The items with the rarer kind repeated until both kinds are about as many."""
    kinds: tuple[list, list] = ([], [])
    for item, is_so in zip(items, happens, strict=True):
        kinds[is_so].append(item)
    most = max(map(len, kinds))
    return [item for kind in kinds if kind for item in kind * round(most / len(kind))]


def best_moment_error(
    predictions: Sequence[Prediction],
    calibration: LogisticCalibration | None,
    iou: float = RIGHT_IOU,
) -> float:
    """ECE of each query's best moment; without a calibration its score is the confidence."""
    known = [p for p in predictions if p.gt is not None and p.moments]
    if not known:
        return float("nan")
    holds = _question(known, iou)
    pairs, confidences = [], []
    for prediction in known:
        scores = [_confidence(moment, calibration) for moment in prediction.moments]
        best = int(np.argmax(scores))
        pairs.append((min(1.0, max(0.0, scores[best])), (prediction.moments[best], prediction)))
    if _some_absent(known):
        pairs = even_odds(pairs, [holds(*pair) for _, pair in pairs])
    confidences = [confidence for confidence, _ in pairs]
    held = np.array([holds(*pair) for _, pair in pairs])
    return detection.calibration(np.array(confidences), held).ece


def halves_error(predictions: Sequence[Prediction], **settings) -> float:
    """ECE of queries under a fit that has not seen them: two halves, split by film."""
    films = sorted({prediction.vid for prediction in predictions})
    if len(films) < 2:
        return float("nan")
    errors = []
    for half in (0, 1):
        unseen = [p for p in predictions if films.index(p.vid) % 2 == half]
        fitted = fit([p for p in predictions if films.index(p.vid) % 2 != half], **settings)
        errors.append(best_moment_error(unseen, fitted, settings.get("iou", RIGHT_IOU)))
    return float(np.mean(errors))


def _some_absent(predictions: Sequence[Prediction]) -> bool:
    return any(not p.gt for p in predictions)


def _question(
    predictions: Sequence[Prediction], iou: float
) -> Callable[[Moment, Prediction], bool]:
    """What 0.5 and more says yes to."""
    if _some_absent(predictions):
        return lambda moment, prediction: bool(prediction.gt)
    return lambda moment, prediction: _is_right(moment, prediction, iou)


def _confidence(moment: Moment, calibration: LogisticCalibration | None) -> float:
    return moment.score if calibration is None else float(calibration.confidence(moment.parts))


def _is_right(moment: Moment, prediction: Prediction, iou: float) -> bool:
    truth = np.array(prediction.gt, dtype=np.float64).reshape(-1, 2)
    found = span_iou(np.array([moment.start_s, moment.end_s]), truth)
    return bool((found >= iou).any())


def parts_in(predictions: Sequence[Prediction]) -> list[str]:
    """Those of `PARTS` that every moment has.

    Raises:
        UserError: there are none.
    """
    moments = [moment for p in predictions for moment in p.moments]
    found = [name for name in PARTS if all(name in moment.parts for moment in moments)]
    if not found or not moments:
        raise UserError(f"the moments have none of the parts {', '.join(PARTS)}; give --parts")
    return found


def _check_parts(predictions: Sequence[Prediction], parts: Sequence[str]) -> None:
    for prediction in predictions:
        for moment in prediction.moments:
            missing = [name for name in parts if name not in moment.parts]
            if missing:
                raise UserError(f"query {prediction.qid}: its moments have no {missing}; --parts")


def fill_in_truth(predictions: Sequence[Prediction], annotations: str) -> None:
    """Give predictions without ground truth that of annotations of the same film and sentence.

    Raises:
        UserError: the annotations know none of them.
    """
    from revisionllm.formats import registry

    queries, _ = registry.read_queries(annotations)
    truth = {(q.vid, q.query): q.spans.tolist() for q in queries if q.labelled}
    unknown = [p for p in predictions if p.gt is None]
    for prediction in unknown:
        prediction.gt = truth.get((prediction.vid, prediction.query))
    if unknown and all(prediction.gt is None for prediction in unknown):
        first = f"{unknown[0].vid}: {unknown[0].query!r}"
        raise UserError(f"{annotations} knows none of the predictions' sentences, such as {first}")


def write_calibration(calibration: LogisticCalibration, checkpoint: str | Path) -> Path:
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
    files, _ = find_predictions(args.predictions, args.data_path)
    predictions = [p for file in files for p in read_predictions(file) if p.status == "ok"]
    if args.ground_truth:
        fill_in_truth(predictions, args.ground_truth)
    parts = args.parts or parts_in(predictions)
    settings = {"parts": parts, "iou": args.iou}
    fitted = fit(predictions, **settings)
    path = write_calibration(fitted, args.checkpoint)
    errors = {
        "scores as predicted": best_moment_error(predictions, None, args.iou),
        "calibrated": best_moment_error(predictions, fitted, args.iou),
        "calibrated, unseen films": halves_error(predictions, **settings),
    }
    absent = sum(p.gt == [] for p in predictions)
    print(f"{path}: {len(predictions)} queries, {absent} of them absent; {', '.join(parts)}")
    for name, error in errors.items():
        print(f"ECE {name}: {error:.4f}")
    return 0
