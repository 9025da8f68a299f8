"""Dense windows for many queries: each window's prefix once, its questions packed behind it.

For one film and a list of (query, window) questions the engine
- runs the prefix (system text, frames, the words that all questions share) once per window and keeps
  its keys and values;
- packs the questions of all queries about a window into one sequence under a block mask;
- reads presence off the first token and stops there for windows that answer `Not Present`;
- decodes the others greedily under the answer grammar, feeding forced tokens together with the next
  choice, still packed.
Answers equal those of `reference.answer_one`, one query and one window at a time.

Legend: W windows of a batch, P prefix tokens, N packed tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from revisionllm.data.conversations import encode_answer
from revisionllm.engine.packing import NO_OWNER, additive_mask
from revisionllm.grounding import scores
from revisionllm.grounding.answers import NOT_PRESENT, AnswerGrammar, State
from revisionllm.grounding.levels import Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.windows import Window, labels_to_span
from revisionllm.model.llama import GroundingModel

DEFAULT_BUDGET_MB = 1024
MAX_PACKED_TOKENS = 1024  # longer packs gain nothing and their masks grow with the square

WindowFeatures = Callable[[Window], np.ndarray]


@dataclass
class EngineCost:
    """Work done so far: windows whose prefix was run, and tokens that went through the LLM."""

    prefixes: int = 0
    llm_tokens: int = 0
    seconds: float = 0.0


@dataclass
class _Ask:
    """One question on its way through a batch."""

    position: int  # in the caller's list
    row: int  # window of the batch
    tokens: list[int]
    state: State
    next_position: int = 0
    owner: int = 0
    presence: float = 0.0
    absent_first: bool = False
    entropies: list[float] = field(default_factory=list)


def span_grammar(model: GroundingModel) -> AnswerGrammar:
    """The grammar of dense answers for the run's tokenizer and frames per window."""
    return AnswerGrammar.spans(
        lambda text: encode_answer(model.tokenizer, text),
        eos_id=model.tokenizer.eos_token_id,
        num_frames=model.config.frames_per_window,
        context="",
    )


def shared_length(suffixes: Sequence[Sequence[int]]) -> int:
    """How many first tokens all suffixes have in common, leaving at least one to each."""
    shortest = min(len(suffix) for suffix in suffixes) - 1
    for index in range(shortest):
        if len({suffix[index] for suffix in suffixes}) > 1:
            return index
    return shortest


class DenseEngine:
    """Answers dense questions of many queries about one film.

    Args:
        model: a loaded run.
        budget_mb: memory for keys, values and masks of a batch, in MiB.
        explore: a window whose presence is at least this is asked for its span even if its answer
            is `Not Present`: such candidates rank low, but they are there. 1.0: never.
    """

    def __init__(
        self,
        model: GroundingModel,
        *,
        budget_mb: int = DEFAULT_BUDGET_MB,
        explore: float = 0.05,
    ) -> None:
        self.model = model.eval()
        self.budget_mb = budget_mb
        self.explore = explore
        self.grammar = span_grammar(model)
        self.cost = EngineCost()
        before, _ = model.prompt_pieces(model.question("x"))
        self._before = before
        self._opening = self.grammar.forced_run(self.grammar.start)

    def answer(
        self, questions: Sequence[Question], sentences: Sequence[str], features: WindowFeatures
    ) -> list[WindowAnswer]:
        """Answer dense questions.

        Args:
            questions: what to ask; `question.query` counts into `sentences`.
            sentences: one per query.
            features: gives a window's frame features, float [F, D].

        Returns:
            One answer per question, in the same order.
        """
        started = time.perf_counter()
        answers: list[WindowAnswer | None] = [None] * len(questions)
        if questions:
            suffixes = self._suffixes(sentences, {q.query for q in questions})
            shared = shared_length(list(suffixes.values()))
            by_window: dict[Window, list[int]] = {}
            for position, question in enumerate(questions):
                by_window.setdefault(question.window, []).append(position)
            # windows with equally many questions side by side: less padding
            windows = sorted(by_window, key=lambda w: (len(by_window[w]), w.index))
            size = self._windows_per_batch()
            for first in range(0, len(windows), size):
                batch = windows[first : first + size]
                asks = [[(p, questions[p].query) for p in by_window[w]] for w in batch]
                self._run_batch(batch, asks, suffixes, shared, features, answers)
        self.cost.seconds += time.perf_counter() - started
        return answers

    # --- one batch of windows -------------------------------------------------------------------

    @torch.inference_mode()
    def _run_batch(self, windows, asks, suffixes, shared, features, answers) -> None:
        some_suffix = next(iter(suffixes.values()))
        cache, prefix_length = self._prefix(windows, some_suffix[:shared], features)
        for chunk in self._chunks(asks, suffixes, shared):
            pending = [
                _Ask(
                    position,
                    row,
                    suffixes[query][shared:] + self._opening,
                    self.grammar.decision,
                    prefix_length,
                    owner,
                )
                for row, row_asks in enumerate(chunk)
                for owner, (position, query) in enumerate(row_asks)
            ]
            finished = self._decode(pending, cache, prefix_length, len(windows))
            for ask in finished:
                answers[ask.position] = self._to_answer(ask, windows[ask.row])
            cache.crop(prefix_length - cache.get_seq_length())  # negative: so many from the end

    def _prefix(self, windows, shared_ids: list[int], features) -> tuple[DynamicCache, int]:
        """Run the prefix of every window; keys and values, and its length P."""
        model = self.model
        frames = np.stack([np.asarray(features(window), dtype=np.float32) for window in windows])
        visual = model.embed_frames(torch.from_numpy(frames).to(model.device))
        embed = model.llm.get_input_embeddings()
        parts = [
            embed(torch.tensor(ids, dtype=torch.long, device=model.device)).expand(
                len(windows), -1, -1
            )
            for ids in (self._before, shared_ids)
        ]
        embeds = torch.cat([parts[0], visual.to(parts[0].dtype), parts[1]], 1)
        cache = DynamicCache()
        model.llm.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        self.cost.prefixes += len(windows)
        self.cost.llm_tokens += embeds.shape[0] * embeds.shape[1]
        return cache, embeds.shape[1]

    def _decode(self, pending: list[_Ask], cache, prefix_length: int, rows: int) -> list[_Ask]:
        """Run questions to their end; `cache` grows behind the prefix."""
        finished: list[_Ask] = []
        owners = torch.full((rows, 0), NO_OWNER, dtype=torch.long, device=self.model.device)
        while pending:
            logits, owners = self._step(pending, cache, owners, prefix_length, rows)
            alive = []
            for ask, row in zip(pending, logits, strict=True):
                self._choose(ask, row)
                (finished if self.grammar.is_final(ask.state) else alive).append(ask)
            pending = alive
        return finished

    def _step(self, pending, cache, owners, prefix_length, rows) -> tuple[np.ndarray, Tensor]:
        """Feed each ask's tokens; logits of its last one [asks, V] and the owners of the cache."""
        lanes: list[list[int]] = [[] for _ in range(rows)]
        positions: list[list[int]] = [[] for _ in range(rows)]
        owner_lanes: list[list[int]] = [[] for _ in range(rows)]
        last = []
        for ask in pending:
            lanes[ask.row] += ask.tokens
            stop = ask.next_position + len(ask.tokens)
            positions[ask.row] += range(ask.next_position, stop)
            owner_lanes[ask.row] += [ask.owner] * len(ask.tokens)
            ask.next_position = stop
            last.append(len(lanes[ask.row]) - 1)
        width = max(map(len, lanes))
        device = self.model.device

        def padded(lists: list[list[int]], value: int) -> Tensor:
            return torch.tensor([x + [value] * (width - len(x)) for x in lists], device=device)

        new = padded(owner_lanes, NO_OWNER)
        allowed = self._mask(owners, new, prefix_length)
        output = self.model.llm.model(
            input_ids=padded(lanes, 0),
            attention_mask=additive_mask(allowed, self.model.llm.dtype),
            position_ids=padded(positions, 0),
            past_key_values=cache,
            use_cache=True,
        )
        self.cost.llm_tokens += sum(map(len, lanes))
        index = torch.tensor([[ask.row, column] for ask, column in zip(pending, last, strict=True)])
        hidden = output.last_hidden_state[index[:, 0], index[:, 1]]
        logits = self.model.llm.lm_head(hidden).float().cpu().numpy()
        return logits, torch.cat([owners, new], 1)

    @staticmethod
    def _mask(old: Tensor, new: Tensor, prefix_length: int) -> Tensor:
        """bool [W, 1, N, P + old + N]: the prefix, and what the same question said before."""
        rows, width = new.shape
        column_owner = torch.cat([old, new], 1)
        same = new[:, :, None] == column_owner[:, None, :]
        here = torch.ones(width, width, dtype=torch.bool, device=new.device).tril()
        seen = torch.cat([here.new_ones(width, old.shape[1]), here], 1)
        prefix = torch.ones(rows, width, prefix_length, dtype=torch.bool, device=new.device)
        return torch.cat([prefix, same & seen], 2)[:, None]

    def _choose(self, ask: _Ask, logits: np.ndarray) -> None:
        """Take the best allowed token and queue it with the forced ones behind it."""
        grammar = self.grammar
        allowed = grammar.allowed(ask.state)
        log_probs = logits[allowed] - np.logaddexp.reduce(logits[allowed])
        ask.entropies.append(float(scores.token_entropy(logits, allowed)))
        token = int(allowed[log_probs.argmax()])
        if ask.state == grammar.decision and grammar.absent_token is not None:
            ask.presence = scores.presence(logits, allowed, grammar.absent_token)
            ask.absent_first = token == grammar.absent_token
            if ask.absent_first and ask.presence >= self.explore:
                others = allowed != grammar.absent_token
                token = int(allowed[others][log_probs[others].argmax()])
        state = grammar.advance(ask.state, token)
        forced = grammar.forced_run(state)
        ask.state = grammar.run(forced, state)
        ask.tokens = [token, *forced]

    # --- around a batch -------------------------------------------------------------------------

    def _to_answer(self, ask: _Ask, window: Window) -> WindowAnswer:
        config = self.model.config
        span = self.grammar.span(ask.state)
        candidates = []
        if span is not None:
            start_s, end_s = labels_to_span(
                span.first,
                span.last,
                window.start_s,
                window_s=config.window_s,
                frames_per_window=config.frames_per_window,
            )
            candidates.append(SpanCandidate(start_s, end_s))
        text = NOT_PRESENT if ask.absent_first else self.grammar.text(ask.state)
        # an explored answer is still "Not Present": its entropy is that of its one decision
        entropies = ask.entropies[:1] if ask.absent_first else ask.entropies
        mean = scores.answer_entropy(entropies).mean
        return WindowAnswer(
            window.index, window.start_s, window.end_s, text, candidates, ask.presence, mean
        )

    def _suffixes(self, sentences: Sequence[str], queries: set[int]) -> dict[int, list[int]]:
        model = self.model
        return {
            query: model.prompt_pieces(model.question(sentences[query]))[1]
            for query in sorted(queries)
        }

    def _chunks(self, asks, suffixes, shared):
        """Split every window's questions so that a packed row stays within `MAX_PACKED_TOKENS`."""
        longest = max(len(suffixes[q]) - shared for row in asks for _, q in row)
        per_row = max(1, MAX_PACKED_TOKENS // (longest + len(self._opening)))
        for first in range(0, max(map(len, asks)), per_row):
            yield [row[first : first + per_row] for row in asks]

    def _windows_per_batch(self) -> int:
        """As many windows as the budget holds: keys, values and a pack's mask."""
        config = self.model.llm.config
        head_dim = config.hidden_size // config.num_attention_heads
        width = 2 * config.num_key_value_heads * head_dim * config.num_hidden_layers
        tokens = len(self._before) + self.model.config.frames_per_window + MAX_PACKED_TOKENS
        per_window = tokens * (width + MAX_PACKED_TOKENS) * self.model.llm.dtype.itemsize
        return max(1, min(32, self.budget_mb * 2**20 // per_window))
