"""The segment engine against the plain reference, one question at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_assets import BASE
from tiny_runs import WINDOW_S, D, TinyFilm, ask, features_of, sentences, tiny_llm, windows

from revisionllm.engine.reference import answer_segments
from revisionllm.engine.segments import SegmentEngine, answer_spans, segment_grammar
from revisionllm.grounding.answers import NOT_PRESENT, Span, format_segments
from revisionllm.grounding.levels import Question
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.prompts import encode_answer
from revisionllm.records.films import Query

FRAMES = 6
TOLERANCE = 1e-4


def long_run(seed=0, digits=0, **changes) -> GroundingModel:
    """A random run with a small clip adapter."""
    llm = tiny_llm(seed, hidden_size=64, intermediate_size=96)
    options = {"num_heads": 2, "ffn_dim": 24, "digit_position_segments": digits}
    adapter = AdapterConfig("clip", D, 64, "segment", options)
    torch.manual_seed(seed + 2)
    module = build_adapter(adapter).eval()
    torch.nn.init.normal_(module.mm_projector.weight, std=1.0)
    settings = {"stage": "long", "question": "video"} | changes
    config = RunConfig(adapter=adapter, frames_per_window=FRAMES, window_s=WINDOW_S, **settings)
    return GroundingModel(llm, module, load_tokenizer(str(BASE)), config)


def frames_of(window):
    return features_of(window, FRAMES)


def words_of(count):
    rng = np.random.default_rng(11)
    return [rng.standard_normal((rng.integers(1, 6), D)).astype(np.float32) for _ in range(count)]


def check(model, questions, texts, words, answers):
    for question, answer in zip(questions, answers, strict=True):
        grammar = segment_grammar(model, question.num_positions)
        text, tokens, presence, entropy = answer_segments(
            model,
            grammar,
            np.stack([frames_of(w) for w in question.windows]),
            words[question.query],
            texts[question.query],
            repeat=question.repeat,
        )
        assert answer.answer == text
        assert answer.presence == pytest.approx(presence, abs=TOLERANCE)
        assert answer.entropy == pytest.approx(entropy, abs=TOLERANCE)
        span = grammar.span(grammar.run(tokens))
        assert list(answer.spans) == answer_spans(question, text, span, model.config)


def zoomed_questions(num_queries, film):
    """All segments by fours, and two of them shown twice in another order, for every query."""
    asked = []
    for query in range(num_queries):
        asked += [Question(query, tuple(film[i : i + 4])) for i in range(0, len(film), 4)]
        asked.append(Question(query, (film[5], film[1]), repeat=2))
    return asked


@pytest.mark.parametrize("budget_mb", [1, None])
def test_long_answers_equal_the_reference(budget_mb):
    model = long_run()
    texts, words, film = sentences(7), words_of(7), windows(10)
    questions = zoomed_questions(7, film)
    engine = SegmentEngine(model, budget_mb=budget_mb)
    answers = ask(engine, questions, texts, frames_of, words=words)
    check(model, questions, texts, words, answers)
    assert {answer.answer == NOT_PRESENT for answer in answers} == {True, False}
    assert engine.cost.segments == 7 * 10


def test_numbered_segments_count_in_the_order_of_the_prompt():
    """The same segments at other places of a prompt, and repeated ones, get other numbers."""
    model = long_run(digits=20)
    texts, words, film = sentences(3), words_of(3), windows(10)
    questions = zoomed_questions(3, film)
    check(
        model,
        questions,
        texts,
        words,
        ask(SegmentEngine(model), questions, texts, frames_of, words=words),
    )


def test_a_second_level_encodes_nothing_again():
    model = long_run()
    texts, words, film = sentences(3), words_of(3), windows(8)
    engine = SegmentEngine(model)
    first = [Question(q, tuple(film)) for q in range(3)]
    second = [Question(q, tuple(film[i : i + 2]), repeat=2) for q in range(3) for i in (0, 2, 4)]
    answers = [ask(engine, qs, texts, frames_of, words=words, film="a") for qs in (first, second)]
    assert engine.cost.segments == 3 * 8
    check(model, first + second, texts, words, answers[0] + answers[1])
    ask(engine, first, texts, frames_of, words=words, film="b")
    assert engine.cost.segments == 2 * 3 * 8


@pytest.mark.parametrize(
    "changes",
    [{"stage": "sparse", "question": "yes_no"}, {"stage": "sparse", "question": "frames"}],
)
def test_sparse_answers_equal_the_reference(changes):
    model = long_run(3, **changes)
    texts, words, film = sentences(5), words_of(5), windows(4)
    questions = [Question(q, (w,)) for q in range(5) for w in film]
    answers = ask(SegmentEngine(model), questions, texts, frames_of, words=words)
    check(model, questions, texts, words, answers)
    assert len({answer.answer for answer in answers}) > 1


def test_candidates_are_the_most_probable_answers():
    model = long_run()
    texts, words, film = sentences(4), words_of(4), windows(5)
    questions = [Question(query, tuple(film)) for query in range(4)]
    plain = ask(SegmentEngine(model, explore=0.0), questions, texts, frames_of, words=words)
    engine = SegmentEngine(model, explore=0.0, num_candidates=4)
    answers = ask(engine, questions, texts, frames_of, words=words)
    silent = ask(SegmentEngine(model), questions, texts, frames_of, words=words)
    assert any(answer.answer == NOT_PRESENT for answer in silent)
    for question, answer, before, quiet in zip(questions, answers, plain, silent, strict=True):
        assert (answer.answer, answer.entropy) == (quiet.answer, pytest.approx(quiet.entropy))
        log_probs = {
            tuple(answer_spans(question, text, span, model.config)): log_prob
            for text, span, log_prob in every_answer(model, question, texts, words)
        }
        best = sorted(log_probs, key=log_probs.get, reverse=True)[:4]
        own = tuple(before.spans)
        wanted = [own, *(spans for spans in best if spans != own)]
        listed = [(s.start_s, s.end_s) for s in answer.spans]
        assert listed == [(s.start_s, s.end_s) for spans in wanted for s in spans]
        base = log_probs[own] if own in best else log_probs[best[0]]
        weights = [1.0, *(min(1.0, np.exp(log_probs[spans] - base)) for spans in wanted[1:])]
        assert [s.score for s in answer.spans] == pytest.approx(weights, abs=1e-4)


def test_first_numbers_are_sums_over_all_answers():
    model = long_run()
    texts, words, film = sentences(3), words_of(3), windows(12)
    questions = [Question(query, tuple(film)) for query in range(3)]
    questions += [Question(query, tuple(film[2:7])) for query in range(3)]
    queries = [Query(str(i), t, words=w) for i, (t, w) in enumerate(zip(texts, words, strict=True))]
    engine = SegmentEngine(model)
    found = engine.first_numbers(questions, TinyFilm(frames_of), queries)
    for question, (probs, entropy) in zip(questions, found, strict=True):
        wanted = np.zeros(question.num_positions)
        for _, span, log_prob in every_answer(model, question, texts, words):
            wanted[span[0]] += np.exp(log_prob)
        np.testing.assert_allclose(probs, wanted, atol=1e-5)
        (answer,) = ask(SegmentEngine(model), [question], texts, frames_of, words=words)
        assert probs.sum() == pytest.approx(answer.presence, abs=1e-5)
        assert 0 <= entropy <= np.log(len(probs) + 1)
    with pytest.raises(ValueError, match="no segments"):
        yes_no = SegmentEngine(long_run(stage="sparse", question="yes_no"))
        yes_no.first_numbers(questions, TinyFilm(frames_of), queries)


@torch.no_grad()
def every_answer(model, question, texts, words):
    """(text, span, log-probability given that it is there) of all spans, by plain forwards."""
    grammar = segment_grammar(model, question.num_positions)
    frames = torch.from_numpy(np.stack([frames_of(w) for w in question.windows]))[None]
    visual = model.embed_frames(frames, torch.from_numpy(words[question.query])[None])[0]
    embed = model.llm.get_input_embeddings()
    before, after = model.prompt_pieces(model.question(texts[question.query]))
    prompt = torch.cat([embed(torch.tensor(before)), visual, embed(torch.tensor(after))])
    for first in range(question.num_positions):
        for last in range(first, question.num_positions):
            text = format_segments(first, last)
            tokens = [*encode_answer(model.tokenizer, text), model.tokenizer.eos_token_id]
            states = torch.cat([prompt, embed(torch.tensor(tokens))])[None]
            logits = model.llm(inputs_embeds=states).logits[0, len(prompt) - 1 :]
            total, state, decided = 0.0, grammar.start, False
            for token, row in zip(tokens, logits, strict=False):
                decided = decided or state == grammar.decision
                allowed = grammar.allowed(state).tolist()
                if decided and len(allowed) > 1:
                    total += float(row[allowed].log_softmax(0)[allowed.index(token)])
                state = grammar.advance(state, token)
            yield text, grammar.span(state), total


def test_the_sentence_reaches_an_adapter_that_reads_it():
    config = RunConfig(adapter=AdapterConfig("clip", D, 64, "segment", {"reads_sentence": True}))
    words, feature = words_of(1)[0], np.arange(D, dtype=np.float32)
    rows = Query("q", "a", words=words, feature=feature).rows_for(config)
    np.testing.assert_array_equal(rows, np.vstack([words, feature]))
    plain = Query("q", "a", words=words, feature=feature).rows_for(RunConfig())
    np.testing.assert_array_equal(plain, words)
    with pytest.raises(ValueError, match="reads sentence features"):
        Query("q", "a", words=words).rows_for(config)


def test_what_answers_mean_in_seconds():
    film = windows(4)
    shown = Question(0, (film[2], film[0], film[1]), repeat=2)
    config = RunConfig(stage="long", question="video")
    spans = answer_spans(shown, "", Span(0, 1), config)
    assert [(s.start_s, s.end_s) for s in spans] == [(12.0, 24.0)]
    exclusive = RunConfig(stage="long", question="video", answer_end="exclusive")
    assert answer_spans(shown, "", Span(0, 2), exclusive) == spans
    last = answer_spans(shown, "", Span(6, 6), exclusive)
    assert [(s.start_s, s.end_s) for s in last] == [(6.0, 18.0)]
    yes_no = RunConfig(stage="sparse", question="yes_no")
    one = Question(0, (film[3],))
    assert [(s.start_s, s.end_s) for s in answer_spans(one, "yes", None, yes_no)] == [(18.0, 30.0)]
    assert answer_spans(one, "no", None, yes_no) == []
