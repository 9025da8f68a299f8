"""Segment levels for many queries: one token per segment and query, many segments per question.

The adapter reads a segment's frames together with the words of a query, so its token belongs to the
pair. Each pair is encoded once, however many questions, zooms and levels show it: the released
evaluation does so about seven times. Frames are read once for all queries of a call, the next ones
while the adapter runs. Questions are then decoded in batches under their grammar; answers equal
those of `reference.answer_segments`, one question at a time.

Legend: S shown segments, F frames of a segment, D feature dim, L words, H LLM width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from revisionllm.engine import EngineCost
from revisionllm.engine.attention import packed_attention
from revisionllm.engine.choices import Choices, PendingAnswer
from revisionllm.engine.decoder import Decoder
from revisionllm.engine.dense import grammar_encoder, span_grammar
from revisionllm.engine.prefixes import Budget, PrefixBatch, run_prefixes
from revisionllm.grounding.answers import NO, NOT_PRESENT, AnswerGrammar, Span, parse_yes_no
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.windows import Window
from revisionllm.model.llama import GroundingModel
from revisionllm.records.films import Film, Query

ADAPTER_FRAMES = {"cpu": 4096, "cuda": 65536}  # frames of one adapter forward


def segment_grammar(model: GroundingModel, num_positions: int) -> AnswerGrammar:
    """The grammar of a question over so many positions, by the run's question and stage."""
    config, encode = model.config, grammar_encoder(model)
    eos_id = model.tokenizer.eos_token_id
    if config.question == "yes_no":
        return AnswerGrammar.yes_no(encode, eos_id=eos_id, context="")
    if config.stage == "sparse":
        return span_grammar(model)
    exclusive = config.answer_end == "exclusive"  # such an end is one past the last position
    return AnswerGrammar.segments(
        encode, eos_id=eos_id, num_segments=num_positions + exclusive, context=""
    )


def answer_spans(
    question: Question,
    text: str,
    span: Span | None,
    config,
    *,
    narrow: bool = False,
    weight: float = 1.0,
) -> list[SpanCandidate]:
    """What an answer names, in seconds of the film, each with the weight given."""
    if config.question == "yes_no":
        last = question.num_positions - 1 if parse_yes_no(text) else -1
        return _ranges(question, 0, last, narrow, weight)
    if span is None:
        return []
    if config.stage == "sparse":
        seconds = config.clock().span(*span, question.window.start_s)
        return [SpanCandidate(*seconds, weight)]
    first, last = span
    if config.answer_end == "exclusive":
        last = max(first, last - 1)
    last = min(last, question.num_positions - 1)
    return _ranges(question, min(first, last), last, narrow, weight)


def _ranges(
    question: Question, first: int, last: int, narrow: bool, weight: float
) -> list[SpanCandidate]:
    if last < first:
        return []
    ranges = question.ranges(first, last, narrow=narrow)
    return [SpanCandidate(*seconds, weight) for seconds in ranges]


class SegmentEngine:
    """Answers segment questions (sparse and long stages) of many queries about one film.

    Args:
        model: a loaded run with a clip adapter.
        budget_mb: memory in MiB for keys, values, activations and segment tokens; None: by device.
        explore, num_candidates: as of `DenseEngine`; for levels that keep more than each answer.

    Attributes:
        cost: work done so far; `segments` counts (query, segment) pairs that were encoded.
    """

    def __init__(
        self,
        model: GroundingModel,
        *,
        budget_mb: int | None = None,
        explore: float = 1.0,
        num_candidates: int = 1,
    ) -> None:
        self.model = model.eval()
        self.budget = Budget.of(model.llm, budget_mb)
        self.cost = EngineCost()
        self._listing = {"explore": explore, "num_candidates": num_candidates}
        self._decoders: dict[int, Decoder] = {}
        self._before = model.prompt_pieces(model.question("x"))[0]
        self._film: str | None = None
        self._tokens: dict[tuple[str, Window], Tensor] = {}

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """Answer questions over segments; see `Engine.answer`.

        Segment tokens are kept for the next call about the same film (another level, say). The
        film's frames are read in another thread.
        """
        answers: list[WindowAnswer | None] = [None] * len(questions)
        for decoder, ask in self._answered(self._decoder, questions, film, queries):
            question = questions[ask.position]
            answers[ask.position] = self._to_answer(decoder, ask, question, level.narrow)
        return answers

    def first_numbers(
        self, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[tuple[np.ndarray, float]]:
        """How probable each shown position is as the first number of an answer.

        Args:
            questions: each segment shown once.

        Returns:
            Per question probabilities [num_positions], which add up to the presence, and the
            entropy of the decision between "Not Present" and a number, nats.

        Raises:
            ValueError: the run's answers have no numbers of segments.
        """
        config = self.model.config
        if config.stage == "sparse" or config.question == "yes_no":
            raise ValueError(f"answers of stage {config.stage}, {config.question}: no segments")
        found = [(np.zeros(question.num_positions), 0.0) for question in questions]
        for decoder, ask in self._answered(self._first_decoder, questions, film, queries):
            for state, log_prob in ask.answers:
                position = int(decoder.choices.grammar.text(state))
                found[ask.position][0][position] = np.exp(log_prob)
            found[ask.position] = found[ask.position][0], float(ask.entropies[0])
        return found

    def _answered(
        self,
        decoder_for: Callable[[int], Decoder],
        questions: Sequence[Question],
        film: Film,
        queries: Sequence[Query],
    ) -> Iterator[tuple[Decoder, PendingAnswer]]:
        """Every question's finished answer and its decoder, in no particular order."""
        started = time.perf_counter()
        if film.key is None or film.key != self._film:
            self._tokens = {}
        self._film = film.key
        config = self.model.config
        sentences = [query.sentence for query in queries]
        words = [query.rows_for(config) for query in queries]

        def features(window: Window) -> np.ndarray:
            return film.window_frames(window, config)

        with torch.inference_mode():
            self._encode(questions, sentences, words, features)
            with packed_attention(self.model.llm):
                for positions in _by_length(questions):
                    decoder = decoder_for(questions[positions[0]].num_positions)
                    work = self._work(decoder, positions, questions, sentences)
                    for ask in decoder.run(work):
                        yield decoder, ask
        if film.key is None or self._token_bytes() > self.budget.total // 4:
            self._tokens = {}
        self.cost.seconds += time.perf_counter() - started

    # --- segment tokens -----------------------------------------------------------------------

    def _encode(self, questions, sentences, words, features) -> None:
        """Run the adapter over the pairs that are asked for and not there yet."""
        wanted: dict[Window, list[int]] = {}
        for question in questions:
            for window in question.windows:
                if (sentences[question.query], window) not in self._tokens:
                    asked = wanted.setdefault(window, [])
                    if question.query not in asked:
                        asked.append(question.query)
        if not wanted:
            return
        windows = sorted(wanted, key=lambda w: (w.start_s, w.end_s))
        limit = ADAPTER_FRAMES[self.budget.device_type]
        size = max(1, limit // self.model.config.frames_per_window)
        groups = [windows[i : i + size] for i in range(0, len(windows), size)]

        def read(group: list[Window]) -> Tensor:
            rows = [np.asarray(features(w), dtype=np.float32) for w in group]
            return torch.from_numpy(np.stack(rows))

        with ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(read, groups[0])
            for number, group in enumerate(groups):
                frames = upcoming.result()
                if number + 1 < len(groups):
                    upcoming = reader.submit(read, groups[number + 1])
                self._encode_group(group, frames.to(self.model.device), wanted, sentences, words)

    def _encode_group(self, group, frames_NFD: Tensor, wanted, sentences, words) -> None:
        for query in sorted({query for window in group for query in wanted[window]}):
            rows = [row for row, window in enumerate(group) if query in wanted[window]]
            text = torch.from_numpy(np.asarray(words[query], dtype=np.float32))[None]
            chosen = frames_NFD if len(rows) == len(group) else frames_NFD[rows]
            tokens = self.model.embed_frames(
                chosen[None], text.to(self.model.device), output="segment", placed=False
            )[0]
            for row, token in zip(rows, tokens, strict=True):
                self._tokens[sentences[query], group[row]] = token
            self.cost.segments += len(rows)

    def _token_bytes(self) -> int:
        token = next(iter(self._tokens.values()), None)
        return 0 if token is None else len(self._tokens) * token.numel() * token.element_size()

    # --- questions ----------------------------------------------------------------------------

    def _decoder(self, num_positions: int) -> Decoder:
        if num_positions not in self._decoders:
            choices = Choices(segment_grammar(self.model, num_positions))
            self._decoders[num_positions] = Decoder(
                self.model.llm, choices, self.budget, self.cost, **self._listing
            )
        return self._decoders[num_positions]

    def _first_decoder(self, num_positions: int) -> Decoder:
        grammar = AnswerGrammar.first_numbers(
            grammar_encoder(self.model),
            eos_id=self.model.tokenizer.eos_token_id,
            num_segments=num_positions,
            context="",
        )
        choices, options = Choices(grammar), {"explore": 0.0, "num_candidates": num_positions}
        return Decoder(self.model.llm, choices, self.budget, self.cost, **options)

    def _work(
        self, decoder: Decoder, positions: list[int], questions, sentences
    ) -> Iterator[tuple[PrefixBatch, list[PendingAnswer]]]:
        """Questions of one length in batches: `system, segments` as prefixes, one question each."""
        model, choices = self.model, decoder.choices
        embed = model.llm.get_input_embeddings()
        before = embed(torch.tensor(self._before, dtype=torch.long, device=model.device))
        length = len(self._before) + questions[positions[0]].num_positions
        size = self.budget.prefixes_per_batch(length)
        for first in range(0, len(positions), size):
            batch = positions[first : first + size]
            embeds = [torch.cat([before, self._shown(questions[p], sentences)]) for p in batch]
            prefixes = run_prefixes(model.llm, embeds, batch, [], self.budget.prefix_tokens())
            self.cost.prefixes += len(batch)
            self.cost.llm_tokens += len(batch) * prefixes.length
            asks = []
            for row, position in enumerate(batch):
                text = model.question(sentences[questions[position].query])
                tokens = model.prompt_pieces(text)[1] + choices.opening
                asks.append(PendingAnswer(position, row, tokens, choices.grammar.decision))
            yield prefixes, asks

    def _shown(self, question: Question, sentences) -> Tensor:
        """The segments' tokens [S, H] in shown order, each repeated."""
        sentence = sentences[question.query]
        tokens = torch.stack([self._tokens[sentence, window] for window in question.windows])
        shown = tokens.repeat_interleave(question.repeat, 0)
        return self.model.projector.place(shown[None])[0].to(self.model.llm.dtype)

    def _to_answer(
        self, decoder: Decoder, ask: PendingAnswer, question: Question, narrow: bool
    ) -> WindowAnswer:
        grammar = decoder.choices.grammar
        text, window, config = grammar.text(ask.state), question.window, self.model.config
        spans = [
            candidate
            for state, weight in ask.weighted_states().items()
            for candidate in answer_spans(
                question, text, grammar.span(state), config, narrow=narrow, weight=weight
            )
        ]
        absent = NO if config.question == "yes_no" else NOT_PRESENT
        return WindowAnswer(
            window.index,
            window.start_s,
            window.end_s,
            absent if ask.absent else text,
            spans,
            ask.presence,
            ask.entropy,
        )


def _by_length(questions: Sequence[Question]) -> list[list[int]]:
    """Positions of questions over equally many positions."""
    groups: dict[int, list[int]] = {}
    for position, question in enumerate(questions):
        groups.setdefault(question.num_positions, []).append(position)
    return list(groups.values())
