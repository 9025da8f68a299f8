"""The dense engine against the plain reference: one query and one window at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import FRAMES, WINDOW_S, ask, features_of, sentences, tiny_run, windows

from revisionllm.engine.dense import DenseEngine, span_grammar
from revisionllm.engine.reference import answer_one
from revisionllm.grounding.answers import NOT_PRESENT, parse_answer
from revisionllm.grounding.levels import Question
from revisionllm.grounding.windows import WindowClock

TOLERANCE = 1e-4


def ask_all(num_queries, film):
    return [Question(q, (w,)) for q in range(num_queries) for w in film]


def check(model, engine, questions, texts, answers, references=None):
    """Every answer equals the reference's."""
    grammar = span_grammar(model)
    assert len(answers) == len(questions)
    references = {} if references is None else references
    for question, answer in zip(questions, answers, strict=True):
        key = (question.query, question.window)
        if key not in references:
            references[key] = answer_one(
                model, grammar, features_of(question.window), texts[question.query]
            )
        text, tokens, presence, entropy = references[key]
        assert answer.answer == text
        assert answer.presence == pytest.approx(presence, abs=TOLERANCE)
        assert answer.entropy == pytest.approx(entropy, abs=TOLERANCE)
        assert grammar.text(grammar.run(tokens)) == text
        window = question.window
        assert (answer.index, answer.start_s, answer.end_s) == (
            window.index,
            window.start_s,
            window.end_s,
        )


@pytest.fixture(scope="module")
def model():
    return tiny_run()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_answers_equal_the_reference(heads):
    model = tiny_run(1, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    texts, film = sentences(6), windows(5)
    questions = ask_all(6, film)
    engine = DenseEngine(model, explore=1.0)
    answers = ask(engine, questions, texts, features_of)
    check(model, engine, questions, texts, answers)
    kinds = {answer.answer == NOT_PRESENT for answer in answers}
    assert kinds == {True, False}, "a test of one kind of answer tests little"


def test_spans_are_the_answers_seconds(model):
    texts, film = sentences(4), windows(4)
    questions = ask_all(4, film)
    for answer in ask(DenseEngine(model, explore=1.0), questions, texts, features_of):
        span = parse_answer(answer.answer, FRAMES)
        if span is None:
            assert list(answer.spans) == []
            continue
        wanted = WindowClock(WINDOW_S, FRAMES).span(*span, answer.start_s)
        assert (answer.spans[0].start_s, answer.spans[0].end_s) == pytest.approx(wanted)
        assert answer.spans[0].score == 1.0


@pytest.mark.parametrize("num_queries", [1, 64])
def test_one_and_many_queries(model, num_queries):
    texts, film = sentences(num_queries, seed=3), windows(2)
    questions = ask_all(num_queries, film)
    engine = DenseEngine(model, explore=1.0)
    check(model, engine, questions, texts, ask(engine, questions, texts, features_of))


def test_any_batching_and_ragged_windows(model):
    """A tenth of all pairs, in random order, under several budgets and in several calls."""
    texts, film = sentences(30, seed=4), windows(9)
    rng = np.random.default_rng(5)
    every = ask_all(30, film)
    questions = [every[i] for i in rng.permutation(len(every))[:40]]
    references = {}
    for budget_mb in (1, 3, 64, 1024):
        engine = DenseEngine(model, budget_mb=budget_mb, explore=1.0)
        answers = ask(engine, questions[:25], texts, features_of)
        answers += ask(engine, questions[25:], texts, features_of)
        check(model, engine, questions, texts, answers, references)


def test_repeated_questions_get_the_same_answer(model):
    texts, film = sentences(2), windows(2)
    questions = ask_all(2, film) * 3
    engine = DenseEngine(model, explore=1.0)
    check(model, engine, questions, texts, ask(engine, questions, texts, features_of))


def test_explored_windows_stay_not_present_but_name_a_span(model):
    texts, film = sentences(6), windows(5)
    questions = ask_all(6, film)
    plain = ask(DenseEngine(model, explore=1.0), questions, texts, features_of)
    explored = ask(DenseEngine(model, explore=0.0), questions, texts, features_of)
    for before, after in zip(plain, explored, strict=True):
        assert after.answer == before.answer
        assert after.presence == pytest.approx(before.presence, abs=1e-6)
        assert after.entropy == pytest.approx(before.entropy, abs=1e-6)
        assert len(after.spans) == 1
        assert before.start_s <= after.spans[0].start_s < after.spans[0].end_s <= before.end_s


def test_an_explored_span_is_the_greedy_one_without_not_present(model):
    from revisionllm.grounding.answers import AnswerGrammar
    from revisionllm.model.prompts import encode_answer

    always = AnswerGrammar.spans(
        lambda text: encode_answer(model.tokenizer, text),
        eos_id=model.tokenizer.eos_token_id,
        num_frames=FRAMES,
        not_present=False,
        context="",
    )
    texts, film = sentences(4), windows(3)
    questions = ask_all(4, film)
    answers = ask(DenseEngine(model, explore=0.0), questions, texts, features_of)
    for question, answer in zip(questions, answers, strict=True):
        text = answer_one(model, always, features_of(question.window), texts[question.query])[0]
        wanted = WindowClock(WINDOW_S, FRAMES).span(*parse_answer(text), answer.start_s)
        assert (answer.spans[0].start_s, answer.spans[0].end_s) == pytest.approx(wanted)


def test_no_questions(model):
    assert ask(DenseEngine(model), [], [], features_of) == []


def test_the_model_is_left_as_it_was(model):
    ids = torch.tensor([[1, 5, 6, 7]])
    before = model.llm(input_ids=ids).logits
    implementation = model.llm.config._attn_implementation
    ask(DenseEngine(model), ask_all(1, windows(1)), sentences(1), features_of)
    assert model.llm.config._attn_implementation == implementation
    assert torch.equal(model.llm(input_ids=ids).logits, before)


def test_prefixes_are_kept_for_the_same_film(model):
    texts, film = sentences(8), windows(4)
    questions = ask_all(8, film)
    engine = DenseEngine(model, explore=1.0)
    answers = []
    for query in range(8):  # one query per call, as a viewer asks them
        mine = [q for q in questions if q.query == query]
        answers += ask(engine, mine, texts, features_of, film="film")
    check(model, engine, questions, texts, answers)
    assert engine.cost.prefixes == 4
    ask(engine, questions, texts, features_of, film="another")
    assert engine.cost.prefixes == 8
    small = DenseEngine(model, budget_mb=1)
    for _ in range(2):
        ask(small, ask_all(1, windows(40)), texts, features_of, film="film")
    assert 40 < small.cost.prefixes < 80, "a small budget keeps only a few"


def every_answer(model, grammar, features, sentence):
    """Probability of every complete answer, token by token, the naive way."""
    from revisionllm.grounding.scores import log_softmax

    before, after = model.prompt_pieces(model.question(sentence))
    embed = model.llm.get_input_embeddings()
    visual = model.embed_frames(torch.from_numpy(features)[None])

    @torch.inference_mode()
    def log_probs(tokens, state):
        ids = torch.tensor([after + tokens])
        embeds = torch.cat([embed(torch.tensor([before])), visual, embed(ids)], 1)
        logits = model.llm(inputs_embeds=embeds).logits[0, -1].numpy()
        return log_softmax(logits, grammar.allowed(state))

    found, waiting = {}, [(grammar.start, [], 0.0)]
    while waiting:
        state, tokens, total = waiting.pop()
        if grammar.is_final(state):
            found[grammar.text(state)] = total
            continue
        allowed = grammar.allowed(state).tolist()
        steps = [0.0] if len(allowed) == 1 else log_probs(tokens, state)
        for token, step in zip(allowed, steps, strict=True):
            if state != grammar.decision or token != grammar.absent_token:
                waiting.append((grammar.advance(state, token), [*tokens, token], total + step))
    return found


def test_candidates_are_the_most_probable_spans():
    model = tiny_run(2, frames=12)
    texts, film = sentences(3), windows(2)
    questions = ask_all(3, film)

    def features(window):
        return features_of(window, 12)

    engine = DenseEngine(model, explore=0.0, num_candidates=4)
    plain = ask(DenseEngine(model, explore=0.0), questions, texts, features)
    answers = ask(engine, questions, texts, features)
    for question, answer, before in zip(questions, answers, plain, strict=True):
        assert (answer.answer, answer.entropy) == (before.answer, pytest.approx(before.entropy))
        found = every_answer(
            model, span_grammar(model), features(question.window), texts[question.query]
        )
        assert len(found) == 12 * 13 // 2
        log_probs = {seconds_of(answer, text): p for text, p in found.items()}
        best = sorted(log_probs, key=lambda seconds: -log_probs[seconds])[:4]
        listed = [(s.start_s, s.end_s) for s in answer.spans]
        own = (before.spans[0].start_s, before.spans[0].end_s)
        assert listed == [own] + [seconds for seconds in best if seconds != own]
        base = log_probs[own] if own in best else log_probs[best[0]]
        weights = [1.0] + [min(1.0, np.exp(log_probs[s] - base)) for s in listed[1:]]
        assert [s.score for s in answer.spans] == pytest.approx(weights, abs=1e-4)


def seconds_of(answer, text):
    return WindowClock(WINDOW_S, 12).span(*parse_answer(text), answer.start_s)


def test_refined_spans_end_at_the_mean_of_their_likely_neighbours():
    plain, refined = tiny_run(), tiny_run()
    refined.config.span_refinement = "expected"
    questions, texts = ask_all(4, windows(3)), sentences(4)
    listed = ask(DenseEngine(plain, explore=0.0, num_candidates=16), questions, texts)
    answers = ask(DenseEngine(refined, explore=0.0), questions, texts)
    frame_s, moved = WINDOW_S / FRAMES, 0
    for known, answer in zip(listed, answers, strict=True):
        assert answer.answer == known.answer and len(answer.spans) == min(1, len(known.spans))
        if not answer.spans:
            continue
        own = known.spans[0]
        near = [
            (s.start_s, s.end_s, s.score)
            for s in known.spans
            if max(abs(s.start_s - own.start_s), abs(s.end_s - own.end_s)) <= frame_s + 1e-9
        ]
        total = sum(score for *_, score in near)
        wanted = [sum(span[i] * span[2] for span in near) / total for i in (0, 1)]
        assert [answer.spans[0].start_s, answer.spans[0].end_s] == pytest.approx(wanted)
        moved += wanted[0] != own.start_s
    assert moved
