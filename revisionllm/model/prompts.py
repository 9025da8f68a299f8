"""The prompt: template, question and answer, and how they become token ids around `<video>`.

The only place that knows templates and tokenisation. A prompt is made of chunks: the texts before
and after `<video>` are tokenised separately, only the first keeps its BOS, and `VIDEO_TOKEN_ID`
stands between them until the visual tokens are spliced in. The video comes before the question, so
that questions about a window share their beginning. A sentence is text: `<video>` or a tokenizer's
special token in it is spelt out, never a token.

- vicuna_v1: Vicuna's, as the published weights saw it;
- chat: the base's own chat template, with the same system text.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

from revisionllm.constants import IGNORE_INDEX, VIDEO_PLACEHOLDER, VIDEO_TOKEN_ID
from revisionllm.errors import UserError
from revisionllm.formats.questions import plain_text

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA, CHAT = "vicuna_v1", "chat"
_MARK = "THE-WORDS-OF-THE-USER"  # where the question goes while a chat template is read


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer; of one with a chat template that, too."""

    bos_token_id: int | None
    eos_token_id: int

    def __call__(self, text: str, *, split_special_tokens: bool) -> dict[str, list[int]]: ...


def with_video(question: str) -> str:
    """The question; without `<video>` in it, the video goes in front of it."""
    has_video = VIDEO_PLACEHOLDER in question
    return question if has_video else f"{VIDEO_PLACEHOLDER}\n{question}"


def prompt_text(question: str) -> str:
    """Template vicuna_v1 around a question."""
    return f"{SYSTEM} USER: {with_video(question)} ASSISTANT:"


def encode_chunks(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Token ids of the texts between `<video>` placeholders; BOS stays on the first one only."""
    chunks = [_ids(tokenizer, plain_text(chunk)) for chunk in text.split(VIDEO_PLACEHOLDER)]
    bos = tokenizer.bos_token_id
    return [chunks[0]] + [
        ids[1:] if bos is not None and ids[:1] == [bos] else ids for ids in chunks[1:]
    ]


def encode_with_video(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text; each `<video>` becomes one `VIDEO_TOKEN_ID`."""
    return _joined(encode_chunks(tokenizer, text))


def prompt_ids(tokenizer: Tokenizer, question: str, template: str = VICUNA) -> list[int]:
    """Token ids of the whole prompt, up to where the answer begins."""
    return _joined(_prompt_chunks(tokenizer, question, template))


def prompt_pieces(
    tokenizer: Tokenizer, question: str, template: str = VICUNA
) -> tuple[list[int], list[int]]:
    """Token ids before and after the one `<video>` of a prompt.

    Raises:
        ValueError: the question holds more than one `<video>`.
    """
    chunks = _prompt_chunks(tokenizer, question, template)
    if len(chunks) != 2:
        raise ValueError(f"one {VIDEO_PLACEHOLDER} wanted in {question!r}, found {len(chunks) - 1}")
    return chunks[0], chunks[1]


def encode_answer(tokenizer: Tokenizer, answer: str, template: str = VICUNA) -> list[int]:
    """Token ids of an answer as they follow the prompt, without EOS; for grammars."""
    if template == CHAT:
        return _plain_ids(tokenizer, answer)
    opening = _ids(tokenizer, "ASSISTANT:")
    return _ids(tokenizer, f"ASSISTANT: {answer}")[len(opening) :]


def training_ids(
    tokenizer: Tokenizer, question: str, answer: str, template: str = VICUNA
) -> tuple[list[int], list[int]]:
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
    prompt = prompt_ids(tokenizer, question, template)
    if template == VICUNA:
        whole = encode_with_video(tokenizer, f"{prompt_text(question)} {answer}")
        if whole[: len(prompt)] != prompt:
            raise ValueError(f"tokens of the prompt change when {answer!r} follows {question!r}")
        said = whole[len(prompt) :]
    else:
        said = encode_answer(tokenizer, answer, template)
    answer_part = [*said, tokenizer.eos_token_id]
    return prompt + answer_part, [IGNORE_INDEX] * len(prompt) + answer_part


def check_template(tokenizer: Any, template: str) -> None:
    """Raises UserError if the base has no chat template and one is asked for."""
    if template == CHAT:
        _chat_frame(tokenizer)


def _prompt_chunks(tokenizer: Tokenizer, question: str, template: str) -> list[list[int]]:
    if template == VICUNA:
        return encode_chunks(tokenizer, prompt_text(question))
    before, behind = _chat_frame(tokenizer)
    chunks = [
        _plain_ids(tokenizer, plain_text(chunk))
        for chunk in with_video(question).split(VIDEO_PLACEHOLDER)
    ]
    chunks[0] = before + chunks[0]
    chunks[-1] = chunks[-1] + behind
    return chunks


@lru_cache(maxsize=8)
def _chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of what a chat template puts before and behind the user's words.

    Raises:
        UserError: the tokenizer has no chat template, or one that drops the user's words.
    """
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the base's tokenizer has no chat template; take prompt_template vicuna_v1")

    def render(messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    user = {"role": "user", "content": _MARK}
    try:
        text = render([{"role": "system", "content": SYSTEM}, user])
    except TemplateError:  # templates without a system role: it goes before the user's words
        text = render([{"role": "user", "content": f"{SYSTEM}\n\n{_MARK}"}])
    parts = text.split(_MARK)
    if len(parts) != 2:
        raise UserError("the base's chat template does not show the user's words once")
    before, behind = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    return list(before), list(behind)


def _joined(chunks: list[list[int]]) -> list[int]:
    """One row of ids; each `<video>` becomes one `VIDEO_TOKEN_ID`."""
    ids = list(chunks[0])
    for chunk in chunks[1:]:
        ids += [VIDEO_TOKEN_ID, *chunk]
    return ids


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, with BOS where the tokenizer adds one; no word is a special token."""
    return list(tokenizer(text, split_special_tokens=True)["input_ids"])


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text inside a prompt, without BOS; no word is a special token."""
    if not text:
        return []
    found = tokenizer(text, split_special_tokens=True, add_special_tokens=False)
    return list(found["input_ids"])
