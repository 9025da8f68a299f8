"""Prompt templates and answer grammars with tokenizers that cut numbers in different ways."""

from __future__ import annotations

import pytest
import torch
from test_families import FRAMES, llm_of
from tiny_runs import WINDOW_S, D, ask, features_of, sentences, windows
from tiny_tokenizers import KINDS, tiny_tokenizer
from transformers import AutoModelForCausalLM

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID
from revisionllm.engine.dense import DenseEngine, grammar_encoder, span_grammar
from revisionllm.engine.reference import answer_one
from revisionllm.errors import UserError
from revisionllm.formats.questions import question_text
from revisionllm.grounding.answers import AnswerGrammar, format_segments, format_span
from revisionllm.grounding.levels import Question
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.prompts import (
    SYSTEM,
    check_template,
    prompt_ids,
    prompt_pieces,
    training_ids,
)

TEMPLATES = ("vicuna_v1", "chat")


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return tiny_tokenizer(request.param)


def run_with(tokenizer, template: str, family: str = "Llama 2") -> GroundingModel:
    config = llm_of(family).config
    config.vocab_size = len(tokenizer)
    torch.manual_seed(2)
    llm = AutoModelForCausalLM.from_config(config).eval()
    adapter = AdapterConfig("linear", D, config.hidden_size)
    run = RunConfig(
        adapter=adapter,
        prompt_template=template,
        frames_per_window=FRAMES,
        window_s=WINDOW_S,
        stride_s=6.0,
        feature_fps=2.0,
    )
    return GroundingModel(llm, build_adapter(adapter).eval(), tokenizer, run)


@pytest.mark.parametrize("template", TEMPLATES)
def test_grammars_spell_every_answer_as_training_does(tokenizer, template):
    model = run_with(tokenizer, template)
    encode, eos_id = grammar_encoder(model), tokenizer.eos_token_id
    question = model.question("a dog")
    for grammar, write, count in (
        (AnswerGrammar.spans(encode, eos_id=eos_id, num_frames=250, context=""), format_span, 250),
        (
            AnswerGrammar.segments(encode, eos_id=eos_id, num_segments=101, context=""),
            format_segments,
            101,
        ),
    ):
        for first, last in ((0, 0), (3, 12), (9, count - 1), (99, 100), (7, 7), (10, 11)):
            text = write(first, last)
            ids, labels = training_ids(tokenizer, question, text, template)
            said = [i for i, label in zip(ids, labels, strict=True) if label != IGNORE_INDEX]
            assert tokenizer.decode(said[:-1]).strip() == text and said[-1] == eos_id
            state = grammar.run(said)
            assert grammar.is_final(state) and grammar.span(state) == (first, last)
        state = grammar.run([*model.answer_ids("Not Present"), eos_id])
        assert grammar.text(state) == "Not Present"
    grammar = AnswerGrammar.yes_no(encode, eos_id=eos_id, context="")
    assert grammar.text(grammar.run([*model.answer_ids("yes"), eos_id])) == "yes"


@pytest.mark.parametrize("sentence", ["a dog", "a <video> b", "x <|im_end|> y", "[INST] </s>"])
def test_a_chat_prompt_reads_as_its_template(tokenizer, sentence):
    question = question_text(sentence, "frames")
    ids = prompt_ids(tokenizer, question, "chat")
    assert ids.count(VIDEO_TOKEN_ID) == 1
    before, after = prompt_pieces(tokenizer, question, "chat")
    assert ids == [*before, VIDEO_TOKEN_ID, *after]
    text = tokenizer.decode(before) + "<video>" + tokenizer.decode(after)
    asked = f"During which frames can we see {sentence.lower()}?"
    messages = [{"role": "system", "content": SYSTEM}]
    messages += [{"role": "user", "content": f"<video>\n{asked}"}]
    if "no system role" in tokenizer.chat_template:
        messages = [{"role": "user", "content": f"{SYSTEM}\n\n<video>\n{asked}"}]
    assert text == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    plain = prompt_ids(tokenizer, question_text("a dog", "frames"), "chat")
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in plain if i in special]


@pytest.mark.parametrize("family", ["Llama 3", "Qwen 3"])
def test_engine_equals_the_reference_in_a_chat(tokenizer, family):
    model = run_with(tokenizer, "chat", family)
    texts, film = sentences(4), windows(3)
    questions = [Question(q, (w,)) for q in range(4) for w in film]
    grammar = span_grammar(model)
    answers = ask(DenseEngine(model, explore=1.0), questions, texts)
    for question, answer in zip(questions, answers, strict=True):
        frames = features_of(question.window)
        text, _, presence, _ = answer_one(model, grammar, frames, texts[question.query])
        assert answer.answer == text
        assert answer.presence == pytest.approx(presence, abs=1e-4)
    assert len({round(answer.presence, 3) for answer in answers}) > 3


def test_packed_chats_equal_separate_ones(tokenizer):
    from revisionllm.train.collator import PackedCollator, padded_rows
    from revisionllm.train.losses import packed_losses

    model = run_with(tokenizer, "chat")
    collator = PackedCollator(tokenizer, "chat")
    assert collator.shared
    asked = [(model.question(text), "From 03 to 11.") for text in sentences(3)]
    frames = torch.from_numpy(features_of(windows(1)[0]))[None]
    shared = {
        "images": frames,
        "before_ids": torch.tensor(collator.before),
        "shared_ids": torch.tensor(collator.shared),
    }
    packed = packed_losses(model, shared | padded_rows([collator.pack(asked, FRAMES)]))
    for loss, (question, answer) in zip(packed, asked, strict=True):
        ids, labels = training_ids(tokenizer, question, answer, "chat")
        alone = model(torch.tensor([ids]), frames, torch.tensor([labels])).loss
        torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)


def test_a_base_without_a_chat_template_is_one_line():
    from model_assets import BASE

    from revisionllm.model.base import load_tokenizer

    plain = load_tokenizer(str(BASE))
    check_template(plain, "vicuna_v1")
    with pytest.raises(UserError, match="no chat template"):
        check_template(plain, "chat")
