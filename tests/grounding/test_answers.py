"""The answer grammar under a LLaMA sentencepiece tokenizer and under a GPT-2-style BPE."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from revisionllm.grounding import answers as a

ASSETS = Path(__file__).parents[1] / "assets" / "grounding"
EOS = 2
CONTEXT = "ASSISTANT:"


def llama_encode():
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(ASSETS / "tokenizer.model")).encode


def gpt2_encode():
    """Byte-level BPE whose merges differ by number: ' 05' is one token, ' 123' one or two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [
        f"ASSISTANT: From {i:02d} to {i + 7:02d}. Not Present yes no" for i in range(0, 200, 3)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return lambda text: tokenizer.encode(text).ids


def character_encode():
    """One token per character, with a BOS: all answers of the grammar share their first token."""
    return lambda text: [1, *(ord(c) for c in text)]


ENCODERS = {"llama": llama_encode, "gpt2": gpt2_encode, "characters": character_encode}


@pytest.fixture(params=ENCODERS, scope="module")
def encode(request):
    return ENCODERS[request.param]()


def answer_tokens(encode, text):
    return [*encode(f"{CONTEXT} {text}")[len(encode(CONTEXT)) :], EOS]


def all_sequences(grammar):
    """Every complete token sequence of the automaton, by walking it."""
    stack = [(grammar.start, ())]
    while stack:
        state, tokens = stack.pop()
        if grammar.is_final(state):
            yield tokens, state
        for token in grammar.allowed(state).tolist():
            stack.append((grammar.advance(state, token), (*tokens, token)))


@pytest.mark.parametrize("num_frames", [1, 9, 12, 110])
def test_grammar_is_exactly_the_answers(encode, num_frames):
    grammar = a.AnswerGrammar.spans(encode, eos_id=EOS, num_frames=num_frames)
    spans = list(itertools.combinations_with_replacement(range(num_frames), 2))
    wanted = {tuple(answer_tokens(encode, a.format_span(*span))): span for span in spans}
    wanted[tuple(answer_tokens(encode, a.NOT_PRESENT))] = None
    got = {tokens: grammar.span(state) for tokens, state in all_sequences(grammar)}
    assert got == wanted


def test_full_size_grammar_builds_fast_and_accepts_every_answer(encode):
    began = time.perf_counter()
    grammar = a.AnswerGrammar.spans(encode, eos_id=EOS, num_frames=250)
    assert time.perf_counter() - began < 1.0
    for first in range(0, 250, 7):
        for last in range(first, 250, 11):
            state = grammar.run(answer_tokens(encode, a.format_span(first, last)))
            assert grammar.is_final(state)
            assert grammar.span(state) == (first, last)
            assert grammar.text(state) == a.format_span(first, last)


def test_segments_are_unpadded(encode):
    grammar = a.AnswerGrammar.segments(encode, eos_id=EOS, num_segments=33)
    texts = {grammar.text(state) for _, state in all_sequences(grammar)}
    assert "From 5 to 12." in texts
    assert "From 05 to 12." not in texts
    assert len(texts) == 33 * 34 // 2 + 1


def test_yes_no(encode):
    grammar = a.AnswerGrammar.yes_no(encode, eos_id=EOS)
    assert {grammar.text(state) for _, state in all_sequences(grammar)} == {"yes", "no"}
    yes = grammar.run(answer_tokens(encode, "yes"))
    assert grammar.span(yes) is None
    absent = grammar.advance(grammar.decision, grammar.absent_token)
    assert grammar.text(grammar.run(grammar.forced_run(absent), absent)) == "no"


def test_allowed_is_sorted_and_wrong_tokens_are_refused(encode):
    grammar = a.AnswerGrammar.spans(encode, eos_id=EOS, num_frames=40)
    tokens = answer_tokens(encode, "From 20 to 30.")
    state = grammar.start
    for token in tokens:
        allowed = grammar.allowed(state)
        assert (np.diff(allowed) > 0).all()
        assert token in allowed
        with pytest.raises(ValueError, match="cannot follow"):
            grammar.advance(state, 999_999)
        state = grammar.advance(state, token)
    assert grammar.allowed(state).size == 0
    with pytest.raises(ValueError, match="cannot follow"):
        grammar.run(answer_tokens(encode, "From 30 to 20."))


def test_forced_runs_finish_not_present(encode):
    grammar = a.AnswerGrammar.spans(encode, eos_id=EOS, num_frames=250)
    tokens = answer_tokens(encode, a.NOT_PRESENT)
    at = tokens.index(grammar.absent_token)
    assert grammar.run(tokens[:at]) == grammar.decision
    after = grammar.advance(grammar.decision, grammar.absent_token)
    assert grammar.forced_run(after) == tokens[at + 1 :]
    assert grammar.text(grammar.run(grammar.forced_run(after), after)) == a.NOT_PRESENT


def test_presence_is_the_first_token_for_word_tokenizers():
    grammar = a.AnswerGrammar.spans(llama_encode(), eos_id=EOS, num_frames=250)
    assert grammar.decision == grammar.start
    assert len(grammar.allowed(grammar.start)) == 2
    shared = a.AnswerGrammar.spans(character_encode(), eos_id=EOS, num_frames=250)
    assert shared.decision != shared.start
    assert shared.absent_token == ord("N")


def test_llama_token_ids_of_the_released_corpus():
    """Ids as measured with the released code: 'From 00 to 05.' after a space, 'Not Present'."""
    grammar = a.AnswerGrammar.spans(llama_encode(), eos_id=EOS, num_frames=250)
    assert grammar.text(grammar.run([419, 459, 511, 511, 292, 459, 511, 509, 478, EOS])) == (
        "From 00 to 05."
    )
    assert grammar.text(grammar.run([402, 441, EOS])) == a.NOT_PRESENT


def test_a_tokenizer_that_merges_words_is_refused():
    vocabulary = {}

    def whole_text(text):
        return [1] if text == CONTEXT else [1, vocabulary.setdefault(text, len(vocabulary) + 2)]

    with pytest.raises(ValueError, match="merges"):
        a.AnswerGrammar.spans(whole_text, eos_id=0, num_frames=5)


def test_top_answers_against_enumeration(encode):
    grammar = a.AnswerGrammar.spans(encode, eos_id=EOS, num_frames=12)
    table = {}

    def log_probs(state):
        rng = np.random.default_rng(len(table))
        return table.setdefault(state, np.log(rng.dirichlet(np.ones(len(grammar.allowed(state))))))

    scored = []
    for tokens, state in all_sequences(grammar):
        here, total = grammar.start, 0.0
        for token in tokens:
            if not grammar.is_forced(here):
                total += log_probs(here)[np.searchsorted(grammar.allowed(here), token)]
            here = grammar.advance(here, token)
        scored.append((total, grammar.text(state)))
    best = grammar.top_answers(log_probs, 5)
    assert [grammar.text(state) for state, _ in best] == [t for _, t in sorted(scored)[::-1][:5]]
    assert [p for _, p in best] == pytest.approx(sorted([s for s, _ in scored])[::-1][:5])
    assert len(grammar.top_answers(log_probs, 10_000)) == len(scored)


@pytest.mark.parametrize(
    ("text", "span", "kind"),
    [
        ("From 05 to 123.", (5, 123), "span"),
        ("from 0 to 249", (0, 249), "span"),
        ("10 and 20", (10, 20), "span"),
        ("1 to 2 to 3", (1, 2), "span"),
        ("Not Present", None, "not_present"),
        (" Not Present.", None, "not_present"),
        ("From 20 to 10.", None, "malformed"),
        ("From 12 to", None, "malformed"),
        ("1234 to 99999", None, "malformed"),
        ("", None, "malformed"),
    ],
)
def test_parse(text, span, kind):
    assert a.parse_answer(text, 250) == span
    assert a.answer_kind(text, 250) == kind


def test_format_and_parse_round_trip():
    assert a.format_span(5, 123) == "From 05 to 123."
    assert a.format_segments(5, 12) == "From 5 to 12."
    for span in [(0, 0), (5, 123), (249, 249)]:
        assert a.parse_answer(a.format_span(*span)) == span
        assert a.parse_answer(a.format_segments(*span)) == span


def test_parse_yes_no_and_released_readings():
    assert [a.parse_yes_no(t) for t in (" Yes.", "no", "maybe")] == [True, False, None]
    assert a.parse_released_span("From 20 to 10.") == (20, 10)
    assert a.parse_first_integer("In video 2") == 2
    assert a.parse_first_integer("Not Present") is None
