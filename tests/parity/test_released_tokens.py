"""Token ids and labels of prompts, as released, with a sentencepiece tokenizer."""

from __future__ import annotations

import json

import pytest
from model_assets import ASSETS, BASE

from revisionllm.model.base import load_tokenizer
from revisionllm.model.prompts import encode_with_video, prompt_ids, training_ids

RELEASED = json.loads((ASSETS / "parity_tokens.json").read_text())["legacy_False"]
PROMPTS = ["dense", "hier", "mid", "unicode", "two_spaces"]  # `<memory>` is legacy
TRAINING = [
    case
    for case in RELEASED["preprocess_v1"]
    if "input_ids" in case and not case["ignore_temporal"]  # hides digits of the answer; not ours
]
# a text that is one space: transformers 5 writes one piece for it; no prompt holds such a text
CHUNKS = {text: ids for text, ids in RELEASED["chunks"].items() if text != " "}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(BASE))


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_ids(tokenizer, name):
    case = RELEASED[name]
    assert prompt_ids(tokenizer, case["question"]) == case["input_ids"]
    assert encode_with_video(tokenizer, case["prompt"]) == case["input_ids"]


@pytest.mark.parametrize("text", CHUNKS)
def test_chunk_ids(tokenizer, text):
    assert tokenizer(text)["input_ids"] == CHUNKS[text]


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case["answer"])
def test_training_ids_and_labels(tokenizer, case):
    ids, labels = training_ids(tokenizer, case["question"], case["answer"])
    assert ids == case["input_ids"]
    assert labels == case["labels"]
