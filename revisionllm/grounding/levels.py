"""What the search and its predictor say to each other: levels, questions, answers, results.

Shapes only; the search itself is `recursion.py`. Everything is in seconds of the film.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from revisionllm.grounding.answers import answer_kind, parse_yes_no
from revisionllm.grounding.windows import Window, dense_windows

KINDS = ("cosine", "segments", "dense")


@dataclass(frozen=True)
class Level:
    """One level of the search, from the cheapest look at everything to dense windows.

    Attributes:
        name: unique; moments and reports carry it.
        kind: "cosine" (text-frame cosine of each segment, no model pass), "segments" (`group_size`
            segments per question) or "dense" (one window per question).
        window_s, stride_s: the level's grid over the film, in seconds; see `windows.dense_windows`.
        group_size: segments per question, repeats included.
        zooms: for segments: ask once per zoom z, with `group_size // z` segments repeated z times.
        min_votes: for several zooms: what this many of them agree on survives.
        keep_top: maximum number of the level's answers kept, best first; None: all.
        min_score: answers below it do not survive. Cosine levels: the cosine. Other levels:
            presence times the span's weight, 0..1; without it an answer survives if it names a
            span (or `yes`).
        cosine_weight: segments only. Above 0 the level's answers and the cosine of sentence and
            frames decide together which stretches of one stride survive (`ranking.joint_ranges`),
            named or not; in nats per unit of cosine.
        margin_s: surviving ranges are widened by it on both sides; None: one stride.
        most_windows: dense, coarse to fine: how many windows are asked about per query at most,
            those first that show the best of what the level before kept; None: all it kept.
        narrow: an answer over several overlapping segments means the time they share (where the
            middle of the event must be, by how answers are trained), not all of their time.
        fill_groups: a question over fewer than a group's segments is filled up with evenly spaced
            others, so that the model sees the number it was trained with.
    """

    name: str
    kind: str
    window_s: float
    stride_s: float
    group_size: int = 1
    zooms: tuple[int, ...] = (1,)
    min_votes: int = 1
    keep_top: int | None = None
    min_score: float | None = None
    cosine_weight: float = 0.0
    margin_s: float | None = None
    most_windows: int | None = None
    narrow: bool = False
    fill_groups: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind must be one of {KINDS}, got {self.kind!r}")
        if not 0 < self.stride_s <= self.window_s:
            problems.append(f"need 0 < stride_s <= window_s: {self.stride_s}, {self.window_s}")
        if self.group_size < 1 or not self.zooms or min(self.zooms) < 1:
            problems.append(f"group_size, zooms must be positive: {self.group_size}, {self.zooms}")
        if len(set(self.zooms)) != len(self.zooms):
            problems.append(f"zooms repeat: {self.zooms}")
        if self.kind == "dense" and (self.group_size, self.zooms) != (1, (1,)):
            problems.append("a dense question has one window and no zoom")
        if self.keep_top is not None and self.keep_top < 1:
            problems.append(f"keep_top must be positive, got {self.keep_top}")
        if self.most_windows is not None and (self.kind != "dense" or self.most_windows < 1):
            problems.append(f"most_windows needs dense and must be positive: {self.most_windows}")
        if self.kind == "cosine" and self.keep_top is None:
            problems.append("a cosine level needs keep_top")
        if self.cosine_weight < 0:
            problems.append(f"cosine_weight must not be negative, got {self.cosine_weight}")
        if self.cosine_weight and (self.kind != "segments" or self.keep_top is None):
            problems.append("cosine_weight needs segments and keep_top")
        if problems:
            raise ValueError(f"level {self.name!r}: {'; '.join(problems)}")

    def grid(self, duration_s: float) -> list[Window]:
        """All windows (or segments) of this level in a film of `duration_s` seconds."""
        return dense_windows(duration_s, window_s=self.window_s, stride_s=self.stride_s)

    @property
    def margin(self) -> float:
        """Seconds added on both sides of what survives."""
        return self.stride_s if self.margin_s is None else self.margin_s

    def budget(self, count: int) -> int:
        """How many of `count` answers may survive."""
        return count if self.keep_top is None else min(count, self.keep_top)


@dataclass(frozen=True)
class Question:
    """One thing to ask the model: a query over one dense window, or over segments in this order.

    Attributes:
        query: index of the query, 0-based.
        windows: the window, or the segments in the order in which they are to be shown.
        repeat: how often each segment is shown in a row; the answer counts shown positions.
    """

    query: int
    windows: tuple[Window, ...]
    repeat: int = 1

    @property
    def window(self) -> Window:
        """The window of a dense question."""
        return self.windows[0]

    @property
    def num_positions(self) -> int:
        """How many positions an answer may name."""
        return len(self.windows) * self.repeat

    def ranges(self, first: int, last: int, *, narrow: bool = False) -> list[tuple[float, float]]:
        """Time ranges (seconds) that the answer `From first to last.` names, both inclusive.

        Shown order may be shuffled: named segments are put back in film order, and each run of
        neighbours gives one range; see `Level.narrow`.

        Raises:
            ValueError: the positions are not among those shown.
        """
        if not 0 <= first <= last < self.num_positions:
            raise ValueError(f"no positions {first}..{last} among {self.num_positions}")
        named = self.windows[first // self.repeat : last // self.repeat + 1]
        runs: list[list[Window]] = []
        for window in sorted(named, key=lambda w: w.index):
            if runs and window.index == runs[-1][-1].index + 1:
                runs[-1].append(window)
            else:
                runs.append([window])
        return [_range_of(run, narrow) for run in runs]


def _range_of(run: list[Window], narrow: bool) -> tuple[float, float]:
    if narrow and run[-1].start_s < run[0].end_s:
        return run[-1].start_s, run[0].end_s
    return run[0].start_s, run[-1].end_s


@dataclass(frozen=True)
class SpanCandidate:
    """A span that an answer names; `score` is its weight against the answer's best span, 0..1."""

    start_s: float
    end_s: float
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """The model's answer to one question.

    Attributes:
        index, start_s, end_s: the (first) window asked about.
        answer: the text, e.g. `From 05 to 12.`, `Not Present`, `yes`.
        spans: what it names in seconds of the film, best first; spans may also be given for an
            answer `Not Present` (its next candidates): they rank, but do not survive a level by
            themselves.
        presence: 1 - P(first token of "Not Present"), 0..1; None: not known.
        entropy: mean entropy of the answer's open tokens, nats; None: not known.
    """

    index: int
    start_s: float
    end_s: float
    answer: str
    spans: tuple[SpanCandidate, ...] | list[SpanCandidate] = ()
    presence: float | None = None
    entropy: float | None = None

    @property
    def is_positive(self) -> bool:
        """The answer names a span or says yes."""
        return answer_kind(self.answer) == "span" or parse_yes_no(self.answer) is True


@dataclass(slots=True)
class Moment:
    """A ranked span in seconds of the film; higher `score` is better.

    `parts` holds what the score was made of (presence, entropy, cosine); `level` is the level that
    proposed it; `said` what is said then, where the level is words.
    """

    start_s: float
    end_s: float
    score: float
    parts: dict[str, float] = field(default_factory=dict)
    level: str = ""
    said: str | None = None


@dataclass
class LevelReport:
    """What one level did for one query.

    Attributes:
        visited: indices of the level's windows that were looked at, sorted, each once per zoom.
        questions: how many questions were asked.
        ranges_s: what survived, in seconds, margins included; the ranges that voted, in other
            orders.
        fell_back: nothing was answered, and the best-scored ranges by cosine took over.
    """

    name: str
    kind: str
    visited: list[int] = field(default_factory=list)
    questions: int = 0
    ranges_s: list[tuple[float, float]] = field(default_factory=list)
    fell_back: bool = False


@dataclass(slots=True)
class Cost:
    """What answering one query took.

    Attributes:
        dense_windows: dense windows that were asked about.
        segments: distinct segments (an adapter encodes each once).
        llm_tokens, seconds: a query's share of the LLM's tokens and of the wall clock.
        questions: to the LLM, dense windows included.
        cosine_spans: scored without a model pass.
    """

    dense_windows: int = 0
    segments: int = 0
    llm_tokens: int = 0
    seconds: float = 0.0
    questions: int = 0
    cosine_spans: int = 0


@dataclass
class SearchResult:
    """One query's answer: `moments` by falling score, `answers` by level as they were asked."""

    found: bool
    confidence: float
    moments: list[Moment]
    levels: list[LevelReport]
    cost: Cost
    answers: dict[str, list[WindowAnswer]]
