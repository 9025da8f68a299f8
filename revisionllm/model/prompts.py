"""The prompt: system text, question and answer, and how they become token ids around `<video>`.

The only place that knows the template (v1 of Vicuna, as the released weights saw it) and the
tokenisation: the texts before and after `<video>` are tokenised separately, the second one loses
its BOS, and `VIDEO_TOKEN_ID` stands between them until the visual tokens are spliced in. A sentence
is text: `<video>` or a tokenizer's special token in it is spelt out, never a token.
"""

from __future__ import annotations

from typing import Protocol

from revisionllm.constants import IGNORE_INDEX, VIDEO_PLACEHOLDER, VIDEO_TOKEN_ID
from revisionllm.formats.questions import plain_text

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int

    def __call__(self, text: str, *, split_special_tokens: bool) -> dict[str, list[int]]: ...


def prompt_text(question: str) -> str:
    """Template v1 around a question. Without `<video>` in it, the video goes in front of it."""
    if VIDEO_PLACEHOLDER not in question:
        question = f"{VIDEO_PLACEHOLDER}\n{question}"
    return f"{SYSTEM} USER: {question} ASSISTANT:"


def encode_chunks(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Token ids of the texts between `<video>` placeholders; BOS stays on the first one only."""
    chunks = [_ids(tokenizer, plain_text(chunk)) for chunk in text.split(VIDEO_PLACEHOLDER)]
    bos = tokenizer.bos_token_id
    return [chunks[0]] + [
        ids[1:] if bos is not None and ids[:1] == [bos] else ids for ids in chunks[1:]
    ]


def encode_with_video(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text; each `<video>` becomes one `VIDEO_TOKEN_ID`."""
    first, *others = encode_chunks(tokenizer, text)
    ids = list(first)
    for chunk in others:
        ids += [VIDEO_TOKEN_ID, *chunk]
    return ids


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """Token ids of the whole prompt, up to and including `ASSISTANT:`."""
    return encode_with_video(tokenizer, prompt_text(question))


def prompt_pieces(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the one `<video>` of a prompt.

    Raises:
        ValueError: the question holds more than one `<video>`.
    """
    chunks = encode_chunks(tokenizer, prompt_text(question))
    if len(chunks) != 2:
        raise ValueError(f"one {VIDEO_PLACEHOLDER} wanted in {question!r}, found {len(chunks) - 1}")
    return chunks[0], chunks[1]


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Token ids of an answer as they follow `ASSISTANT:`, without EOS; for grammars."""
    opening = _ids(tokenizer, "ASSISTANT:")
    return _ids(tokenizer, f"ASSISTANT: {answer}")[len(opening) :]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, with BOS where the tokenizer adds one; no word is a special token."""
    return list(tokenizer(text, split_special_tokens=True)["input_ids"])


def training_ids(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt, answer and EOS, and their labels.

    Args:
        tokenizer: of the base.
        question: text of the question, with or without `<video>`.
        answer: text without a leading space or EOS.

    Returns:
        input_ids and labels of equal length; only the answer and EOS are supervised, all else is
        `IGNORE_INDEX`.

    Raises:
        ValueError: the answer changes the tokens of the prompt, so that labels would not line up.
    """
    prompt = prompt_ids(tokenizer, question)
    whole = encode_with_video(tokenizer, f"{prompt_text(question)} {answer}")
    if whole[: len(prompt)] != prompt:
        raise ValueError(f"tokens of the prompt change when {answer!r} follows {question!r}")
    answer_part = [*whole[len(prompt) :], tokenizer.eos_token_id]
    return prompt + answer_part, [IGNORE_INDEX] * len(prompt) + answer_part
