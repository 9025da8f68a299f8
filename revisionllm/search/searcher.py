"""Grounds a film's queries with loaded models and turns the results into predictions.

One place for all entry points: dense windows alone, segments alone, or the whole recursion; they
differ in levels, engines and order.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from revisionllm.grounding.levels import Level, Question, SearchResult, WindowAnswer
from revisionllm.grounding.recursion import search_many
from revisionllm.grounding.scores import frame_cosines, span_cosine_of
from revisionllm.grounding.windows import Window, film_window_s, frame_feature_indices
from revisionllm.model.queries import query_rows
from revisionllm.records import predictions as schema
from revisionllm.search.cost import ModelShape, Plan, choose_plan, device_speeds

if TYPE_CHECKING:
    from revisionllm.engine.dense import DenseEngine
    from revisionllm.engine.segments import SegmentEngine
    from revisionllm.search.answer_log import AnswerLog


@dataclass(frozen=True)
class EvalQuery:
    """A sentence to find in a film.

    Attributes:
        gt: true spans in seconds; None: not known.
        words: word features [L, D]; None where no level needs them.
        feature: sentence feature [D]; None: no text-frame cosine.
    """

    qid: str
    sentence: str
    gt: list[tuple[float, float]] | None = None
    words: np.ndarray | None = None
    feature: np.ndarray | None = None

    def rows_for(self, config) -> np.ndarray:
        """What the adapter of a run reads of the query."""
        reads_sentence = config.adapter.reads_sentence
        return query_rows(self.words, self.feature, reads_sentence=reads_sentence)


@dataclass(frozen=True)
class EvalFilm:
    """A film's features [T, D]; row i is the frame at i / feature_fps seconds.

    Attributes:
        vid: name used in predictions.
        key: names these very features; engines keep work for the next queries about the same key.
            None: nothing is kept.
    """

    vid: str
    rows: np.ndarray
    feature_fps: float
    duration_s: float
    key: str | None = None

    def window_frames(self, window: Window, config) -> np.ndarray:
        """What a run's model sees of a window: float32 [F, D]."""
        indices = frame_feature_indices(
            window.start_s,
            window_s=window.end_s - window.start_s,
            frames_per_window=config.frames_per_window,
            feature_fps=self.feature_fps,
            num_features=len(self.rows),
            time_mapping=config.time_mapping,
        )
        return np.asarray(self.rows[indices], dtype=np.float32)


class RecordedEngine:
    """Stands in for an engine with answers that were predicted before, by query and window."""

    def __init__(self, answers: Mapping[tuple[str, int], WindowAnswer]) -> None:
        self.answers = answers

    def answer(self, questions: Sequence[Question], qids: Sequence[str]) -> list[WindowAnswer]:
        """Recorded answers; windows without one say nothing."""
        found = []
        for question in questions:
            window = question.window
            silent = WindowAnswer(window.index, window.start_s, window.end_s, "", (), 0.0)
            found.append(self.answers.get((qids[question.query], window.index), silent))
        return found


@dataclass
class FilmSearcher:
    """Searches films with fixed levels.

    Attributes:
        levels: coarse to fine.
        engines: by level name; none for cosine levels.
        run: what predictions are signed with.
        options: further keyword arguments of `search_many`.
        only_positive: moments come from answers that name something, never from a fallback.
        refine_top: so many moments per query are refined at full feature rate (`search.refine`).
        answer_log: where answers are written while a batch is asked; None: nowhere.
    """

    levels: Sequence[Level]
    engines: Mapping[str, DenseEngine | SegmentEngine | RecordedEngine]
    run: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    only_positive: bool = False
    refine_top: int = 0
    answer_log: AnswerLog | None = None
    _spared_tokens: int = 0

    @property
    def needs_words(self) -> bool:
        """A level's adapter reads the words of the queries."""
        return any(level.kind == "segments" for level in self.levels)

    @property
    def needs_text(self) -> bool:
        """A level reads text features of the queries, in words or as a whole."""
        return any(level.kind != "dense" for level in self.levels)

    @property
    def config(self):
        """The config of the first model that is asked."""
        return self._asked[0].model.config

    @property
    def llm_tokens(self) -> int:
        """Tokens that went through LLMs so far, for answers found on disk too."""
        return self._spared_tokens + sum(engine.cost.llm_tokens for engine in self._asked)

    @property
    def _asked(self) -> list[DenseEngine | SegmentEngine]:
        return [e for e in self.engines.values() if not isinstance(e, RecordedEngine)]

    def ground(self, film: EvalFilm, queries: Sequence[EvalQuery]) -> list[schema.Prediction]:
        """One prediction per query, in order; work that queries share is divided evenly."""
        started, tokens = time.perf_counter(), self.llm_tokens
        if self.answer_log is not None:
            self.answer_log.start_batch([film.vid, film.duration_s], [q.qid for q in queries])
        cosine = None
        known = [query.feature for query in queries if query.feature is not None]
        if known and (len(known) == len(queries) or not self.needs_text):
            # without a sentence feature (too long for the CLIP) the cosine is 0, as of no likeness
            nothing = np.zeros_like(known[0])
            features = np.stack([nothing if q.feature is None else q.feature for q in queries])
            cosine = span_cosine_of(frame_cosines(film.rows, features), film.feature_fps)
        results = search_many(
            len(queries),
            film.duration_s,
            [self._film_level(level, film.duration_s) for level in self.levels],
            lambda level, questions: self._predict(film, queries, level, questions),
            cosine=cosine,
            **self.options,
        )
        if self.refine_top:
            self._refine(film, queries, results)
        share = 1 / len(queries)
        cost = round((self.llm_tokens - tokens) * share), (time.perf_counter() - started) * share
        return [
            self._prediction(film, query, result, *cost)
            for query, result in zip(queries, results, strict=True)
        ]

    def _film_level(self, level: Level, duration_s: float) -> Level:
        """A level as its run was trained on films of this length."""
        engine = self.engines.get(level.name)
        if level.kind != "dense" or engine is None or isinstance(engine, RecordedEngine):
            return level
        window_s = film_window_s(
            level.window_s,
            duration_s,
            double_rate_short=engine.model.config.double_rate_short,
        )
        share = window_s / level.window_s
        return replace(level, window_s=window_s, stride_s=level.stride_s * share)

    def _refine(self, film: EvalFilm, queries, results: Sequence[SearchResult]) -> None:
        """Replace the results' moments by refined ones; the questions count as dense windows."""
        from revisionllm.search.refine import is_asked_again, refine_moments

        engine = self.engines[self.levels[-1].name]
        moments = refine_moments(
            engine,
            [query.sentence for query in queries],
            lambda window: film.window_frames(window, engine.model.config),
            [result.moments for result in results],
            top=self.refine_top,
            feature_fps=film.feature_fps,
            duration_s=film.duration_s,
            film=film.key,
        )
        config, fps = engine.model.config, film.feature_fps
        for result, row in zip(results, moments, strict=True):
            best = result.moments[: self.refine_top]
            result.cost.dense_windows += sum(is_asked_again(m, config, fps) for m in best)
            result.moments = row

    def failed(self, film_id: str, duration_s: float, query: EvalQuery, reason: str):
        """The prediction of a query that could not be answered."""
        return schema.Prediction(
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

    def _predict(self, film, queries, level: Level, questions) -> Sequence[WindowAnswer]:
        if self.answer_log is None:
            return self._ask(film, queries, level, questions)
        answers, spared = self.answer_log.ask(
            level.name,
            questions,
            lambda piece: self._ask(film, queries, level, piece),
            lambda: self.llm_tokens,
        )
        self._spared_tokens += spared
        return answers

    def _ask(self, film, queries, level: Level, questions) -> Sequence[WindowAnswer]:
        engine = self.engines[level.name]
        if isinstance(engine, RecordedEngine):
            return engine.answer(questions, [query.qid for query in queries])
        config = engine.model.config
        sentences = [query.sentence for query in queries]

        def features(window: Window) -> np.ndarray:
            return film.window_frames(window, config)

        if level.kind == "dense":
            return engine.answer(questions, sentences, features, film=film.key)
        words = [query.rows_for(config) for query in queries]
        return engine.answer(
            questions, sentences, words, features, film=film.key, narrow=level.narrow
        )

    def _prediction(
        self, film: EvalFilm, query: EvalQuery, result: SearchResult, tokens: int, seconds: float
    ) -> schema.Prediction:
        answers = result.answers[self.levels[-1].name]
        named = any(answer.is_positive for answer in answers) or not self.only_positive
        moments = [
            schema.Moment(m.start_s, m.end_s, m.score, m.parts, m.level)
            for m in (result.moments if named else [])
        ]
        return schema.Prediction(
            qid=query.qid,
            vid=film.vid,
            query=query.sentence,
            duration_s=film.duration_s,
            found=result.found and named,
            moments=moments,
            cost=schema.Cost(result.cost.dense_windows, result.cost.segments, tokens, seconds),
            run=self.run,
            gt=query.gt,
            windows=[
                schema.WindowAnswer(a.index, a.start_s, a.end_s, a.answer, a.presence, a.entropy)
                for a in answers
            ],
        )


@dataclass
class PlannedSearcher(FilmSearcher):
    """Chooses among plans for each film and number of queries.

    Attributes:
        plans: `plans(duration_s)` gives what to choose from; one: no choice.
        shape: of the dense run's LLM, for counting work.
        quiet: do not say on stderr which plan was taken, and why.
    """

    plans: Callable[[float], Sequence[Plan]] | None = None
    shape: ModelShape | None = None
    quiet: bool = False
    _said: set[str] = field(default_factory=set)

    @property
    def needs_words(self) -> bool:
        """A level of some plan may read the words of the queries."""
        return len(self.engines) > 1

    @property
    def needs_text(self) -> bool:
        """A level of some plan may read text features."""
        return True

    def ground(self, film: EvalFilm, queries: Sequence[EvalQuery]) -> list[schema.Prediction]:
        """`FilmSearcher.ground` with the plan that costs least."""
        choice = choose_plan(
            self.plans(film.duration_s),
            self.shape,
            duration_s=film.duration_s,
            num_queries=len(queries),
            feature_fps=film.feature_fps,
            speeds=device_speeds(self._asked[0].model.device.type),
        )
        if choice.plan.name not in self._said and not self.quiet:
            self._said.add(choice.plan.name)
            print(f"plan for {film.vid}: {choice.reason}", file=sys.stderr)
        self.levels = choice.plan.levels
        self.options = self.options | {"order": choice.plan.order}
        return super().ground(film, queries)


def recorded_answers(
    predictions: Sequence[schema.Prediction],
) -> dict[tuple[str, int], WindowAnswer]:
    """Answers of a dense stage by (query, window); positive ones name their whole window."""
    from revisionllm.grounding.levels import SpanCandidate

    answers = {}
    for prediction in predictions:
        for w in prediction.windows or ():
            answer = WindowAnswer(w.index, w.start_s, w.end_s, w.answer, (), w.presence or 0.0)
            if answer.is_positive:
                span = SpanCandidate(w.start_s, w.end_s)
                answer = WindowAnswer(
                    w.index, w.start_s, w.end_s, w.answer, (span,), w.presence or 0.0
                )
            answers[prediction.qid, w.index] = answer
    return answers
