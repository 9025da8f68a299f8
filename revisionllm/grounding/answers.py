"""The answer grammar: write an answer, parse one, constrain decoding to one.

Answers are `From 05 to 123.` (dense, numbers zero-padded to two digits), `From 5 to 12.`
(segments), `yes` / `no`, and `Not Present`; each is closed by the end-of-sequence token.
`AnswerGrammar` is the automaton of their token sequences under a given tokenizer; it knows no
tokenizer class, only an `encode` callable.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from revisionllm.constants import NOT_PRESENT

__all__ = [
    "NOT_PRESENT",
    "AnswerGrammar",
    "Span",
    "State",
    "answer_kind",
    "format_segments",
    "format_span",
    "parse_answer",
    "parse_first_integer",
    "parse_released_span",
    "parse_yes_no",
]

YES, NO = "yes", "no"
_SPAN = re.compile(r"(\d+) (?:to|and) (\d+)")
_INTEGER = re.compile(r"\d+")


class Span(NamedTuple):
    """First and last frame (or segment) of an answer, both inclusive."""

    first: int
    last: int


def format_span(first: int, last: int) -> str:
    """The dense answer, numbers zero-padded to two digits: `From 05 to 123.`"""
    return f"From {first:02d} to {last:02d}."


def format_segments(first: int, last: int) -> str:
    """The answer over segments, numbers as they are: `From 5 to 12.`"""
    return f"From {first} to {last}."


def parse_answer(text: str, num_positions: int | None = None) -> Span | None:
    """Read the first `a to b` of an answer.

    Args:
        text: what a model wrote, under the grammar or freely.
        num_positions: when given, answers that leave `0..num_positions-1` are malformed.

    Returns:
        The span, or None for `Not Present` and for malformed answers (`answer_kind` tells which).
    """
    match = _SPAN.search(text)
    if match is None:
        return None
    span = Span(int(match.group(1)), int(match.group(2)))
    inside = num_positions is None or span.last < num_positions
    return span if span.first <= span.last and inside else None


def answer_kind(text: str, num_positions: int | None = None) -> str:
    """`"span"`, `"not_present"` or `"malformed"`."""
    if parse_answer(text, num_positions) is not None:
        return "span"
    return "not_present" if text.strip().rstrip(".") == NOT_PRESENT else "malformed"


def parse_yes_no(text: str) -> bool | None:
    """True for yes, False for no, None for anything else."""
    word = text.strip().rstrip(".").lower()
    return {YES: True, NO: False}.get(word)


def parse_released_span(text: str) -> Span | None:
    """The released evaluation's reading: the first `a to b` (or `a and b`), in whatever order."""
    match = _SPAN.search(text)
    return Span(int(match.group(1)), int(match.group(2))) if match else None


def parse_first_integer(text: str) -> int | None:
    """The first integer of an answer: all that the released retrieval evaluation reads."""
    match = _INTEGER.search(text)
    return int(match.group()) if match else None


class State(NamedTuple):
    """Where decoding stands: `first` is the span's first number (-1 while it is not known)."""

    first: int
    node: int


@dataclass
class _Trie:
    """Token sequences as a tree; node 0 is the root.

    `value[n]` is what the sequence that ends at n stands for (None inside); `best[n]` is the
    largest integer value at or below n, so that "some last >= first lies below" is one comparison.
    """

    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    value: list[int | str | None] = field(default_factory=lambda: [None])
    best: list[int] = field(default_factory=lambda: [-1])

    def add(self, tokens: Sequence[int], value: int | str) -> None:
        node = 0
        number = value if isinstance(value, int) else -1
        for token in tokens:
            self.best[node] = max(self.best[node], number)
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
                self.value.append(None)
                self.best.append(-1)
            node = self.children[node][token]
        if self.value[node] is not None or self.children[node]:
            raise ValueError(f"this tokenizer gives two answers the same tokens: {value!r}")
        self.value[node], self.best[node] = value, number


class AnswerGrammar:
    """Automaton of the tokens of all answers of one stage, end-of-sequence included.

    Build it with `spans`, `segments` or `yes_no`. `encode(text)` must return the ids of a whole
    text; the text begins with `context`, so that the answer is cut out as it stands after a
    prompt, and what encode puts in front (a BOS) does not matter. It must not append an end token.

    Example:
        grammar = AnswerGrammar.spans(tokenizer.encode, eos_id=2, num_frames=250)
        state = grammar.start
        while not grammar.is_final(state):
            allowed = grammar.allowed(state)
            state = grammar.advance(state, allowed[logits[allowed].argmax()])

    Attributes:
        start: the state before the first token.
        decision: the state at which presence is decided (`start`, unless all answers share a first
            token).
        absent_token: the token that at `decision` leads to `Not Present` (or `no`); None without
            one.
    """

    def __init__(
        self,
        words: dict[str, list[int]],
        heads: list[list[int]],
        tails: list[list[int]],
        *,
        eos_id: int,
        absent: str | None,
        write: Callable[[int, int], str] = format_span,
    ) -> None:
        """`words`: fixed answers; `heads[a]` + `tails[b]` are the tokens of the span (a, b)."""
        self.eos_id = eos_id
        self._write = write
        self._head, self._tail = _Trie(), _Trie()
        for text, tokens in words.items():
            self._head.add([*tokens, eos_id], text)
        for number, tokens in enumerate(heads):
            self._head.add(tokens, number)
        for number, tokens in enumerate(tails):
            self._tail.add([*tokens, eos_id], number)
        self._allowed: dict[State, np.ndarray] = {}
        self.start = State(-1, 0)
        self.decision = self.start
        while self.is_forced(self.decision):
            self.decision = self.advance(self.decision, int(self.allowed(self.decision)[0]))
        self.absent_token = self._find_absent_token(words[absent]) if absent else None

    @classmethod
    def spans(
        cls,
        encode: Callable[[str], list[int]],
        *,
        eos_id: int,
        num_frames: int,
        write: Callable[[int, int], str] = format_span,
        not_present: bool = True,
        context: str = "ASSISTANT:",
    ) -> AnswerGrammar:
        """`From a to b.` with `0 <= a <= b < num_frames`, and `Not Present`.

        Raises:
            ValueError: the tokenizer merges across the words of an answer, so no automaton of this
                form exists.
        """
        cut = _answer_encoder(encode, context)
        heads, tails = _split_numbers(cut, write, num_frames)
        words = {NOT_PRESENT: cut(NOT_PRESENT)} if not_present else {}
        absent = NOT_PRESENT if not_present else None
        return cls(words, heads, tails, eos_id=eos_id, absent=absent, write=write)

    @classmethod
    def segments(
        cls,
        encode: Callable[[str], list[int]],
        *,
        eos_id: int,
        num_segments: int,
        not_present: bool = True,
        context: str = "ASSISTANT:",
    ) -> AnswerGrammar:
        """The same over segment positions, numbers unpadded."""
        return cls.spans(
            encode,
            eos_id=eos_id,
            num_frames=num_segments,
            write=format_segments,
            not_present=not_present,
            context=context,
        )

    @classmethod
    def first_numbers(
        cls,
        encode: Callable[[str], list[int]],
        *,
        eos_id: int,
        num_segments: int,
        context: str = "ASSISTANT:",
    ) -> AnswerGrammar:
        """The beginnings of `segments`, up to and with `to`: text `a` for each first number a."""
        cut = _answer_encoder(encode, context)
        heads, _ = _split_numbers(cut, format_segments, num_segments)
        words = {NOT_PRESENT: cut(NOT_PRESENT)} | {str(a): head for a, head in enumerate(heads)}
        return cls(words, [], [], eos_id=eos_id, absent=NOT_PRESENT)

    @classmethod
    def yes_no(
        cls, encode: Callable[[str], list[int]], *, eos_id: int, context: str = "ASSISTANT:"
    ) -> AnswerGrammar:
        """`yes` or `no`."""
        cut = _answer_encoder(encode, context)
        return cls({YES: cut(YES), NO: cut(NO)}, [], [], eos_id=eos_id, absent=NO)

    def allowed(self, state: State) -> np.ndarray:
        """Sorted int64 ids of the tokens that may follow (read-only); none in a final state."""
        if state not in self._allowed:
            tokens = sorted(self._children(state))
            self._allowed[state] = np.array(tokens, dtype=np.int64)
        return self._allowed[state]

    def advance(self, state: State, token: int) -> State:
        """The state after `token`.

        Raises:
            ValueError: the grammar does not allow this token here.
        """
        trie = self._head if state.first < 0 else self._tail
        node = trie.children[state.node].get(int(token))
        if node is None or (state.first >= 0 and trie.best[node] < state.first):
            raise ValueError(f"token {token} cannot follow in state {state}")
        value = trie.value[node]
        if state.first < 0 and isinstance(value, int):
            return State(value, 0)
        return State(state.first, node)

    def is_forced(self, state: State) -> bool:
        """Only one token may follow."""
        return len(self.allowed(state)) == 1

    def is_final(self, state: State) -> bool:
        """The answer and its end token are complete."""
        return len(self.allowed(state)) == 0

    def forced_run(self, state: State) -> list[int]:
        """The tokens that follow from here without any choice, the end token included."""
        run: list[int] = []
        while self.is_forced(state):
            run.append(int(self.allowed(state)[0]))
            state = self.advance(state, run[-1])
        return run

    def text(self, state: State) -> str:
        """The answer that a final state stands for."""
        trie = self._head if state.first < 0 else self._tail
        value = trie.value[state.node]
        if value is None:
            raise ValueError(f"state {state} is not final")
        return value if isinstance(value, str) else self._write(state.first, value)

    def span(self, state: State) -> Span | None:
        """The span that a final state stands for; None for answers in words."""
        value = self._tail.value[state.node] if state.first >= 0 else None
        return Span(state.first, value) if isinstance(value, int) else None

    def run(self, tokens: Iterable[int], state: State | None = None) -> State:
        """Advance over several tokens, from the start unless told otherwise."""
        state = self.start if state is None else state
        for token in tokens:
            state = self.advance(state, token)
        return state

    def top_answers(
        self, log_probs: Callable[[State], np.ndarray], num_answers: int, state: State | None = None
    ) -> list[tuple[State, float]]:
        """The most probable complete answers, best first, by best-first search over the automaton.

        Args:
            log_probs: for a state with a choice, the log-probabilities of `allowed(state)`, same
                order. Called once per visited state; forced states are not asked.
            state: where to begin (default: the start).

        Returns:
            At most `num_answers` pairs (final state, log-probability); `span` and `text` read the
            state.
        """
        ticket = (
            itertools.count()
        )  # breaks ties in the order of discovery, states are never compared
        heap = [(0.0, next(ticket), self.start if state is None else state)]
        answers: list[tuple[State, float]] = []
        while heap and len(answers) < num_answers:
            cost, _, here = heapq.heappop(heap)
            if self.is_final(here):
                answers.append((here, -cost))
                continue
            steps = [0.0] if self.is_forced(here) else log_probs(here)
            for token, log_prob in zip(self.allowed(here), steps, strict=True):
                if log_prob > -np.inf:
                    following = self.advance(here, token)
                    heapq.heappush(heap, (cost - float(log_prob), next(ticket), following))
        return answers

    def _children(self, state: State) -> list[int]:
        if state.first < 0:
            return list(self._head.children[state.node])
        best = self._tail.best
        children = self._tail.children[state.node].items()
        return [token for token, node in children if best[node] >= state.first]

    def _find_absent_token(self, tokens: list[int]) -> int:
        state = self.start
        for token in tokens:
            if state == self.decision:
                return token
            state = self.advance(state, token)
        raise ValueError("presence is not decided before the answer ends")


def _answer_encoder(encode: Callable[[str], list[int]], context: str) -> Callable[[str], list[int]]:
    """Encode an answer as it stands after a prompt and a space, without the prompt's tokens."""
    before = list(encode(context))

    def cut(answer: str) -> list[int]:
        tokens = list(encode(f"{context} {answer}"))
        if tokens[: len(before)] != before or len(tokens) == len(before):
            raise ValueError(f"the tokenizer merges {context!r} with what follows: {answer!r}")
        return tokens[len(before) :]

    return cut


def _split_numbers(
    cut: Callable[[str], list[int]], write: Callable[[int, int], str], count: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens up to and with `to` for each first number, and after it for each last one.

    About 3 * count encodings instead of count**2 / 2; that a whole answer is the two parts put
    together is checked where a tokenizer could break it: equal numbers, and the widest span of
    each first number.
    """
    heads = [cut(write(number, number).rpartition(" ")[0]) for number in range(count)]
    tails = [cut(write(0, number))[len(heads[0]) :] for number in range(count)]
    for first in range(count):
        for last in (first, count - 1):
            if cut(write(first, last)) != heads[first] + tails[last]:
                raise ValueError(f"the tokenizer merges across words in {write(first, last)!r}")
    return heads, tails
