"""Reading an answer grammar off few logits: its columns, its decision, its next tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from revisionllm.grounding import scores
from revisionllm.grounding.answers import AnswerGrammar, State


class Choices:
    """A grammar with the vocabulary cut to the tokens that it can ever use.

    Attributes:
        grammar: the grammar.
        vocabulary: sorted ids [K] of all its tokens; logits are of these alone.
        opening: tokens that every answer begins with.
    """

    def __init__(self, grammar: AnswerGrammar) -> None:
        self.grammar = grammar
        self.vocabulary = grammar_tokens(grammar)
        self.opening = grammar.forced_run(grammar.start)
        self.decision_columns = self.columns(grammar.decision)

    def columns(self, state: State) -> np.ndarray:
        """Where the allowed tokens of a state are in the logits, sorted."""
        return np.searchsorted(self.vocabulary, self.grammar.allowed(state))

    def follow(self, state: State, token: int) -> tuple[State, list[int]]:
        """Take a token: the next open (or final) state, and the tokens up to it."""
        state = self.grammar.advance(state, token)
        forced = self.grammar.forced_run(state)
        return self.grammar.run(forced, state), [token, *forced]


def grammar_tokens(grammar: AnswerGrammar) -> np.ndarray:
    """All tokens that a grammar can ever allow, sorted.

    Last numbers are walked behind the first number 0 alone: behind it, all of them are allowed.
    """
    found: set[int] = set()
    waiting, seen = [grammar.start], {grammar.start}
    while waiting:
        state = waiting.pop()
        for token in grammar.allowed(state).tolist():
            found.add(token)
            following = grammar.advance(state, token)
            if following not in seen and following.first <= 0:
                seen.add(following)
                waiting.append(following)
    return np.array(sorted(found), dtype=np.int64)


@dataclass
class PendingAnswer:
    """One question on its way through the engine.

    Attributes:
        position: in the caller's list.
        row: its prompt's beginning in the prefix batch.
        tokens: what to feed next: at first the question behind the prefix and the answers' opening.
        state: where its answer stands behind them; open, or final.
        fed: how many tokens behind the prefix have been fed.
        presence: 1 - P("Not Present"), once decided.
        absent: the first choice was "Not Present".
        entropies: of each open choice, nats.
        log_probs: state -> log-probabilities of its allowed tokens, for the states visited.
        answers: final states and their log-probabilities against the answer's, if asked for.
    """

    position: int
    row: int
    tokens: list[int]
    state: State
    fed: int = 0
    presence: float = 1.0
    absent: bool = False
    entropies: list[float] = field(default_factory=list)
    log_probs: dict[State, np.ndarray] = field(default_factory=dict)
    answers: list[tuple[State, float]] = field(default_factory=list)

    @property
    def entropy(self) -> float:
        """Mean entropy of the answer, nats; of an explored one, which is still "Not Present" (or
        "no"), that of its one decision."""
        return scores.mean_entropy(self.entropies[:1] if self.absent else self.entropies)

    def weighted_states(self) -> dict[State, float]:
        """The answer's final state (weight 1), then those of `answers` by falling weight: their
        probability against the answer's, at most 1."""
        own = next((p for state, p in self.answers if state == self.state), None)
        weights = {self.state: 1.0}
        for state, log_prob in self.answers:
            base = own if own is not None else self.answers[0][1]
            weights.setdefault(state, float(np.exp(min(0.0, log_prob - base))))
        return weights


def decide(asks: list[PendingAnswer], logits: np.ndarray, choices: Choices, explore: float) -> None:
    """The first choice of many answers at once: presence, and the best token.

    Args:
        logits: [A, K] at the grammar's decision.
        explore: where presence is at least this, "Not Present" is noted and its best alternative
            followed instead.
    """
    grammar = choices.grammar
    log_probs = scores.log_softmax(logits[:, choices.decision_columns])
    probs = np.exp(log_probs)
    entropies = -(probs * np.where(probs > 0, log_probs, 0.0)).sum(-1)
    allowed = grammar.allowed(grammar.decision)
    best = log_probs.argmax(-1)
    others = log_probs
    if grammar.absent_token is not None:
        column = int(np.searchsorted(allowed, grammar.absent_token))
        others = log_probs.copy()
        others[:, column] = -np.inf
        presences = -np.expm1(log_probs[:, column])
    for number, ask in enumerate(asks):
        ask.entropies.append(float(entropies[number]))
        ask.log_probs[ask.state] = log_probs[number]
        token = int(allowed[best[number]])
        if grammar.absent_token is not None:
            ask.presence = float(presences[number])
            ask.absent = token == grammar.absent_token
            if ask.absent and ask.presence >= explore and len(allowed) > 1:
                token = int(allowed[others[number].argmax()])
        ask.state, ask.tokens = choices.follow(ask.state, token)


def choose(ask: PendingAnswer, logits: np.ndarray, choices: Choices) -> None:
    """A later choice of one answer: logits [K] at its state."""
    log_probs = scores.log_softmax(logits[choices.columns(ask.state)])
    ask.entropies.append(float(scores.token_entropy(log_probs)))
    ask.log_probs[ask.state] = log_probs
    token = int(choices.grammar.allowed(ask.state)[log_probs.argmax()])
    ask.state, ask.tokens = choices.follow(ask.state, token)
