"""What an lmms-eval adapter reads from a prompt and writes as an answer (no lmms-eval needed).

The prompts of the tasks `extremewhenbench`, `timelens*` and `temporal_grounding_charades` wrap the
query in a sentence; the answer holds exactly one `start - end` pair and no other digit, which the
parsers of all three read alike. https://github.com/EvolvingLMMs-Lab/lmms-eval
"""

from __future__ import annotations

import re

from revisionllm.errors import UserError
from revisionllm.records.predictions import Prediction

NOTHING_FOUND = "The event was not found in the video."

# What stands around the query: extremewhenbench, timelens, temporal_grounding_charades.
PROMPT_PATTERNS = (
    re.compile(r'give you the question: "(?P<query>.*)"\s*Please return', re.DOTALL),
    re.compile(r"described by the sentence '(?P<query>.*)', determining its start", re.DOTALL),
    re.compile(r"give you the textual sentence: (?P<query>.*?)\.?\s*Please return", re.DOTALL),
)


def query_of_prompt(prompt: str) -> str:
    """The query inside a task's prompt.

    Raises:
        UserError: the prompt is of no task this adapter knows.
    """
    for pattern in PROMPT_PATTERNS:
        match = pattern.search(prompt)
        if match and match.group("query").strip():
            return match.group("query").strip()
    raise UserError(
        "this prompt is of no known task (extremewhenbench, timelens, "
        f"temporal_grounding_charades): {prompt[:80]!r}"
    )


def answer_sentence(start_s: float, end_s: float) -> str:
    """The sentence that the tasks' parsers read back as (start_s, end_s), to tenths of a second."""
    return f"The event happens in {start_s:.1f} - {end_s:.1f} seconds"


def sentence_of(prediction: Prediction) -> str:
    """The answer to a query: its best moment (no event is absent in these tasks), or none."""
    if not prediction.moments:
        return NOTHING_FOUND
    best = prediction.moments[0]
    return answer_sentence(max(best.start_s, 0.0), best.end_s)
