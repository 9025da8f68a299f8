"""The wording of the questions, which training files repeat."""

from __future__ import annotations

from revisionllm.constants import LINE_BREAKS, VIDEO_PLACEHOLDER

QUESTIONS = {
    "frames": "During which frames can we see {query}?",
    "video": "During which video can we see {query}?",
    "yes_no": "Does {query} happen in the video? Write your answer either yes or no.",
}
_SPELT_OUT = f"{VIDEO_PLACEHOLDER[0]}\0{VIDEO_PLACEHOLDER[1:]}"  # `<video>` as part of a sentence
CAPTION_QUESTION = "What happens in this video?"  # of the alignment stage


def clean_query(sentence: str) -> str:
    """The sentence as questions have it: one line, stripped, lower case, a final full stop off."""
    return LINE_BREAKS.sub(" ", sentence).strip().lower().removesuffix(".")


def question_text(sentence: str, wording: str) -> str:
    """The question about a sentence. `wording` is a key of `QUESTIONS` (the run's `question`).

    `<video>` in the sentence is marked (by a zero character) as none; see `plain_text`.
    """
    query = clean_query(sentence).replace(VIDEO_PLACEHOLDER, _SPELT_OUT)
    return QUESTIONS[wording].format(query=query)


def plain_text(question: str) -> str:
    """A question as people read it, without the mark of `question_text`."""
    return question.replace("\0", "")
