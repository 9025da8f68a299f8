"""Training questions of demo windows: spans, negatives, packing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.demo.training import dense_data
from revisionllm.demo.training.dense_data import Packer, WindowSampler, load_film
from revisionllm.demo.training.dense_readout import FrameReadout
from revisionllm.demo.training.dense_training import write_tokenizer
from revisionllm.demo.training.frame_training import teach_frames
from revisionllm.demo.world.language import differences, is_true_of
from revisionllm.demo.world.plans import HELD_OUT_PAIRS
from revisionllm.grounding.answers import NOT_PRESENT, parse_answer
from revisionllm.grounding.windows import WindowClock
from revisionllm.model.prompts import encode_answer, prompt_pieces


@pytest.fixture(scope="module")
def film():
    num_features = 1500  # every third frame of 15 minutes
    features = np.random.default_rng(0).normal(size=(num_features, 16)).astype(np.float16)
    return load_film(4, 900.0, "train", features)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 700, 0)
    return AutoTokenizer.from_pretrained(folder)


def test_present_questions_name_frames_that_show_the_event(film):
    rng = np.random.default_rng(1)
    present = 0
    for first in (0, 100, 777, 1400):
        start_s = film.window_start_s(first)
        for question in WindowSampler(30, 0).window(film, first, rng).questions:
            if question.span is None:
                assert question.answer == NOT_PRESENT
                continue
            present += 1
            assert parse_answer(question.answer) == question.span
            span = WindowClock(60.0, 100).span(*question.span, start_s)
            best = min(
                abs(span[0] - max(f.start_s, start_s)) + abs(span[1] - min(f.end_s, start_s + 60))
                for f in film.plan.facts
            )
            assert best <= 1.2 + 1e-6  # each end within one frame of 0.6 s
    assert present > 15


def test_negative_questions_are_true_of_nothing_in_the_window(film):
    """Absent questions are compared with every wording-free fact that overlaps the window."""
    rng = np.random.default_rng(2)
    sampler = WindowSampler(12, 0)
    for first in (0, 300, 900):
        start_s = film.window_start_s(first)
        window_s = (start_s, start_s + 60.0)
        shown = {
            f.event_id for f in film.plan.facts if f.start_s < window_s[1] and f.end_s > window_s[0]
        }
        kinds = (sampler._confusable, sampler._conjoined, sampler._swapped)
        for draw in (*kinds, sampler._near_miss, sampler._from_elsewhere):
            drawn = [draw(film, window_s, rng) for _ in range(40)]
            assert sum(query is not None for query in drawn) > 5
            for query in drawn:
                if query:
                    assert not film.index.events(query.description) & shown
                    assert query.description.actor[1:] not in HELD_OUT_PAIRS


def test_confusable_sentences_differ_in_one_attribute_from_what_the_window_shows(film):
    rng = np.random.default_rng(8)
    facts = {f.event_id: f for f in film.plan.facts}
    differing = set()
    for start_s in np.tile(np.arange(0.0, 840.0, 60.0), 6):
        window_s = (start_s, start_s + 60.0)
        query = WindowSampler(12, 0)._confusable(film, window_s, rng)
        if query:
            told = _attributes(facts[query.event_id])
            apart = [
                {name for name, value in _attributes(f).items() if told[name] != value}
                for f in film.facts_in(window_s)
            ]
            assert min(len(names) for names in apart) == 1
            differing |= min(apart, key=len)
    assert {"action", "place"} <= differing


def test_conjoined_sentences_take_an_attribute_from_somebody_else_in_the_shot(film):
    """Nothing in them is unseen; only what belongs together is not what they say."""
    rng = np.random.default_rng(10)
    taken = set()
    for start_s in range(0, 840, 60):
        window_s = (float(start_s), start_s + 60.0)
        for _ in range(60):
            query = WindowSampler(12, 0)._conjoined(film, window_s, rng)
            if query:
                found = [
                    change
                    for fact in film.facts_in(window_s)
                    for change in _taken_from_the_shot(query.description, fact, film.plan)
                ]
                assert found, query.sentence
                taken.update(found)
    assert taken == {
        *(("actor", column) for column in range(3)),
        *(("other", column) for column in range(3)),
    }


def _taken_from_the_shot(description, fact, plan):
    """(who, column) if that alone is untrue of the fact, and another in its shot has it."""
    shot = plan.shot_at((fact.start_s + fact.end_s) / 2)
    tuples = [(a.size, a.colour, a.shape) for a in shot.actors]
    for who, true_one in (("actor", fact.actor), ("other", fact.other)):
        named = getattr(description, who)
        for column in range(3) if named and true_one else ():
            value = named[column]
            whole = (true_one.size, true_one.colour, true_one.shape)
            if value in (None, whole[column]) or value not in [t[column] for t in tuples]:
                continue
            mended = (*named[:column], whole[column], *named[column + 1 :])
            if is_true_of(replace(description, **{who: mended}), fact):
                yield who, column


def _attributes(fact) -> dict:
    """All that a sentence can say of a fact, by name: no size of what grows or shrinks."""
    things = {"actor": fact.actor, "other": fact.other}
    parts = {
        f"{who} {part}": getattr(thing, part, None)
        for who, thing in things.items()
        for part in ("size", "colour", "shape")
    }
    if fact.action in ("grow", "shrink"):
        parts["actor size"] = None
    return {"action": fact.action, "direction": fact.direction, "place": fact.place} | parts


def test_near_misses_change_directions_and_sizes_too(film):
    """Descriptions seldom name them: near misses add them, or the LLM never learns to mind them."""
    rng = np.random.default_rng(9)
    window_s = (300.0, 360.0)
    sampler, kinds = WindowSampler(12, 0), []
    for _ in range(300):
        query = sampler._near_miss(film, window_s, rng)
        if query:
            kinds += [
                tuple(differences(query.description, fact)) for fact in film.facts_in(window_s)
            ]
    assert kinds.count(("direction",)) > 5
    assert kinds.count(("actor",)) > 5


def test_without_negatives_nothing_is_absent(film):
    window = WindowSampler(20, 2, negatives=False).window(film, 300, np.random.default_rng(5))
    assert len(window.questions) == 20
    assert all(question.answer != NOT_PRESENT for question in window.questions)
    assert sum(question.span is not None for question in window.questions) > 5


def test_training_frames_are_those_inference_looks_at():
    """Training takes every third frame from a phase; the same seconds as the window arithmetic."""
    for seed in range(3):
        film = load_film(seed, 600.0, "train", np.zeros((1000, 4), np.float16))
        for first in (0, 17, 500):
            indices = WindowClock(60.0, 100, 5.0).feature_indices(film.window_start_s(first), 3000)
            expected = film.phase + 3 * (first + np.arange(100))
            np.testing.assert_array_equal(indices, expected)


def test_packed_loss_equals_separate_questions(film, tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    llm = LlamaForCausalLM(config).eval()
    visual = torch.nn.Linear(16, 32)
    packer = Packer(tokenizer)
    window = WindowSampler(6, 2).window(film, 200, np.random.default_rng(3))
    batch = packer.batch([window])
    packed = packed_logits(llm, visual, packer, batch)
    losses, weight = 0.0, 0
    for question in window.questions:
        before, after = prompt_pieces(tokenizer, question.text)
        answer = [*encode_answer(tokenizer, question.answer), tokenizer.eos_token_id]
        embed = llm.get_input_embeddings()
        frames = visual(torch.from_numpy(window.features.astype(np.float32)))
        embeds = torch.cat(
            [embed(torch.tensor(before)), frames, embed(torch.tensor(after + answer))]
        )
        logits = llm(inputs_embeds=embeds[None]).logits[0, -len(answer) - 1 : -1]
        target = torch.tensor(answer)
        losses += torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        weight += len(answer)
    torch.testing.assert_close(packed, losses / weight, atol=1e-5, rtol=1e-5)


def packed_logits(llm, visual, packer, batch) -> torch.Tensor:
    """Mean loss of a packed batch, with the training's mask and positions."""
    from types import SimpleNamespace

    from revisionllm.demo.training.dense_losses import Pointer, forward

    model = SimpleNamespace(llm=llm, projector=visual)
    return forward(model, Pointer(32), batch, packer, 1).answer_loss


def test_window_constants_agree():
    assert pytest.approx(0.6) == dense_data.FRAME_S
    assert pytest.approx(dense_data.FRAME_S) == dense_data.FEATURE_STEP / dense_data.FEATURE_FPS


def test_adapter_learns_by_itself_what_frames_show(film, tmp_path):
    """Features that tell what is shown make the read-out of the tokens find it."""
    from revisionllm.model.projector import FrameProjector

    torch.manual_seed(0)
    told = film.table.reshape(len(film.table), -1)
    shown = dense_data.TrainingFilm(film.plan, film.index, told.astype(np.float16), film.phase)
    projector, readout = FrameProjector(told.shape[1], 64), FrameReadout(64)
    features, table = (torch.from_numpy(x[:400]) for x in (shown.features, shown.table))
    before = projector(features.float()).detach()
    loss = readout.frame_loss(before, table)[0].item()
    options = {"steps": 150, "windows": 4, "lr": 1e-2, "seed": 0}
    options |= {"state_path": tmp_path / "frames_state.pt", "save_every": 1000}
    teach_frames(projector, readout, [shown], **options)
    after = projector(features.float()).detach()
    assert readout.frame_loss(after, table)[0].item() < 0.5 * loss
    moved = (after - before).square().mean() / before.var()
    assert moved > 0.5


def test_teaching_the_adapter_goes_on_where_it_was(film, tmp_path, monkeypatch):
    """Stopped between two states, it ends with the weights of a run that was not."""
    from revisionllm.demo.training.loop import Loop
    from revisionllm.model.projector import FrameProjector

    take = Loop.take

    def taught(name: str, stop_at: int = 0):
        torch.manual_seed(0)
        projector, readout = FrameProjector(film.features.shape[1], 16), FrameReadout(16)
        calls = []

        def stopping(loop, *args):
            calls.append(args)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            take(loop, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "take", stopping)
            options = {"steps": 9, "windows": 2, "lr": 1e-2, "seed": 0}
            path = tmp_path / f"{name}.pt"
            teach_frames(projector, readout, [film], **options, state_path=path, save_every=2)
        return projector.state_dict()

    whole = taught("whole")
    with pytest.raises(KeyboardInterrupt):
        taught("pieces", stop_at=5)
    assert torch.load(tmp_path / "pieces.pt", weights_only=True)["step"] == 4
    for name, tensor in taught("pieces").items():
        assert tensor.equal(whole[name]), name
