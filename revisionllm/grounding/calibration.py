"""Confidence out of score parts: logistic (Platt) and isotonic calibration, and its error.

Fitted on a validation file, stored as plain JSON beside the weights (`<run>/calibration.json`).
Platt scaling: Platt 1999, with his smoothed targets. Isotonic: pool adjacent violators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from revisionllm.files import is_number

_RIDGE = 0.1  # on standardised weights: keeps the fit finite where the labels are separable
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class LogisticCalibration:
    """`1 / (1 + exp(-(bias + sum_i weights[i] * parts[names[i]])))`."""

    names: list[str]
    weights: list[float]
    bias: float
    kind: str = "logistic"

    def confidence(self, parts: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """Probability 0..1 that a moment with these parts is right; arrays `[N]` give `[N]`."""
        total = self.bias + sum(
            weight * _part(parts, name)
            for name, weight in zip(self.names, self.weights, strict=True)
        )
        return _sigmoid(np.asarray(total))


@dataclass(frozen=True)
class IsotonicCalibration:
    """Piecewise linear, non-decreasing: `values[i]` at `knots[i]` of the part `name`."""

    name: str
    knots: list[float]
    values: list[float]
    kind: str = "isotonic"

    def confidence(self, parts: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """Probability 0..1 that a moment with these parts is right; arrays `[N]` give `[N]`."""
        return np.interp(_part(parts, self.name), self.knots, self.values)


Calibration = LogisticCalibration | IsotonicCalibration


def to_dict(calibration: Calibration) -> dict:
    """Plain dict for `calibration.json`."""
    return asdict(calibration)


def from_dict(record: Mapping) -> Calibration:
    """Read what `to_dict` gave.

    Raises:
        ValueError: the kind is unknown, or fields are missing, foreign or of another kind.
    """
    kinds = {"logistic": LogisticCalibration, "isotonic": IsotonicCalibration}
    if not isinstance(record.get("kind"), str) or record["kind"] not in kinds:
        raise ValueError(
            f"calibration kind must be one of {sorted(kinds)}, got {record.get('kind')!r}"
        )
    fields = {name: value for name, value in record.items() if name != "made_by"}
    try:
        calibration = kinds[record["kind"]](**fields)
    except TypeError as error:
        raise ValueError(f"calibration of kind {record['kind']!r}: {error}") from error
    _check_fields(calibration)
    return calibration


def _check_fields(calibration: Calibration) -> None:
    """Raises ValueError for fields that are no calibration's."""
    if calibration.kind == "logistic":
        names, lists = calibration.names, [calibration.weights, [calibration.bias]]
    else:
        names, lists = [calibration.name], [calibration.knots, calibration.values]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its parts are not texts")
    for numbers in lists:
        if not isinstance(numbers, list) or not all(map(is_number, numbers)):
            raise ValueError("it holds something else than finite numbers")
    if calibration.kind == "logistic":
        if len(names) != len(lists[0]) or len(set(names)) != len(names):
            raise ValueError(f"{len(lists[0])} weights for the parts {names}")
        return
    knots, values = (np.asarray(numbers, dtype=np.float64) for numbers in lists)
    rises = len(knots) == len(values) > 0 and (np.diff(knots) >= 0).all()
    if not rises or (np.diff(values) < 0).any() or values.min() < 0 or values.max() > 1:
        raise ValueError("its knots and values must rise together, the values from 0 to 1")


def fit_logistic(
    parts: Mapping[str, Sequence[float]], labels: Sequence[bool]
) -> LogisticCalibration:
    """Fit a logistic model of the parts by Newton's method.

    Args:
        parts: name -> `[N]` values, finite.
        labels: `[N]`, whether the moment was right.

    Raises:
        ValueError: no rows, lengths differ, or a value is not finite.
    """
    names = sorted(parts)
    table, right = _checked(np.array([parts[n] for n in names], dtype=np.float64).T, labels)
    means, scales = table.mean(axis=0), table.std(axis=0)
    scales[scales < 1e-12] = 1.0
    inputs = np.column_stack([(table - means) / scales, np.ones(len(table))])
    positives, negatives = right.sum(), (~right).sum()
    targets = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    solution = _newton(inputs, targets)
    weights = solution[:-1] / scales
    return LogisticCalibration(names, weights.tolist(), float(solution[-1] - weights @ means))


def fit_isotonic(name: str, scores: Sequence[float], labels: Sequence[bool]) -> IsotonicCalibration:
    """Fit a non-decreasing map from one score to the chance of being right.

    Raises:
        ValueError: no rows, lengths differ, or a score is not finite.
    """
    table, right = _checked(np.array(scores, dtype=np.float64)[:, None], labels)
    knots, inverse = np.unique(table[:, 0], return_inverse=True)
    counts = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=right) / counts
    return IsotonicCalibration(
        name, knots.tolist(), pool_adjacent_violators(means, counts).tolist()
    )


def pool_adjacent_violators(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` in weighted least squares: `[N]` -> `[N]`."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, mass, length = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * mass) / (before[1] + mass)
            before[1] += mass
            before[2] += length
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


def _newton(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights `[P]` of the ridge-penalised logistic regression of `targets` on `inputs [N, P]`."""
    penalty = np.full(inputs.shape[1], _RIDGE)
    penalty[-1] = 1e-9  # the bias is free
    weights = np.zeros(inputs.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (chance - targets) + penalty * weights
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step / max(1.0, np.abs(step).max() / 4)  # damped: far steps overshoot
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _checked(table: np.ndarray, labels: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    right = np.asarray(labels, dtype=bool)
    if len(table) == 0 or len(table) != len(right):
        raise ValueError(
            f"need as many labels as rows and at least one: {len(table)}, {len(right)}"
        )
    if not np.isfinite(table).all():
        raise ValueError("score parts must be finite")
    return table, right


def _part(parts: Mapping[str, np.ndarray | float], name: str) -> np.ndarray:
    if name not in parts:
        raise ValueError(f"calibration needs the score part {name!r}, there are {sorted(parts)}")
    return np.asarray(parts[name], dtype=np.float64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # overflow-free
