"""How a memory budget is shared out, half precision, and how planned work grows."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from tiny_runs import FRAMES, ask, features_of, sentences, tiny_run, windows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revisionllm.engine.choices import grammar_tokens
from revisionllm.engine.dense import DenseEngine, shared_tokens, span_grammar
from revisionllm.engine.prefixes import Budget, token_bytes
from revisionllm.grounding.answers import NOT_PRESENT, answer_kind
from revisionllm.grounding.levels import Question
from revisionllm.search.cost import count_plan
from revisionllm.search.plans import llm_shape, search_plans


def test_token_bytes_and_shares():
    llm = tiny_run().llm  # 2 layers, 2 key-value heads of 16
    assert token_bytes(llm) == 2 * 2 * 2 * 16 * 4
    budget = Budget.of(llm, 8)
    assert budget.total == 8 * 2**20
    held = budget.prefixes_per_batch(100) * 100 * budget.token
    assert held <= budget.total / 4
    assert budget.question_tokens() * budget.token <= budget.total / 8
    assert Budget.of(llm, 0).prefixes_per_batch(10**6) == 1
    assert Budget.of(llm, None).total >= 256 * 2**20


def test_keys_and_values_stay_within_the_budget(monkeypatch):
    """Prefix batches alive at any time, counted through a small budget."""
    from revisionllm.engine import dense
    from revisionllm.engine.prefixes import run_prefixes

    model, batches, most = tiny_run(), [], []

    def counted(*args):
        batch = run_prefixes(*args)
        batches.append(weakref.ref(batch))
        alive = [found for found in (ref() for ref in batches) if found is not None]
        most.append(sum(t.nbytes for b in alive for pair in b.layers for t in pair))
        return batch

    monkeypatch.setattr(dense, "run_prefixes", counted)
    engine = DenseEngine(model, budget_mb=2)
    questions = [Question(q, (w,)) for q in range(3) for w in windows(120)]
    ask(engine, questions, sentences(3), features_of, film="a")
    assert len(most) > 4
    assert max(most) <= 2 * 2**20


class LiveKeysAndValues(TorchDispatchMode):
    """Counts the bytes of keys and values [.., heads, .., dim] that are alive, wherever they are.

    Attributes:
        most: the most bytes at any time.
    """

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim, self.alive, self.most = heads, dim, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if torch.is_tensor(t) and t.ndim == 4 and t.shape[1::2] == (self.heads, self.dim):
                storage = t.untyped_storage()
                self.alive[storage.data_ptr()] = weakref.ref(t), storage.nbytes()
        self.alive = {place: held for place, held in self.alive.items() if held[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_open_answers_stay_within_the_budget(num_candidates):
    """Most answers of the random model name something: their own tokens are what fills memory."""
    model = tiny_run()
    engine = DenseEngine(model, budget_mb=2, num_candidates=num_candidates)
    questions = [Question(q, (w,)) for q in range(60) for w in windows(20)]
    with LiveKeysAndValues(heads=2, dim=16) as live:
        ask(engine, questions, sentences(60), features_of, film="a")
    assert 2**20 / 2 < live.most <= 2 * 2**20


def test_shared_tokens_leave_one_to_each():
    assert shared_tokens([[1, 2, 3], [1, 2, 4]]) == [1, 2]
    assert shared_tokens([[1, 2], [1, 2, 3]]) == [1]
    assert shared_tokens([[5, 6]]) == [5]


def test_the_vocabulary_holds_every_answers_tokens():
    grammar = span_grammar(tiny_run())
    rng = np.random.default_rng(0)
    known = set(grammar_tokens(grammar).tolist())
    for _ in range(200):
        state = grammar.start
        while not grammar.is_final(state):
            token = int(rng.choice(grammar.allowed(state)))
            assert token in known
            state = grammar.advance(state, token)


def test_half_precision_gives_valid_answers():
    model = tiny_run(1)
    model.llm.to(torch.bfloat16)
    model.projector.to(torch.bfloat16)
    questions = [Question(q, (w,)) for q in range(4) for w in windows(4)]
    for answer in ask(DenseEngine(model, explore=0.0), questions, sentences(4), features_of):
        assert answer_kind(answer.answer, FRAMES) == (
            "not_present" if answer.answer == NOT_PRESENT else "span"
        )
        assert 0 <= answer.presence <= 1 and np.isfinite(answer.entropy)
        assert len(answer.spans) == 1


def test_planned_work_grows_more_slowly_than_the_film():
    model = tiny_run()
    minutes = np.array([10.0, 60.0, 480.0, 1440.0])
    work = []
    for duration_s in minutes * 60:
        plan = search_plans(model.config, duration_s)[-1]
        assert plan.name == "cosine > dense"
        cost = count_plan(
            plan, llm_shape(model), duration_s=duration_s, num_queries=1, feature_fps=2.0
        )
        work.append(cost.total_flops - cost.flops["cosine"])
    power = np.polyfit(np.log(minutes), np.log(work), 1)[0]
    assert power == pytest.approx(0.5, abs=0.1)
