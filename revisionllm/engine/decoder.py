"""Runs many questions over prefix batches to the end of their answers.

Work comes in two kinds of forward. First all questions of a batch, up to the first choice of their
answers: most say `Not Present` there and are finished. Then, step by step, the answers that go on;
they are held back until there are enough of them, across batches, so that a step is never run for
two or three tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from revisionllm.engine import EngineCost
from revisionllm.engine.attention import Group, KeyValues, QuestionPass
from revisionllm.engine.choices import Choices, PendingAnswer, choose, decide
from revisionllm.engine.prefixes import Budget, PrefixBatch
from revisionllm.grounding.answers import State
from revisionllm.grounding.scores import log_softmax

HELD_BATCHES = 2  # prefix batches that may wait for their answers to be decoded


@dataclass
class _Held:
    """Open answers of one batch, with the keys and values of their tokens so far."""

    batch: PrefixBatch
    asks: list[PendingAnswer]
    history: KeyValues
    valid: Tensor  # bool [A, T]


class Decoder:
    """Greedy decoding of packed questions under one grammar.

    Args:
        llm: the LLM, inside `packed_attention`.
        choices: the grammar.
        budget: what may be held at once.
        cost: counted up.
        explore: see `DenseEngine`.
        num_candidates: answers to list per question that names something; 1: the greedy one alone.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        choices: Choices,
        budget: Budget,
        cost: EngineCost,
        *,
        explore: float = 1.0,
        num_candidates: int = 1,
    ) -> None:
        self.llm, self.choices, self.budget, self.cost = llm, choices, budget, cost
        self.explore, self.num_candidates = explore, num_candidates
        self._vocabulary = torch.from_numpy(choices.vocabulary).to(llm.device)

    def run(
        self, work: Iterable[tuple[PrefixBatch, list[PendingAnswer]]]
    ) -> Iterator[PendingAnswer]:
        """Answer the asks of each batch; they come back finished, in no particular order.

        Args:
            work: batches with their asks, sorted by row.
        """
        held: list[_Held] = []
        room = self.budget.question_tokens()
        if self.num_candidates > 1:
            room //= 2  # `_finish` keeps the asked tokens beside those that it decodes
        for batch, asks in work:
            for chunk in self._chunks(asks):
                done, still_open = self._decide(batch, chunk)
                yield from done
                held += still_open
                if sum(len(h.asks) * h.valid.shape[1] for h in held) > room:
                    yield from self._finish(held)
                    held = []
            if len({id(h.batch) for h in held}) >= HELD_BATCHES:
                yield from self._finish(held)
                held = []
        yield from self._finish(held)

    def _chunks(self, asks: list[PendingAnswer]) -> Iterator[list[PendingAnswer]]:
        """Consecutive asks of about as many tokens as one forward takes, evenly split."""
        tokens = np.cumsum([len(ask.tokens) for ask in asks])
        if len(asks) == 0:
            return
        count = -(-int(tokens[-1]) // self.budget.question_tokens())
        chunk_of = np.minimum(tokens * count // (tokens[-1] + 1), count - 1)
        for number in range(count):
            chosen = np.flatnonzero(chunk_of == number)
            if chosen.size:
                yield asks[chosen[0] : chosen[-1] + 1]

    def _decide(
        self, batch: PrefixBatch, asks: list[PendingAnswer]
    ) -> tuple[list[PendingAnswer], list[_Held]]:
        """The first choice: finished asks, and those that go on."""
        logits, step = self._feed([(batch, asks)], None, None)
        decide(asks, logits, self.choices, self.explore)
        is_final = self.choices.grammar.is_final
        going_on = [number for number, ask in enumerate(asks) if not is_final(ask.state)]
        if not going_on:
            return asks, []
        layers, valid = _rows(_taken(step.kept), step.kept_valid, going_on)
        done = [ask for ask in asks if is_final(ask.state)]
        return done, [_Held(batch, [asks[number] for number in going_on], list(layers), valid)]

    def _finish(self, held: list[_Held]) -> Iterator[PendingAnswer]:
        """Decode held answers to their ends."""
        if not held:
            return
        layers, valid = _together(held)
        asks = [(h.batch, ask) for h in held for ask in h.asks]
        everyone, asked_valid = asks, valid
        asked = list(layers) if self.num_candidates > 1 else []
        history = _taken(layers)
        while asks:
            logits, step = self._feed(_by_batch(asks), history, valid)
            for (_, ask), row in zip(asks, logits, strict=True):
                choose(ask, row, self.choices)
            still_open = [
                number
                for number, (_, ask) in enumerate(asks)
                if not self.choices.grammar.is_final(ask.state)
            ]
            asks = [asks[number] for number in still_open]
            if asks:
                history, valid = _rows(_taken(step.kept), step.kept_valid, still_open)
        if self.num_candidates > 1:
            self._list_answers(everyone, asked, asked_valid)
        yield from (ask for _, ask in everyone)

    # --- one forward ---

    def _feed(
        self,
        parts: Sequence[tuple[PrefixBatch, list[PendingAnswer]]],
        history: Iterator[tuple[Tensor, Tensor]] | None,
        valid: Tensor | None,
        *,
        keep: bool = True,
    ) -> tuple[np.ndarray, QuestionPass]:
        """Feed every ask's tokens: logits [A, K] behind each one's last, and the pass."""
        asks = [ask for _, part in parts for ask in part]
        lengths = [len(ask.tokens) for ask in asks]
        device = self.llm.device
        step = QuestionPass(_groups(parts), lengths, device, history, valid, keep=keep)
        ids = [token for ask in asks for token in ask.tokens]
        positions = [
            batch.length + ask.fed + offset
            for batch, part in parts
            for ask in part
            for offset in range(len(ask.tokens))
        ]
        hidden = self.llm.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            attention_pass=step,
        ).last_hidden_state[0]
        for ask in asks:
            ask.fed += len(ask.tokens)
        self.cost.llm_tokens += len(ids)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        logits = linear(hidden[last], self.llm.lm_head.weight[self._vocabulary])
        return logits.float().cpu().numpy(), step

    # --- more than one answer per question ---

    def _list_answers(
        self, asks: list[tuple[PrefixBatch, PendingAnswer]], history: KeyValues, valid: Tensor
    ) -> None:
        """The most probable answers of each ask, by best-first search in lockstep.

        Each round computes one unknown state of every ask that is not done yet; the tokens that
        lead to it are fed again behind the question.
        """
        grammar = self.choices.grammar
        first_fed = {id(ask): ask.fed for _, ask in asks}
        greedy = {id(ask): ask.state for _, ask in asks}
        question_length = {id(ask): int(n) for (_, ask), n in zip(asks, valid.sum(1), strict=True)}
        numbers = list(range(len(asks)))
        paths = [{grammar.decision: []} for _ in asks]
        while numbers:
            wanted = []
            for number in numbers:
                ask = asks[number][1]
                unknown = self._search(ask)
                if unknown is not None:
                    ask.state = unknown
                    ask.tokens = self._path(ask, unknown, paths[number])
                    ask.fed = question_length[id(ask)]
                    wanted.append(number)
            numbers = wanted
            if numbers:
                rows, rows_valid = _rows(history, valid, numbers)
                parts = _by_batch([asks[n] for n in numbers])
                logits, _ = self._feed(parts, rows, rows_valid, keep=False)
                for number, row in zip(numbers, logits, strict=True):
                    ask = asks[number][1]
                    columns = self.choices.columns(ask.state)
                    ask.log_probs[ask.state] = log_softmax(row[columns])
        for _, ask in asks:
            ask.state, ask.fed = greedy[id(ask)], first_fed[id(ask)]

    def _search(self, ask: PendingAnswer) -> State | None:
        """Fill in `ask.answers`, or name the first state that the search does not know."""
        absent = self.choices.grammar.absent_token

        def log_probs(state: State) -> np.ndarray:
            if state not in ask.log_probs:
                raise _UnknownState(state)
            found = ask.log_probs[state]
            if state == self.choices.grammar.decision and absent is not None:
                found = np.where(self.choices.grammar.allowed(state) == absent, -np.inf, found)
            return found

        start = self.choices.grammar.decision
        try:
            ask.answers = self.choices.grammar.top_answers(log_probs, self.num_candidates, start)
        except _UnknownState as unknown:
            return unknown.state
        return None

    def _path(self, ask: PendingAnswer, state: State, paths: dict[State, list[int]]) -> list[int]:
        """The tokens from the decision to a state, through states that are known."""
        while state not in paths:
            for known in [s for s in paths if s in ask.log_probs]:
                for token in self.choices.grammar.allowed(known).tolist():
                    following, tokens = self.choices.follow(known, token)
                    paths.setdefault(following, paths[known] + tokens)
        return paths[state]


class _UnknownState(Exception):
    """The search needs the probabilities of a state that has not been computed."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


def _groups(parts: Sequence[tuple[PrefixBatch, list[PendingAnswer]]]) -> list[Group]:
    """Runs of neighbouring windows with equally many tokens."""
    groups: list[Group] = []
    first_token = 0
    for batch, asks in parts:
        per_row: dict[int, int] = {}
        for ask in asks:
            per_row[ask.row] = per_row.get(ask.row, 0) + len(ask.tokens)
        run: Group | None = None
        for row, tokens in per_row.items():
            if run and row == run.first_row + run.num_windows and tokens == run.tokens_per_window:
                run = Group(
                    batch.layers, run.first_row, run.num_windows + 1, run.first_token, tokens
                )
                groups[-1] = run
            else:
                run = Group(batch.layers, row, 1, first_token, tokens)
                groups.append(run)
            first_token += tokens
    return groups


def _by_batch(
    asks: list[tuple[PrefixBatch, PendingAnswer]],
) -> list[tuple[PrefixBatch, list[PendingAnswer]]]:
    """Consecutive asks of one batch together."""
    parts: list[tuple[PrefixBatch, list[PendingAnswer]]] = []
    for batch, ask in asks:
        if parts and parts[-1][0] is batch and parts[-1][1][-1].row <= ask.row:
            parts[-1][1].append(ask)
        else:
            parts.append((batch, [ask]))
    return parts


def _taken(layers: KeyValues) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer in turn, taken out of the list: no two copies of all layers are held at once."""
    while layers:
        yield layers.pop(0)


def _rows(
    layers: Iterable[tuple[Tensor, Tensor]], valid: Tensor, rows: list[int]
) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor]:
    """Some asks' keys and values, a layer at a time, cut to the columns that they use."""
    index = torch.tensor(rows, device=valid.device)
    valid = valid[index]
    used = valid.any(0).nonzero()[:, 0]
    if len(used) < valid.shape[1]:
        return ((k[index][:, :, used], v[index][:, :, used]) for k, v in layers), valid[:, used]
    return ((k[index], v[index]) for k, v in layers), valid


def _together(held: list[_Held]) -> tuple[KeyValues, Tensor]:
    """Histories of several batches as one, padded to the longest; taken out of `held`."""
    width = max(h.valid.shape[1] for h in held)
    extra = [width - h.valid.shape[1] for h in held]
    valid = torch.cat([pad(h.valid, (0, n)) for h, n in zip(held, extra, strict=True)])
    layers = [
        tuple(
            torch.cat([pad(p[i], (0, 0, 0, n)) for p, n in zip(parts, extra, strict=True)])
            for i in (0, 1)
        )
        for parts in zip(*(_taken(h.history) for h in held), strict=True)
    ]
    return layers, valid
