"""The recursive search: coarse levels first, then only the windows that survive.

    [cosine, 100 segments, 33 segments, dense]  ->  ranked moments, what was visited, what it cost

The model is a callable `predict(level, questions) -> answers`, asked for all queries of a film at
once, so that an engine can share a window's prefix among them. Three orders:

- coarse_to_fine (default): a level sees only what the one before it kept, plus a margin. When a
  level answers nothing, its best ranges by text-frame cosine go on instead; when the last level
  answers nothing, it looks at the best few windows that it has not seen yet.
- fine_to_coarse (the paper's "-I"): dense everywhere; coarse levels look where dense answered, and
  veto or rescale.
- exhaustive: every level sees everything; a dense moment that no coarse level names goes to the
  back (the released evaluation's filter).

Every level asks about each of its windows at most once per query and zoom, so the search ends
whatever the predictor says. Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from revisionllm.grounding import ranking
from revisionllm.grounding.calibration import Calibration
from revisionllm.grounding.levels import (
    Cost,
    Level,
    LevelReport,
    Question,
    SearchResult,
    WindowAnswer,
)
from revisionllm.grounding.scores import SpanCosine
from revisionllm.grounding.windows import merge_ranges, pad_ranges, touching_indices

ORDERS = ("coarse_to_fine", "fine_to_coarse", "exhaustive")

FIRST_SHARE = 2 / 3  # of `most_windows`, before the answers say where to look again
BELIEVED = 0.5  # presence from which on a span is worth a second window

Predict = Callable[[Level, list[Question]], Sequence[WindowAnswer]]


def search_many(
    num_queries: int,
    duration_s: float,
    levels: Sequence[Level],
    predict: Predict,
    *,
    order: str = "coarse_to_fine",
    cosine: SpanCosine | None = None,
    calibration: Calibration | None = None,
    threshold: float = 0.5,
    top_k: int = 50,
    nms_iou: float = 0.5,
    fallback_top: int = 4,
    shuffle_seed: int | None = None,
    hints: Sequence[Sequence[tuple[float, float]]] | None = None,
) -> list[SearchResult]:
    """Ground several queries in one film.

    Args:
        num_queries: queries are known by their index 0..num_queries-1.
        duration_s: length of the film.
        levels: coarse to fine; moments come from the last one.
        predict: answers a level's questions, one answer per question, same order. Called at most
            twice per level, with the questions of all queries; never for cosine levels.
        cosine: `cosine(query, spans_s [N, 2]) -> [N]`, text-frame cosine; needed by cosine levels.
            Without it fallbacks take evenly spaced windows and moments have no part "cosine".
        calibration: confidence out of the parts that `ranking.rank` names; without it the
            confidence is the presence.
        threshold: a query is found if its best moment's score is at least this.
        top_k: moments per query at most.
        nms_iou: a moment that overlaps a better one by more is dropped.
        fallback_top: how many windows take over when a level answers nothing (0: only what the last
            level needs to look at anything at all).
        shuffle_seed: show the segments of each question in a seeded order; None: film order.
        hints: per query ranges that something else proposes, such as what is said, best first;
            coarse to fine, the last level looks at them and at what the one before keeps, in turn.

    Returns:
        One result per query. Every query gets candidates if its last level looked at a window at
        all.

    Raises:
        ValueError: options contradict each other, or the predictor gives wrong counts or numbers
            that are not finite.
    """
    run = _Run(
        num_queries, duration_s, list(levels), predict, order, cosine, fallback_top, shuffle_seed
    )
    run.hints = [list(row) for row in hints or [()] * num_queries]
    run.go()
    rank = partial(
        ranking.rank,
        level=run.levels[-1].level,
        cosine=cosine,
        calibration=calibration,
        nms_iou=nms_iou,
        top_k=top_k,
    )
    return [run.result(query, rank, threshold) for query in run.queries]


class _LevelRun:
    """One level of one search: its grid; by query its report, answers and named ranges."""

    def __init__(self, level: Level, position: int, duration_s: float, num_queries: int) -> None:
        self.level, self.position = level, position
        self.windows = level.grid(duration_s)
        self.starts_s = np.array([w.start_s for w in self.windows])
        self.ends_s = np.array([w.end_s for w in self.windows])
        self.reports = [LevelReport(level.name, level.kind) for _ in range(num_queries)]
        self.answers: list[list[tuple[int, WindowAnswer]]] = [[] for _ in range(num_queries)]
        self.named: list[tuple[list[tuple[float, float]], list[float]]] = [
            ([], []) for _ in range(num_queries)
        ]

    def touching(self, ranges_s: Sequence[tuple[float, float]]) -> np.ndarray:
        return touching_indices(self.starts_s, self.ends_s, ranges_s)

    def spans_of(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.starts_s[indices], self.ends_s[indices]], axis=1)


class _Run:
    """The state of one `search_many` call."""

    def __init__(
        self,
        num_queries: int,
        duration_s: float,
        levels: list[Level],
        predict: Predict,
        order: str,
        cosine: SpanCosine | None,
        fallback_top: int,
        shuffle_seed: int | None,
    ) -> None:
        if not levels or len({level.name for level in levels}) != len(levels):
            raise ValueError("levels must have unique names, and there must be one")
        if cosine is None and any(lv.kind == "cosine" or lv.cosine_weight for lv in levels):
            raise ValueError("a cosine level or weight needs the cosine callable")
        if levels[-1].kind == "cosine":
            raise ValueError("the last level must ask the model: kind segments or dense")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        self.order = order
        self.queries = range(num_queries)
        self.duration_s = float(duration_s)
        self.predict, self.cosine = predict, cosine
        self.fallback_top, self.shuffle_seed = fallback_top, shuffle_seed
        self.hints: list[list[tuple[float, float]]] = [[] for _ in self.queries]
        self.levels = [_LevelRun(lv, i, duration_s, num_queries) for i, lv in enumerate(levels)]

    def go(self) -> None:
        """Run the search in its order."""
        {
            "coarse_to_fine": self._coarse_to_fine,
            "fine_to_coarse": self._fine_to_coarse,
            "exhaustive": self._exhaustive,
        }[self.order]()

    # --- the three orders ---

    def _coarse_to_fine(self) -> None:
        ranges = [[(0.0, self.duration_s)] for _ in self.queries]
        for at in self.levels[:-1]:
            self._look(at, [at.touching(ranges[query]) for query in self.queries])
            ranges = [self._survivors(at, query) for query in self.queries]
        last = self.levels[-1]
        ranges = [merge_ranges([*ranges[q], *self.hints[q]]) for q in self.queries]
        wanted = [last.touching(ranges[q]) for q in self.queries]
        self._look(last, [self._first_look(last, q, wanted[q]) for q in self.queries])
        self._look(last, [self._second_look(last, q, wanted[q]) for q in self.queries])

    def _fine_to_coarse(self) -> None:
        self._look_everywhere(self.levels[-1])
        ranges = [merge_ranges(self.levels[-1].named[query][0]) for query in self.queries]
        for at in reversed(self.levels[:-1]):
            wanted = [pad_ranges(ranges[q], at.level.margin, self.duration_s) for q in self.queries]
            self._look(at, [at.touching(wanted[query]) for query in self.queries])

    def _exhaustive(self) -> None:
        for at in self.levels:
            self._look_everywhere(at)

    def _look_everywhere(self, at: _LevelRun) -> None:
        self._look(at, [np.arange(len(at.windows)) for _ in self.queries])

    # --- one level ---

    def _look(self, at: _LevelRun, wanted: list[np.ndarray]) -> None:
        """Look at windows `wanted[query]` of a level, and note which ranges it names."""
        if at.level.kind == "cosine":
            for query in self.queries:
                self._look_by_cosine(at, query, wanted[query])
            return
        plan = [
            (zoom, question)
            for query in self.queries
            for zoom in at.level.zooms
            for question in self._questions(at, query, wanted[query], zoom)
        ]
        if not plan:
            return
        answers = self.predict(at.level, [question for _, question in plan])
        if len(answers) != len(plan):
            raise ValueError(
                f"level {at.level.name!r}: {len(plan)} questions, {len(answers)} answers"
            )
        for (zoom, question), answer in zip(plan, answers, strict=True):
            at.answers[question.query].append((zoom, answer))
            report = at.reports[question.query]
            report.questions += 1
            report.visited.extend(window.index for window in question.windows)
        for query in self.queries:
            at.reports[query].visited.sort()
            at.named[query] = self._named_ranges(at, query)

    def _look_by_cosine(self, at: _LevelRun, query: int, wanted: np.ndarray) -> None:
        if not wanted.size:
            return
        scores = self._cosines(at, query, wanted)
        order = np.argsort(-scores, kind="stable")[: at.level.budget(len(wanted))]
        if at.level.min_score is not None:
            order = order[scores[order] >= at.level.min_score]
        spans = [tuple(span) for span in at.spans_of(wanted[order]).tolist()]
        at.named[query] = (spans, [1.0] * len(spans))
        at.reports[query].visited = wanted.tolist()

    def _questions(
        self, at: _LevelRun, query: int, indices: np.ndarray, zoom: int
    ) -> list[Question]:
        """The level's windows `indices` (sorted) as questions of nearly equal size."""
        size = max(1, at.level.group_size // zoom)
        if at.level.fill_groups and 0 < indices.size < size:
            taken = np.union1d(indices, at.reports[query].visited)
            others = np.setdiff1d(np.arange(len(at.windows)), taken)
            indices = np.union1d(indices, _evenly_spaced(others, size - indices.size))
        num_groups = math.ceil(indices.size / size)
        questions = []
        for number, group in enumerate(np.array_split(indices, num_groups) if num_groups else []):
            if self.shuffle_seed is not None:
                seed = [self.shuffle_seed, at.position, zoom, number]
                group = np.random.default_rng(seed).permutation(group)
            windows = tuple(at.windows[i] for i in group.tolist())
            questions.append(Question(query, windows, repeat=zoom))
        return questions

    def _named_ranges(
        self, at: _LevelRun, query: int
    ) -> tuple[list[tuple[float, float]], list[float]]:
        """Ranges that the level's zooms agree on, and the best score of an answer in each."""
        answers = at.answers[query]
        if at.level.cosine_weight:
            seen = at.spans_of(np.array(at.reports[query].visited, dtype=np.int64))
            return ranking.joint_ranges(
                at.level,
                [answer for _, answer in answers],
                merge_ranges([tuple(span) for span in seen.tolist()]),
                self.duration_s,
                partial(self._cosines_of, query),
            )
        by_zoom = [
            ranking.surviving_ranges(
                at.level, [a for z, a in answers if z == zoom], self.duration_s
            )
            for zoom in at.level.zooms
        ]
        if len(by_zoom) == 1:
            return by_zoom[0]
        votes = [merge_ranges(ranges) for ranges, _ in by_zoom]
        agreed = ranking.voted_ranges(votes, at.level.min_votes)
        spans = [span for ranges, _ in by_zoom for span in ranges]
        scores = [score for _, zoom_scores in by_zoom for score in zoom_scores]
        return agreed, ranking.best_scores(agreed, spans, scores)

    # --- between levels ---

    def _survivors(self, at: _LevelRun, query: int) -> list[tuple[float, float]]:
        """What the next level is to see: named ranges, or the fallback, widened by the margin."""
        report, ranges = at.reports[query], at.named[query][0]
        if not ranges and report.visited:
            report.fell_back = True
            seen = np.unique(report.visited)
            best = self._best(at, query, seen, max(1, self.fallback_top))
            ranges = [tuple(span) for span in at.spans_of(best).tolist()]
        report.ranges_s = pad_ranges(ranges, at.level.margin, self.duration_s)
        return report.ranges_s

    def _first_look(self, at: _LevelRun, query: int, indices: np.ndarray) -> np.ndarray:
        """The last level's windows, sorted; where `most_windows` allows less, a share of that."""
        most = at.level.most_windows
        if most is None or indices.size <= most:
            return indices
        return np.sort(self._in_turn(at, query, indices)[: math.ceil(FIRST_SHARE * most)])

    def _second_look(self, at: _LevelRun, query: int, indices: np.ndarray) -> np.ndarray:
        """Windows of the last level to ask about after the first answers, sorted.

        Where it may ask about all that the level before kept, and it named nothing: the best ones
        not seen yet. Else what is left of `most_windows`: the windows that also show what was
        named, to be told twice, then the next ones in turn.
        """
        report, most = at.reports[query], at.level.most_windows
        seen = set(report.visited)
        if most is None or indices.size <= most:
            if at.named[query][0]:
                return np.zeros(0, dtype=np.int64)
            unseen = np.setdiff1d(np.arange(len(at.windows)), report.visited)
            count = self.fallback_top if most is None else min(self.fallback_top, most - len(seen))
            best = self._best(at, query, unseen, count)
            report.fell_back = best.size > 0
            return best
        answers = [answer for _, answer in at.answers[query]]
        found = ranking.candidates_of(answers, self.duration_s)
        chances = found.presence * found.weight
        order = [n for n in np.argsort(-chances, kind="stable") if chances[n] >= BELIEVED]
        again = [np.zeros(0, dtype=np.int64)]
        for start_s, end_s in found.spans_s[order]:
            shared_s = np.minimum(at.ends_s, end_s) - np.maximum(at.starts_s, start_s)
            again.append(np.nonzero(shared_s > (end_s - start_s) / 2)[0])
        chosen = dict.fromkeys([*np.concatenate(again), *self._in_turn(at, query, indices)])
        unseen = [index for index in chosen if index not in seen]
        return np.array(sorted(unseen[: most - len(seen)]), dtype=np.int64)

    def _in_turn(self, at: _LevelRun, query: int, indices: np.ndarray) -> np.ndarray:
        """Windows of the last level in the order in which they are worth asking about.

        Each hint and each range of the level before, in turn and the best first, gets the window
        that shows it most in the middle; then come the other windows of these ranges in the same
        order.
        """
        named = self.levels[at.position - 1].named[query][0] if at.position else []
        in_turn = itertools.zip_longest(self.hints[query], named)
        named = [span for pair in in_turn for span in pair if span is not None]
        if not named:
            return self._best(at, query, indices, indices.size)
        middles = (at.starts_s + at.ends_s) / 2
        by_range = []
        for start_s, end_s in named:
            touched = at.touching([(start_s, end_s)])
            distance = np.abs(middles[touched] - (start_s + end_s) / 2)
            by_range.append(touched[np.argsort(distance, kind="stable")].tolist())
        chosen: dict[int, None] = {}
        for turn in range(max(map(len, by_range))):
            for touched in by_range:
                if turn < len(touched):
                    chosen.setdefault(touched[turn])
        return np.array([*chosen], dtype=np.int64)

    def _best(self, at: _LevelRun, query: int, indices: np.ndarray, count: int) -> np.ndarray:
        """The `count` windows of `indices` with the best cosine (evenly spaced without), sorted."""
        if indices.size <= count or count == 0:
            return indices[:count]
        if self.cosine is None:
            return _evenly_spaced(indices, count)
        order = np.argsort(-self._cosines(at, query, indices), kind="stable")
        return np.sort(indices[order[:count]])

    def _cosines(self, at: _LevelRun, query: int, indices: np.ndarray) -> np.ndarray:
        return self._cosines_of(query, np.minimum(at.spans_of(indices), self.duration_s))

    def _cosines_of(self, query: int, spans_s: np.ndarray) -> np.ndarray:
        scores = np.asarray(self.cosine(query, spans_s), dtype=np.float64)
        if scores.shape != (len(spans_s),) or not np.isfinite(scores).all():
            raise ValueError(f"query {query}: need {len(spans_s)} finite cosines")
        return scores

    # --- results ---

    def result(self, query: int, rank: Callable, threshold: float) -> SearchResult:
        """Rank what the last level found for one query."""
        answers = [answer for _, answer in self.levels[-1].answers[query]]
        found = self._candidates(query, answers)
        moments = rank(found, answers, query=query, factor=self._factors(query, found.spans_s))
        confidence = moments[0].score if moments else 0.0
        return SearchResult(
            found=bool(moments) and confidence >= threshold,
            confidence=confidence,
            moments=moments,
            levels=[at.reports[query] for at in self.levels],
            cost=self._cost(query),
            answers={at.level.name: [a for _, a in at.answers[query]] for at in self.levels},
        )

    def _candidates(self, query: int, answers: list[WindowAnswer]) -> ranking.Candidates:
        """Spans of the last level's answers; without any, its best windows as they are."""
        found = ranking.candidates_of(answers, self.duration_s)
        if len(found):
            return found
        whole = ranking.whole_windows(answers, self.duration_s)
        if self.cosine is None or not len(whole):
            return whole
        order = np.argsort(-self._cosines_of(query, whole.spans_s), kind="stable")
        return ranking.take(whole, order[: max(1, self.fallback_top)])

    def _factors(self, query: int, spans_s: np.ndarray) -> np.ndarray:
        if self.order == "coarse_to_fine":  # the coarse levels have filtered already
            return np.ones(len(spans_s))
        coarse = [at.named[query] for at in self.levels[:-1]]
        for at in self.levels[:-1]:
            at.reports[query].ranges_s = merge_ranges(at.named[query][0])
        return ranking.support_factors(spans_s, coarse, rescale=self.order == "fine_to_coarse")

    def _cost(self, query: int) -> Cost:
        cost = Cost()
        segments = set()
        for at in self.levels:
            report = at.reports[query]
            cost.questions += report.questions
            if at.level.kind == "dense":
                cost.dense_windows += len(report.visited)
            elif at.level.kind == "cosine":
                cost.cosine_spans += len(report.visited)
            else:
                segments.update(
                    (at.windows[i].start_s, at.windows[i].end_s) for i in report.visited
                )
        cost.segments = len(segments)
        return cost


def _evenly_spaced(indices: np.ndarray, count: int) -> np.ndarray:
    """`count` of the indices, first and last included; all of them if there are no more."""
    if indices.size <= count:
        return indices
    return indices[np.linspace(0, indices.size - 1, count).round().astype(np.int64)]
