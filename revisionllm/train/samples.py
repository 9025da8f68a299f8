"""What a training sample is: which windows of which film, which questions, which answers.

A `SamplePlan` says everything about a sample except its features and is a pure function of
annotations, seed and epoch: all that is random is decided here, so workers, ranks and resuming
change nothing.

- dense: a window that holds the event at a random place, and windows of the same film that do not
  touch it (`Not Present`);
- sparse: the same windows, seen through one token;
- long: segments of one film; those that hold at least half of the event stand together, in film
  order, among others of the film, sorted by time; and rows of others only (`Not Present`).

Negatives also keep away from other events of the film with the same sentence. Where the released
code differs: its negatives on the right of the event could overlap it, and its long samples asked
sample 0's question whatever the index was. Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from revisionllm.errors import UserError
from revisionllm.formats.annotations import Annotation
from revisionllm.formats.questions import QUESTIONS, clean_query
from revisionllm.grounding.answers import NO, NOT_PRESENT, YES, format_segments, format_span
from revisionllm.grounding.windows import (
    TIME_MAPPINGS,
    WindowClock,
    film_window_s,
    segments,
    touching_indices,
)

STAGES = ("align", "dense", "sparse", "long")
ADAPTER_OUTPUTS = ("frames", "segment", "alternate")
OUTPUTS = ("segment", "frames")  # an alternate run starts with segments

TOLERANCE_S = 1e-9  # forgives float noise

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """What a stage asks of a film.

    Attributes:
        stage: align, dense, sparse or long.
        question: wording, a key of `QUESTIONS`; `yes_no` is answered with yes or no.
        window_s, frames_per_window, feature_fps, time_mapping, answer_end: as in `RunConfig`.
        negatives_per_positive: `Not Present` questions per event and epoch.
        questions_per_window: dense: most questions about one window in one sample; 1: one each.
        double_rate_short: films shorter than two windows are read with windows half as long and
            the same number of frames (chapters).
        min_duration_s: shorter films are left out (chapters long: 2500).
        num_segments: long: most segments of a row, repeats counted.
        segment_stride_s: long: seconds from one segment's start to the next.
        segment_repeats: long: a row repeats each segment this often; drawn per row.
        adapter_output: what the adapter gives per window: frames (F tokens), segment (1 token), or
            alternate: segment rows of this stage in even steps, dense rows in odd ones.
        needs_text: the adapter reads the query's word features.
        reads_sentence: and its sentence feature behind them.
    """

    stage: str
    question: str
    window_s: float
    frames_per_window: int
    feature_fps: float
    adapter_output: str
    needs_text: bool
    time_mapping: str = "centered"
    answer_end: str = "inclusive"
    negatives_per_positive: int = 1
    questions_per_window: int = 32
    double_rate_short: bool = False
    min_duration_s: float = 0.0
    num_segments: int = 100
    segment_stride_s: float = 25.0
    segment_repeats: tuple[int, ...] = (1,)
    reads_sentence: bool = False

    def __post_init__(self) -> None:
        rules = {
            f"stage must be one of {STAGES}": self.stage in STAGES,
            f"question must be one of {tuple(QUESTIONS)}": self.question in QUESTIONS,
            f"time_mapping must be one of {TIME_MAPPINGS}": self.time_mapping in TIME_MAPPINGS,
            f"adapter_output must be one of {ADAPTER_OUTPUTS}": self.adapter_output
            in ADAPTER_OUTPUTS,
            "answer_end must be inclusive or exclusive": self.answer_end
            in ("inclusive", "exclusive"),
            "stage dense asks 'frames' of adapter_output 'frames'": self.stage != "dense"
            or (self.question, self.adapter_output) == ("frames", "frames"),
            "stage align has adapter_output 'frames' and no negatives": self.stage != "align"
            or (self.adapter_output, self.negatives_per_positive) == ("frames", 0),
            "stage sparse needs adapter_output 'segment'": self.stage != "sparse"
            or self.adapter_output == "segment",
            "stage long needs adapter_output 'segment' or 'alternate'": self.stage != "long"
            or self.adapter_output != "frames",
            "window_s, frames_per_window, feature_fps and num_segments must be above 0": min(
                self.window_s, self.frames_per_window, self.feature_fps, self.num_segments
            )
            > 0,
            "segment_stride_s must be above 0 and at most window_s": self.stage != "long"
            or 0 < self.segment_stride_s <= self.window_s,
            "negatives_per_positive must be 0 or more": self.negatives_per_positive >= 0,
            "questions_per_window must be 1 or more": self.questions_per_window >= 1,
            "segment_repeats must lie in 1..num_segments": bool(self.segment_repeats)
            and all(1 <= repeat <= self.num_segments for repeat in self.segment_repeats),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise UserError("samples: " + "; ".join(broken))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The adapter outputs that batches of this stage have, in the order of the steps."""
        return OUTPUTS if self.adapter_output == "alternate" else (self.adapter_output,)

    def clock(self, window_s: float) -> WindowClock:
        """The arithmetic of windows of this length."""
        return WindowClock(window_s, self.frames_per_window, self.feature_fps, self.time_mapping)

    def film_window_s(self, duration_s: float) -> float:
        """Length of a window in a film of this length."""
        return film_window_s(self.window_s, duration_s, double_rate_short=self.double_rate_short)


@dataclass(frozen=True, slots=True)
class Target:
    """A question: number of the annotation; (first, last) frame or segment, None if not present."""

    index: int
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """A sample without its features.

    Attributes:
        stage: dense, sparse or long.
        video_id: the film.
        window_s: length of its windows.
        starts_s: where they start; one window unless long.
        targets: what is asked.
        repeat: how often each window stands in the prompt (long).
    """

    stage: str
    video_id: str
    window_s: float
    starts_s: tuple[float, ...]
    targets: tuple[Target, ...]
    repeat: int = 1

    @property
    def adapter_output(self) -> str:
        """What the adapter gives for its windows."""
        return "frames" if self.stage in ("align", "dense") else "segment"


@dataclass(frozen=True)
class FilmEvents:
    """A film's events. Its length is that of its features.

    Attributes:
        events: number of the annotation -> seconds, clipped to the film.
        alike: number of the annotation -> seconds of all events with its sentence, itself included.
    """

    video_id: str
    duration_s: float
    events: dict[int, Span]
    alike: dict[int, list[Span]]


def make_film(
    video_id: str, duration_s: float, annotations: Sequence[Annotation], indices: Sequence[int]
) -> FilmEvents:
    """Collect the events of a film; `indices` are its annotations."""
    events: dict[int, Span] = {}
    by_sentence: dict[str, list[Span]] = defaultdict(list)
    for index in indices:
        start_s, end_s = annotations[index].start_s, annotations[index].end_s
        events[index] = (min(start_s, duration_s), min(end_s, duration_s))
        by_sentence[clean_query(annotations[index].sentence)].append(events[index])
    alike = {index: by_sentence[clean_query(annotations[index].sentence)] for index in indices}
    return FilmEvents(video_id, duration_s, events, alike)


# --- windows: dense and sparse ---


def positive_start_s(
    event: Span, duration_s: float, window_s: float, rng: np.random.Generator
) -> float:
    """Start of a random window of the film that holds the event.

    Of an event longer than the window it shows at least half a window.
    """
    start_s, end_s = event
    low, high = end_s - window_s, start_s
    if low > high:
        low, high = start_s - window_s / 2, end_s - window_s / 2
    latest_s = max(0.0, duration_s - window_s)
    low, high = np.clip([low, high], 0.0, latest_s)
    return float(rng.uniform(low, high))


def clear_starts_s(spans: Sequence[Span], duration_s: float, window_s: float) -> list[Span]:
    """Ranges of window starts for which the window touches none of the spans."""
    latest_s = max(0.0, duration_s - window_s)
    ranges, low = [], 0.0
    for start_s, end_s in sorted(spans):
        if start_s - window_s >= low:
            ranges.append((low, min(start_s - window_s, latest_s)))
        low = max(low, end_s if end_s > start_s else np.nextafter(end_s, np.inf))
    if low <= latest_s:
        ranges.append((low, latest_s))
    return ranges


def negative_start_s(ranges: Sequence[Span], rng: np.random.Generator) -> float:
    """A start drawn evenly from `clear_starts_s`."""
    lengths = np.array([high - low for low, high in ranges])
    if lengths.sum() == 0:
        return ranges[int(rng.integers(len(ranges)))][0]
    low, high = ranges[int(rng.choice(len(ranges), p=lengths / lengths.sum()))]
    return float(rng.uniform(low, high))


def frame_span(event: Span, start_s: float, window_s: float, spec: SampleSpec) -> tuple[int, int]:
    """First and last frame of an event in the window that starts at `start_s`."""
    return spec.clock(window_s).labels(event, start_s)


def has_negative_window(film: FilmEvents, index: int, spec: SampleSpec) -> bool:
    """Whether the film has a window that does not touch the event."""
    window_s = spec.film_window_s(film.duration_s)
    return bool(clear_starts_s(film.alike[index], film.duration_s, window_s))


def window_plan(
    film: FilmEvents,
    index: int,
    stage: str,
    spec: SampleSpec,
    rng: np.random.Generator,
    *,
    present: bool,
) -> SamplePlan:
    """One question about one window: dense or sparse."""
    window_s = spec.film_window_s(film.duration_s)
    if present:
        start_s = positive_start_s(film.events[index], film.duration_s, window_s, rng)
        span = frame_span(film.events[index], start_s, window_s, spec)
    else:
        ranges = clear_starts_s(film.alike[index], film.duration_s, window_s)
        start_s, span = negative_start_s(ranges, rng), None
    return SamplePlan(stage, film.video_id, window_s, (start_s,), (Target(index, span),))


def align_plan(film: FilmEvents, index: int, spec: SampleSpec) -> SamplePlan:
    """A caption's own time as a window; a caption of one moment: the frame there."""
    start_s, end_s = film.events[index]
    window_s = max(end_s - start_s, 1 / spec.feature_fps)
    start_s = max(0.0, (start_s + end_s - window_s) / 2)
    return SamplePlan("align", film.video_id, window_s, (start_s,), (Target(index, None),))


# --- rows of segments: long ---


def segment_grid(film: FilmEvents, spec: SampleSpec) -> np.ndarray:
    """Start and end of the film's segments: float64 [N, 2], seconds; do not write into it."""
    return _grid(film.duration_s, spec.window_s, spec.segment_stride_s)


@lru_cache(maxsize=16)
def _grid(duration_s: float, window_s: float, stride_s: float) -> np.ndarray:
    grid = segments(duration_s, window_s=window_s, segment_stride_s=stride_s)
    return np.array([(window.start_s, window.end_s) for window in grid])


def holding_segments(event: Span, grid: np.ndarray) -> np.ndarray:
    """Numbers of the segments that hold at least half of the event, int64, contiguous.

    Of an event longer than a segment: those that it fills at least by half.
    """
    start_s, end_s = event
    starts_s, ends_s = grid.T
    if end_s <= start_s:
        return np.flatnonzero((starts_s <= start_s) & (start_s <= ends_s))
    held_s = np.minimum(ends_s, end_s) - np.maximum(starts_s, start_s)
    needed_s = np.minimum(end_s - start_s, ends_s - starts_s) / 2
    return np.flatnonzero(held_s >= needed_s - TOLERANCE_S)


def clear_segments(film: FilmEvents, index: int, grid: np.ndarray) -> np.ndarray:
    """Numbers of the segments that touch no event with this sentence, int64."""
    touched = touching_indices(*grid.T, film.alike[index])
    return np.delete(np.arange(len(grid)), touched)


def long_plan(
    film: FilmEvents, index: int, spec: SampleSpec, rng: np.random.Generator, *, present: bool
) -> SamplePlan:
    """A row of segments: the event's together at a random place, others around them."""
    grid = segment_grid(film, spec)
    holding = holding_segments(film.events[index], grid) if present else np.array([], np.int64)
    others = np.setdiff1d(clear_segments(film, index, grid), holding)
    repeat = int(rng.choice(spec.segment_repeats))
    room = spec.num_segments // repeat - len(holding)
    others = np.sort(rng.choice(others, size=min(room, len(others)), replace=False))
    place = int(rng.integers(len(others) + 1))
    row = np.concatenate([others[:place], holding, others[place:]])
    span = (place * repeat, (place + len(holding)) * repeat - 1) if present else None
    starts_s = tuple(grid[row, 0].tolist())
    return SamplePlan(
        "long", film.video_id, spec.window_s, starts_s, (Target(index, span),), repeat
    )


def long_problem(film: FilmEvents, index: int, spec: SampleSpec) -> str | None:
    """Why an event cannot be asked in a row of segments, or None."""
    room = spec.num_segments // max(spec.segment_repeats)
    if len(holding_segments(film.events[index], segment_grid(film, spec))) > room:
        return "event covers more segments than a row holds"
    return None


# --- words ---


def answer_text(stage: str, target: Target, spec: SampleSpec) -> str:
    """The answer that is trained."""
    if stage != "dense" and spec.question == "yes_no":
        return NO if target.span is None else YES
    if target.span is None:
        return NOT_PRESENT
    first, last = target.span
    if stage != "long":
        return format_span(first, last)
    return format_segments(first, last + (spec.answer_end == "exclusive"))


def question_wording(stage: str, spec: SampleSpec) -> str:
    """Wording of the question; the dense rows of an alternate run ask about frames."""
    return "frames" if stage == "dense" else spec.question
