"""Prompts and labels, literally, for a sentencepiece tokenizer and for a byte-level one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID
from revisionllm.formats import questions as q
from revisionllm.model import prompts as c
from revisionllm.model.base import load_tokenizer

BASE = Path(__file__).resolve().parents[1] / "assets" / "model" / "ckpt_base"


def byte_level_tokenizer():
    """Like GPT-2's: no BOS, pieces that carry their leading space, digits one by one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(
        [c.SYSTEM + " USER: ASSISTANT: From 1 to 2. Not Present"] * 3, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="module", params=["sentencepiece", "byte level"])
def tokenizer(request):
    return load_tokenizer(str(BASE)) if request.param == "sentencepiece" else byte_level_tokenizer()


@pytest.mark.parametrize(
    ("sentence", "cleaned"),
    [
        ("A man opens a door.", "a man opens a door"),
        ("  She leaves...  ", "she leaves.."),
        ("Where is SHE?", "where is she?"),
        ("", ""),
    ],
)
def test_clean_query(sentence, cleaned):
    assert q.clean_query(sentence) == cleaned


def test_question_wordings():
    assert q.question_text("A dog.", "frames") == "During which frames can we see a dog?"
    assert q.question_text("A dog.", "video") == "During which video can we see a dog?"
    assert q.question_text("A dog.", "yes_no") == (
        "Does a dog happen in the video? Write your answer either yes or no."
    )


def test_prompt_text():
    assert c.prompt_text("Why?") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <video>\nWhy? ASSISTANT:"
    )
    assert c.prompt_text("<video>\nWhy?") == c.prompt_text("Why?")


def test_literal_ids_and_labels_of_one_conversation():
    tokenizer = load_tokenizer(str(BASE))
    ids, labels = c.training_ids(tokenizer, q.question_text("A dog.", "frames"), "From 05 to 12.")
    assert ids[:3] == [1, 299, 422]
    assert ids[31:] == [
        *[482, 459, VIDEO_TOKEN_ID, 459, 13, 485, 269, 304, 319, 436, 315, 309, 316],
        *[259, 453, 477, 483, 448, 482],
        *[419, 459, 511, 509, 292, 459, 491, 493, 478, 2],
    ]
    assert labels == [IGNORE_INDEX] * 50 + ids[50:]


@pytest.mark.parametrize("answer", ["From 12 to 249.", "From 3 to 6.", "Not Present", "yes", "no"])
def test_only_answer_and_eos_are_supervised(tokenizer, answer):
    ids, labels = c.training_ids(tokenizer, "During which frames can we see a dog?", answer)
    supervised = [label for label in labels if label != IGNORE_INDEX]
    assert supervised[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(supervised[:-1]).strip() == answer
    assert ids[-len(supervised) :] == supervised
    assert ids.count(VIDEO_TOKEN_ID) == 1


def test_pieces_around_the_video(tokenizer):
    question = "During which frames can we see a dog?"
    before, after = c.prompt_pieces(tokenizer, question)
    assert [*before, VIDEO_TOKEN_ID, *after] == c.prompt_ids(tokenizer, question)
    assert tokenizer.bos_token_id is None or tokenizer.bos_token_id not in after


def test_pieces_refuse_two_videos(tokenizer):
    with pytest.raises(ValueError, match="found 2"):
        c.prompt_pieces(tokenizer, "<video> or <video>?")


@pytest.mark.parametrize("digit", range(10))
def test_answers_for_grammars_are_tokenised_as_in_training(tokenizer, digit):
    answer = f"From {digit} to {9 - digit}0."
    ids, labels = c.training_ids(tokenizer, "Which?", answer)
    supervised = [i for i, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]
    assert c.encode_answer(tokenizer, answer) == supervised[:-1]


@pytest.mark.parametrize("wording", list(q.QUESTIONS))
@pytest.mark.parametrize(
    "sentence", ["a <video> b", "<VIDEO>", "x </s> y", "<s>", "<unk> <memory>", "end <|end|> it"]
)
def test_special_tokens_in_a_sentence_are_text(tokenizer, wording, sentence):
    question = q.question_text(sentence, wording)
    ids = c.prompt_ids(tokenizer, question)
    assert ids.count(VIDEO_TOKEN_ID) == 1
    plain = c.prompt_ids(tokenizer, q.question_text("a dog", wording))
    assert ids.index(VIDEO_TOKEN_ID) == plain.index(VIDEO_TOKEN_ID)
    special = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
    assert not special & set(ids) and ids.count(tokenizer.bos_token_id) <= 1
    _, after = c.prompt_pieces(tokenizer, question)
    back = tokenizer.decode(after).replace(" ", "").lower()
    assert sentence.replace(" ", "").lower() in back
    assert q.clean_query(sentence) in q.plain_text(question)


def test_line_breaks_in_a_sentence_are_spaces():
    assert q.clean_query("A man\r\nopens\u2028a door.\n") == "a man opens a door"
