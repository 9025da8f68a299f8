"""Inference on many queries at once, and the protocol by which a search asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from revisionllm.grounding.levels import Level, Question, WindowAnswer
    from revisionllm.records.films import Film, Query


@dataclass
class EngineCost:
    """Work done so far.

    Attributes:
        prefixes: prompts whose beginning went through the LLM.
        segments: segments that went through the adapter, once per query.
        llm_tokens: tokens that went through the LLM, prefixes included.
        seconds: wall clock inside `answer`.
    """

    prefixes: int = 0
    segments: int = 0
    llm_tokens: int = 0
    seconds: float = 0.0


class Engine(Protocol):
    """Answers the questions of one level of a search.

    Attributes:
        cost: work done so far.
    """

    cost: EngineCost

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """Answer questions about a film.

        Args:
            level: the questions' level.
            questions: what to ask; `question.query` counts into `queries`.
            film: work is kept for the next call as long as `film.key` stays the same.

        Returns:
            One answer per question, in the same order.
        """
        ...
