"""The published models' numbers, end to end: embeddings, logits, loss, greedy tokens."""

from __future__ import annotations

import pytest
import torch
from model_assets import (
    ASSETS,
    PROJECTOR,
    dense_images,
    numbers,
    query,
    released,
    segment_images,
    texts,
)

LOGITS = 5e-5  # same order of operations in float32
EMBEDS = 1e-5
LOSS = 1e-5

CASES = {
    "parity_dense_base": ("ckpt_base", {}, dense_images, None),
    "parity_dense_lora": ("ckpt_dense", {}, dense_images, None),
    "parity_sparse_cls_nonhier": (
        "ckpt_sparse",
        {"stage": "sparse"},
        lambda: dense_images()[:, :100],
        3,
    ),
    "parity_stage2_cls_33": ("ckpt_stage2_cls", {"stage": "long"}, lambda: segment_images(33), 1),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    """Expected numbers, model, images, query arguments, answers."""
    checkpoint, overrides, images, batch = CASES[request.param]
    model = released(checkpoint, **overrides)
    words = {} if batch is None else query(batch)
    with torch.no_grad():  # 33 segments take seconds: embed once for all tests of this case
        tokens = model.embed_frames(images(), **words)
    model.embed_frames = lambda *args, **kwargs: tokens
    return numbers(request.param), model, images(), words, texts(request.param, "answers")


@torch.no_grad()
def test_prompt_embeddings_and_logits(case):
    expected, model, images, words, _ = case
    batch = model.splice_prompts(expected["input_ids"], images, **words)
    logits = model(expected["input_ids"], images, **words).logits
    wanted = expected["logits"] if "logits" in expected else expected["logits_last40"]

    torch.testing.assert_close(batch.inputs_embeds, expected["inputs_embeds"], atol=EMBEDS, rtol=0)
    torch.testing.assert_close(logits[:, -wanted.shape[1] :], wanted, atol=LOGITS, rtol=0)


@torch.no_grad()
def test_training_batch(case):
    expected, model, images, words, _ = case
    words = {**words, "attention_mask": expected["train_attention_mask_in"]}
    ids, labels = expected["train_input_ids"], expected["train_labels_in"]
    batch = model.splice_prompts(ids, images, labels=labels, **words)
    loss = model(ids, images, labels=labels, **words).loss
    logits = model(ids, images, **words).logits

    mask = expected["train_attention_mask"]
    assert torch.equal(batch.attention_mask, mask)
    assert torch.equal(batch.labels, expected["train_labels"])
    torch.testing.assert_close(
        batch.inputs_embeds, expected["train_inputs_embeds"], atol=EMBEDS, rtol=0
    )
    torch.testing.assert_close(loss, expected["train_loss"], atol=LOSS, rtol=0)
    wanted = expected.get("train_logits", expected.get("train_logits_last40"))
    kept = mask[:, -wanted.shape[1] :]  # what padding computes means nothing
    torch.testing.assert_close(
        logits[:, -wanted.shape[1] :][kept], wanted[kept], atol=LOGITS, rtol=0
    )


def test_greedy_answers(case):
    expected, model, images, words, answers = case
    prompt = expected["input_ids"]
    found = model.generate(prompt, images, return_logits=True, **words)

    assert torch.equal(found.token_ids, expected["gen_sequences"][:, prompt.shape[1] :])
    assert found.texts == answers
    torch.testing.assert_close(found.logits, expected["gen_scores"], atol=LOGITS, rtol=0)


@torch.no_grad()
def test_last_hidden_state_before_the_first_token(case):
    expected, model, images, words, _ = case
    batch = model.splice_prompts(expected["input_ids"], images, **words)
    hidden = model.llm.model(inputs_embeds=batch.inputs_embeds).last_hidden_state[:, -1]
    torch.testing.assert_close(hidden, expected["gen_last_hidden_step0"], atol=LOGITS, rtol=0)


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request):
    return released("ckpt_dense", dtype=request.param), request.param


@torch.no_grad()
def test_half_precision_logits_of_the_answer_stay_within_a_tenth(half):
    model, dtype = half
    expected = numbers("parity_dense_lora")
    logits = model(
        expected["train_input_ids"],
        dense_images(),
        attention_mask=expected["train_attention_mask_in"],
    ).logits.float()
    error = (logits - expected["train_logits"]).abs()
    answers = (expected["train_labels"] != -100).roll(-1, dims=1)  # the positions that predict them

    assert error[answers].max() < (0.1 if dtype == "bfloat16" else 0.01)  # of a deviation of 1.6
    assert error[expected["train_attention_mask"]].square().mean().sqrt() < 0.02


def test_half_precision_answers_agree_where_the_margin_is_clear(half):
    model, _ = half
    expected = numbers("parity_dense_lora")
    prompt = expected["input_ids"]
    wanted = expected["gen_sequences"][:, prompt.shape[1] :]
    top = expected["gen_scores"].topk(2).values
    clear = (top[..., 0] - top[..., 1]) > 0.1
    found = model.generate(prompt, dense_images()).token_ids
    for row, row_clear in enumerate(clear.tolist()):
        first_doubt = row_clear.index(False) if False in row_clear else len(row_clear)
        assert torch.equal(found[row, :first_doubt], wanted[row, :first_doubt])


@pytest.fixture(scope="module")
def chapters():
    """The chapters layout: CLIP adapter and linear projector, one layer norm for both."""
    files = [ASSETS / "ckpt_sparse", PROJECTOR]
    return released("ckpt_chapters_alternate", stage="long", adapter_file=files)


@torch.no_grad()
def test_odd_steps_of_chapters_see_frames_through_the_linear_projector(chapters, tmp_path):
    from revisionllm.model.loading import load_model, save_run

    expected = numbers("parity_chapters_alternate_odd")
    words = query(3) | {"adapter_output": "frames"}
    ids, labels = expected["train_input_ids"], expected["train_labels_in"]
    words["attention_mask"] = expected["train_attention_mask_in"]
    save_run(chapters, tmp_path / "run")
    for model in (chapters, load_model(tmp_path / "run", device="cpu", dtype="float32")):
        batch = model.splice_prompts(ids, dense_images(), labels=labels, **words)
        torch.testing.assert_close(
            batch.inputs_embeds, expected["train_inputs_embeds"], atol=EMBEDS, rtol=0
        )
        loss = model(ids, dense_images(), labels=labels, **words).loss
        torch.testing.assert_close(loss, expected["train_loss"], atol=LOSS, rtol=0)


@torch.no_grad()
def test_even_steps_of_chapters_see_segment_tokens(chapters):
    sparse = released("ckpt_sparse", stage="sparse")
    images, words = segment_images(3), query(1)
    found = chapters.embed_frames(images, **words, output="segment")
    plain = sparse.embed_frames(images, **words, output="segment")
    wanted = chapters.projector.alternate_layer_norm(plain)
    torch.testing.assert_close(found, wanted, atol=EMBEDS, rtol=0)
