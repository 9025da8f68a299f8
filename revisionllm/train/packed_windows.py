"""Dense samples by film: a window with all the questions that it can answer.

The features and the prefix of a window are then paid for once and not once per question. In an
epoch every event is asked once where it happens and `negatives_per_positive` times elsewhere:
- windows tile the film from a random phase and take the events that lie inside;
- events on an edge, or longer than a window, get random windows of their own, as in `samples`;
- negatives go to the windows with the fewest questions that they do not touch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from revisionllm.grounding.windows import touching_indices
from revisionllm.train.samples import (
    FilmEvents,
    SamplePlan,
    SampleSpec,
    Target,
    clear_starts_s,
    frame_span,
    negative_start_s,
    positive_start_s,
)


@dataclass
class _Draft:
    """A window while its questions are being collected."""

    start_s: float
    targets: list[Target] = field(default_factory=list)


def packed_windows(
    film: FilmEvents, negatives: dict[int, int], spec: SampleSpec, rng: np.random.Generator
) -> list[SamplePlan]:
    """The windows of one film in one epoch.

    Args:
        film: the film.
        negatives: number of the annotation -> how often it is to be asked where it is not.
            Its keys are the events that are asked at all.
        spec: of a dense stage.
        rng: its state decides everything that is random.

    Returns:
        Plans of at most `spec.questions_per_window` questions.
    """
    window_s = spec.film_window_s(film.duration_s)
    drafts = []
    for start_s, indices in _positive_windows(film, list(negatives), window_s, rng):
        most = max(1, spec.questions_per_window // (1 + spec.negatives_per_positive))
        for first in range(0, len(indices), most):
            targets = [
                Target(index, frame_span(film.events[index], start_s, window_s, spec))
                for index in indices[first : first + most]
            ]
            drafts.append(_Draft(start_s, targets))
    _add_negatives(drafts, film, negatives, window_s, spec.questions_per_window, rng)
    return [
        SamplePlan(
            "dense", film.video_id, window_s, (draft.start_s,), _shuffled(draft.targets, rng)
        )
        for draft in drafts
    ]


def _positive_windows(
    film: FilmEvents, indices: list[int], window_s: float, rng: np.random.Generator
) -> list[tuple[float, list[int]]]:
    """Window starts and the events that each one asks; every event is in exactly one."""
    starts_s = np.array([film.events[index][0] for index in indices])
    ends_s = np.array([film.events[index][1] for index in indices])
    phase_s = rng.uniform(0.0, window_s) if film.duration_s > window_s else 0.0
    found = []
    left = np.ones(len(indices), dtype=bool)

    def take(start_s: float, must: int | None = None) -> None:
        inside = left & (starts_s >= start_s) & (ends_s <= start_s + window_s)
        if must is not None:
            inside[must] = True
        if inside.any():
            found.append((float(start_s), [indices[i] for i in np.flatnonzero(inside)]))
            left[inside] = False

    for start_s in np.arange(phase_s, max(film.duration_s - window_s, 0.0) + 1e-9, window_s):
        take(start_s)
    for position in rng.permutation(len(indices)).tolist():
        if left[position]:
            event = film.events[indices[position]]
            take(positive_start_s(event, film.duration_s, window_s, rng), must=position)
    return found


def _add_negatives(
    drafts: list[_Draft],
    film: FilmEvents,
    negatives: dict[int, int],
    window_s: float,
    most: int,
    rng: np.random.Generator,
) -> None:
    """Give every negative a window it does not touch; makes more windows where none has room."""
    wanted = [index for index, count in negatives.items() for _ in range(count)]
    starts_s = np.array([draft.start_s for draft in drafts])
    loads = np.array([len(draft.targets) for draft in drafts])
    order = rng.permutation(len(drafts)) / max(1, len(drafts))  # equal loads: a random one
    for position in rng.permutation(len(wanted)).tolist():
        index = wanted[position]
        cost = loads + order
        cost[touching_indices(starts_s, starts_s + window_s, film.alike[index])] = np.inf
        cost[loads >= most] = np.inf
        best = int(cost.argmin())
        if np.isinf(cost[best]):
            ranges = clear_starts_s(film.alike[index], film.duration_s, window_s)
            drafts.append(_Draft(negative_start_s(ranges, rng)))
            best = len(drafts) - 1
            starts_s = np.append(starts_s, drafts[best].start_s)
            loads, order = np.append(loads, 0), np.append(order, 0.5)
        drafts[best].targets.append(Target(index, None))
        loads[best] += 1


def _shuffled(targets: list[Target], rng: np.random.Generator) -> tuple[Target, ...]:
    return tuple(targets[i] for i in rng.permutation(len(targets)).tolist())
