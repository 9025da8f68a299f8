"""Searches films for sentences: the one search behind `find`, the library and all evaluation.

They differ in the plan (levels and their order) and in the engines that answer each level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from revisionllm.engine import Engine, EngineCost
from revisionllm.grounding.calibration import Calibration
from revisionllm.grounding.levels import (
    Level,
    Question,
    SearchResult,
    SpanCandidate,
    WindowAnswer,
)
from revisionllm.grounding.recursion import search_many
from revisionllm.grounding.scores import SpanCosine, frame_cosines, span_cosine_of
from revisionllm.records.films import Film, Query
from revisionllm.records.predictions import Prediction
from revisionllm.search.answer_log import AnswerLog
from revisionllm.search.cost import Plan
from revisionllm.search.refine import is_asked_again, refine_moments


@dataclass(frozen=True)
class SearchOptions:
    """How a search ranks and what it reports, whatever its plan.

    Attributes:
        threshold, top_k, nms_iou, shuffle_seed, calibration: see `recursion.search_many`.
        only_positive: moments come from answers that name something, never from a fallback.
        refine_top: so many moments per query are refined at full feature rate (`search.refine`).
    """

    threshold: float = 0.5
    top_k: int = 50
    nms_iou: float = 0.5
    shuffle_seed: int | None = None
    calibration: Calibration | None = None
    only_positive: bool = False
    refine_top: int = 0


@dataclass
class Searcher:
    """Searches films with loaded engines.

    Attributes:
        engines: by level name; none for cosine levels.
        config: of the run whose windows are searched.
        plan_for: the plan for a film and so many queries; mostly a `plans.Planner`.
        run: what predictions are signed with.
        answer_log: where answers are written while a batch is asked; None: nowhere.
    """

    engines: Mapping[str, Engine]
    config: object
    options: SearchOptions
    plan_for: Callable[[Film, int], Plan]
    run: str = ""
    answer_log: AnswerLog | None = None
    _spared_tokens: int = 0

    @property
    def llm_tokens(self) -> int:
        """Tokens that went through LLMs so far, for answers found on disk too."""
        return self._spared_tokens + sum(e.cost.llm_tokens for e in self.engines.values())

    def ground(self, film: Film, queries: Sequence[Query]) -> list[Prediction]:
        """One prediction per query, in order; work that queries share is divided evenly."""
        started, tokens = time.perf_counter(), self.llm_tokens
        plan, options = self.plan_for(film, len(queries)), self.options
        if self.answer_log is not None:
            self.answer_log.start_batch([film.vid, film.duration_s], [q.qid for q in queries])
        results = search_many(
            len(queries),
            film.duration_s,
            plan.levels,
            lambda level, questions: self._ask(level, questions, film, queries),
            order=plan.order,
            cosine=query_cosine(film, queries, plan.levels),
            calibration=options.calibration,
            threshold=options.threshold,
            top_k=options.top_k,
            nms_iou=options.nms_iou,
            shuffle_seed=options.shuffle_seed,
            hints=[query.hints for query in queries],
        )
        if options.refine_top:
            self._refine(plan.levels[-1], film, queries, results)
        share = 1 / len(queries)
        for result in results:
            result.cost.llm_tokens = round((self.llm_tokens - tokens) * share)
            result.cost.seconds = (time.perf_counter() - started) * share
        return [
            self._prediction(film, query, result, plan.levels[-1])
            for query, result in zip(queries, results, strict=True)
        ]

    def _ask(
        self, level: Level, questions: list[Question], film: Film, queries: Sequence[Query]
    ) -> Sequence[WindowAnswer]:
        engine = self.engines[level.name]
        if self.answer_log is None:
            return engine.answer(level, questions, film, queries)
        answers, spared = self.answer_log.ask(
            level.name,
            questions,
            lambda piece: engine.answer(level, piece, film, queries),
            lambda: self.llm_tokens,
        )
        self._spared_tokens += spared
        return answers

    def _refine(
        self, level: Level, film: Film, queries: Sequence[Query], results: list[SearchResult]
    ) -> None:
        """Replace the results' moments by refined ones; the questions count as dense windows."""
        top = self.options.refine_top
        moments = [result.moments for result in results]
        engine = self.engines[level.name]
        refined = refine_moments(engine, level, film, queries, moments, top=top)
        for result, row in zip(results, refined, strict=True):
            result.cost.dense_windows += sum(
                is_asked_again(moment, self.config, film.feature_fps)
                for moment in result.moments[:top]
            )
            result.moments = row

    def _prediction(
        self, film: Film, query: Query, result: SearchResult, last: Level
    ) -> Prediction:
        answers = result.answers[last.name]
        named = any(a.is_positive for a in answers) or not self.options.only_positive
        return Prediction(
            qid=query.qid,
            vid=film.vid,
            query=query.sentence,
            duration_s=film.duration_s,
            found=result.found and named,
            moments=result.moments if named else [],
            cost=result.cost,
            run=self.run,
            gt=query.gt,
            windows=answers,
        )

    def failed(self, film_id: str, duration_s: float, query: Query, reason: str) -> Prediction:
        """The prediction of a query that could not be answered."""
        return Prediction(
            qid=query.qid,
            vid=film_id,
            query=query.sentence,
            duration_s=duration_s,
            found=False,
            status="failed",
            reason=reason,
            run=self.run,
            gt=query.gt,
        )


def query_cosine(
    film: Film, queries: Sequence[Query], levels: Sequence[Level] = ()
) -> SpanCosine | None:
    """Text-frame cosine of the queries in a film; None where no query has a sentence feature (as
    wide as the frames'), or where a level needs all of them and one is missing."""
    known = [query.feature for query in queries if query.feature is not None]
    known = [feature for feature in known if len(feature) == film.features.shape[1]]
    needed = any(level.kind != "dense" for level in levels)
    if not known or (needed and len(known) < len(queries)):
        return None
    # without a sentence feature (too long for the CLIP) the cosine is 0, as of no likeness
    nothing = np.zeros_like(known[0])
    features = np.stack([nothing if q.feature is None else q.feature for q in queries])
    rows, feature_fps = film.coarse or (film.features, film.feature_fps)
    return span_cosine_of(frame_cosines(rows, features), feature_fps)


class RecordedEngine:
    """Stands in for an engine with answers that were predicted before.

    Args:
        predictions: of a dense stage, with their windows; a positive answer names its whole window.
    """

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self.cost = EngineCost()
        self.answers = {(p.qid, w.index): _whole(w) for p in predictions for w in p.windows or ()}

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """Recorded answers; windows without one say nothing."""
        return [
            self.answers.get((queries[q.query].qid, q.window.index))
            or WindowAnswer(q.window.index, q.window.start_s, q.window.end_s, "", (), 0.0)
            for q in questions
        ]


def _whole(window: WindowAnswer) -> WindowAnswer:
    span = SpanCandidate(window.start_s, window.end_s)
    return WindowAnswer(
        window.index,
        window.start_s,
        window.end_s,
        window.answer,
        (span,) if window.is_positive else (),
        window.presence or 0.0,
    )
