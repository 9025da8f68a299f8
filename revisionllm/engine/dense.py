"""Dense windows for many queries: each window's prefix once, all its questions packed behind it.

For one film and a list of (query, window) questions the engine
- runs the prefix (system text, frames, the words that all questions share) once per window, keeps
  its keys and values, and keeps them between calls about the same film;
- runs the questions of all queries about many windows in one forward, without padding and without
  attention to each other (`attention.py`);
- reads presence off the first choice and stops there for windows that answer `Not Present`;
- decodes the others greedily under the answer grammar (`decoder.py`), forced tokens together with
  the next choice.
Answers equal those of `reference.answer_one`, one query and one window at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from revisionllm.engine import EngineCost
from revisionllm.engine.attention import packed_attention
from revisionllm.engine.choices import Choices, PendingAnswer
from revisionllm.engine.decoder import Decoder
from revisionllm.engine.prefixes import Budget, PrefixBatch, run_prefixes
from revisionllm.grounding.answers import NOT_PRESENT, AnswerGrammar
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.windows import Window
from revisionllm.model.llama import GroundingModel
from revisionllm.model.prompts import CHAT
from revisionllm.records.films import Film, Query

WindowFeatures = Callable[[Window], np.ndarray]
# sentences that begin differently: what their questions share is the question's wording
PROBES = ("a", "the", "someone", "x", "3", "in")
# span_refinement "expected": answers listed per question, and how far their ends may lie, frames
REFINING_CANDIDATES, REFINING_FRAMES = 16, 1


def grammar_encoder(model: GroundingModel) -> Callable[[str], list[int]]:
    """How a run's answers are tokenised; grammars put a space before them, which a chat has not."""
    if model.config.prompt_template == CHAT:
        return lambda text: model.answer_ids(text.removeprefix(" "))
    return model.answer_ids


def span_grammar(model: GroundingModel) -> AnswerGrammar:
    """The grammar of dense answers for the run's tokenizer and frames per window."""
    return AnswerGrammar.spans(
        grammar_encoder(model),
        eos_id=model.tokenizer.eos_token_id,
        num_frames=model.config.frames_per_window,
        context="",
    )


def shared_tokens(suffixes: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all suffixes begin with, leaving at least one to each."""
    shortest = min(len(suffix) for suffix in suffixes) - 1
    for index in range(shortest):
        if len({suffix[index] for suffix in suffixes}) > 1:
            return list(suffixes[0][:index])
    return list(suffixes[0][:shortest])


class DenseEngine:
    """Answers dense questions of many queries about one film.

    Args:
        model: a loaded run.
        budget_mb: memory for keys, values and activations, in MiB; None: by the device
            (`prefixes.default_budget_mb`).
        explore: a window whose presence is at least this is asked for its span even if its answer
            is `Not Present`: such candidates rank low, but they are there. 1.0: never.
        num_candidates: spans per answer at most, weighted by their probability against the
            answer's own; 1: that one alone.

    With `span_refinement: expected` in the run's config, the answer's span ends between frames: at
    the mean of its likely neighbours (`expected_frames`), for a few more tokens per answer.

    Attributes:
        cost: work done so far.
    """

    def __init__(
        self,
        model: GroundingModel,
        *,
        budget_mb: int | None = None,
        explore: float = 0.05,
        num_candidates: int = 1,
    ) -> None:
        self.model = model.eval()
        self.budget = Budget.of(model.llm, budget_mb)
        self.choices = Choices(span_grammar(model))
        self.cost = EngineCost()
        self._num_candidates = num_candidates
        self._refines = model.config.span_refinement == "expected"
        self.decoder = Decoder(
            model.llm,
            self.choices,
            self.budget,
            self.cost,
            explore=explore,
            num_candidates=max(num_candidates, REFINING_CANDIDATES * self._refines),
        )
        self._before = model.prompt_pieces(model.question("x"))[0]
        self._film: str | None = None
        self._kept: list[PrefixBatch] = []

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """Answer dense questions; see `Engine.answer`.

        Prefixes are kept for the next call about the same film as far as the budget allows. The
        film's frames are read in another thread.
        """
        started = time.perf_counter()
        if film.key is None or film.key != self._film:
            self._kept = []
        self._film = film.key
        sentences = [query.sentence for query in queries]

        def features(window: Window) -> np.ndarray:
            return film.window_frames(window, self.model.config)

        answers: list[WindowAnswer | None] = [None] * len(questions)
        with torch.inference_mode(), packed_attention(self.model.llm):
            for ask in self.decoder.run(self._work(questions, sentences, features)):
                answers[ask.position] = self._to_answer(ask, questions[ask.position].window)
        if film.key is None:
            self._kept = []
        self.cost.seconds += time.perf_counter() - started
        return answers

    # --- what to run --------------------------------------------------------------------------

    def _work(
        self, questions, sentences, features
    ) -> Iterator[tuple[PrefixBatch, list[PendingAnswer]]]:
        """Prefix batches, kept ones first, with the questions about their windows."""
        if not questions:
            return
        suffixes = self._suffixes(sentences, {q.query for q in questions})
        self._kept = [b for b in self._kept if _opens_all(b.shared, suffixes.values())]
        waiting: dict[Window, list[int]] = {}
        for position, question in enumerate(questions):
            waiting.setdefault(question.window, []).append(position)
        for batch in list(self._kept):
            asked = {w: waiting.pop(w) for w in batch.keys if w in waiting}
            if asked:
                yield batch, self._asks(batch, asked, questions, suffixes)
        for batch in self._new_batches(list(waiting), list(suffixes.values()), features):
            asked = {w: waiting[w] for w in batch.keys}
            yield batch, self._asks(batch, asked, questions, suffixes)

    def _asks(self, batch: PrefixBatch, asked, questions, suffixes) -> list[PendingAnswer]:
        row_of = {window: row for row, window in enumerate(batch.keys)}
        skipped = len(batch.shared)
        opening, decision = self.choices.opening, self.choices.grammar.decision
        return [
            PendingAnswer(p, row_of[w], suffixes[questions[p].query][skipped:] + opening, decision)
            for w, positions in asked.items()
            for p in positions
        ]

    def _new_batches(self, windows, suffixes, features) -> Iterator[PrefixBatch]:
        """Run prefixes batch by batch; the features of the next one are read meanwhile."""
        if not windows:
            return
        shared = shared_tokens(suffixes + self._probes())
        length = len(self._before) + self.model.config.frames_per_window + len(shared)
        count = -(-len(windows) // self.budget.prefixes_per_batch(length))
        groups = [list(group) for group in np.array_split(np.arange(len(windows)), count)]
        groups = [[windows[i] for i in group] for group in groups]

        def read(group: list[Window]) -> np.ndarray:
            return np.stack([np.asarray(features(w), dtype=np.float32) for w in group])

        with ThreadPoolExecutor(1) as reader:
            upcoming: Future = reader.submit(read, groups[0])
            for number, group in enumerate(groups):
                frames = upcoming.result()
                if number + 1 < len(groups):
                    upcoming = reader.submit(read, groups[number + 1])
                batch = run_prefixes(
                    self.model.llm,
                    self._prefix_embeds(torch.from_numpy(frames), shared),
                    group,
                    shared,
                    self.budget.prefix_tokens(),
                )
                self.cost.prefixes += len(group)
                self.cost.llm_tokens += len(group) * batch.length
                self._keep(batch)
                yield batch

    def _prefix_embeds(self, frames_WFD: Tensor, shared: list[int]) -> list[Tensor]:
        """Embedded prefixes [P, H] of windows."""
        model = self.model
        visual = model.embed_frames(frames_WFD.to(model.device))
        embed = model.llm.get_input_embeddings()
        before, after = (
            embed(torch.tensor(ids, dtype=torch.long, device=model.device))
            for ids in (self._before, shared)
        )
        return [torch.cat([before, rows.to(before.dtype), after]) for rows in visual]

    def _keep(self, batch: PrefixBatch) -> None:
        if self._film is not None:
            self._kept = [*self._kept, batch][-self.budget.kept_batches(batch) :]

    def _suffixes(self, sentences: Sequence[str], queries: set[int]) -> dict[int, list[int]]:
        """Tokens behind the video, by query."""
        return {query: self._suffix(sentences[query]) for query in sorted(queries)}

    def _suffix(self, sentence: str) -> list[int]:
        return self.model.prompt_pieces(self.model.question(sentence))[1]

    def _probes(self) -> list[list[int]]:
        return [self._suffix(sentence) for sentence in PROBES]

    # --- answers ------------------------------------------------------------------------------

    def _to_answer(self, ask: PendingAnswer, window: Window) -> WindowAnswer:
        return WindowAnswer(
            window.index,
            window.start_s,
            window.end_s,
            NOT_PRESENT if ask.absent else self.choices.grammar.text(ask.state),
            self._candidates(ask, window),
            ask.presence,
            ask.entropy,
        )

    def _candidates(self, ask: PendingAnswer, window: Window) -> list[SpanCandidate]:
        """The answer's span first, then the others by probability."""
        grammar = self.choices.grammar
        if grammar.span(ask.state) is None:
            return []
        clock = self.model.config.clock(window.end_s - window.start_s)
        weighted = [(grammar.span(s), weight) for s, weight in ask.weighted_states().items()]
        found = weighted[: self._num_candidates]
        if self._refines:
            found[0] = expected_frames(weighted), found[0][1]
        return [SpanCandidate(*clock.span(*span, window.start_s), weight) for span, weight in found]


def expected_frames(weighted: Sequence[tuple[tuple[int, int], float]]) -> tuple[float, float]:
    """Where a span most probably starts and ends, in frames and parts of frames.

    Args:
        weighted: (first, last) and weight of an answer, then of others.

    Returns:
        The mean first and last, by weight, of those whose ends are both at most `REFINING_FRAMES`
        from the answer's.
    """
    spans = np.array([span for span, _ in weighted], dtype=np.float64)
    near = np.abs(spans - spans[0]).max(axis=1) <= REFINING_FRAMES
    first, last = np.average(
        spans[near], axis=0, weights=np.array([weight for _, weight in weighted])[near]
    )
    return float(first), float(last)


def _opens_all(shared: list[int], suffixes) -> bool:
    return all(len(s) > len(shared) and s[: len(shared)] == shared for s in suffixes)
