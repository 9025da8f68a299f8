"""Packed questions: mask by its definition; loss and gradients equal those of separate samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_assets import tiny_llm
from torch.nn.functional import cross_entropy

from revisionllm.constants import NO_OWNER
from revisionllm.engine.attention import packed_forward
from revisionllm.model.packing import additive_mask, packed_mask


def naive_mask(owner: list[int], prefix: int, visible: list[int]) -> np.ndarray:
    total = prefix + len(owner)
    allowed = np.zeros((total, total), dtype=bool)
    for row in range(total):
        for column in range(row + 1):
            if row < prefix:
                allowed[row, column] = True
            elif owner[row - prefix] == NO_OWNER:
                allowed[row, column] = row == column
            elif column < prefix:
                allowed[row, column] = column < visible[row - prefix]
            else:
                allowed[row, column] = owner[row - prefix] == owner[column - prefix]
    return allowed


def test_mask_by_its_definition():
    owner = [0, 0, 1, 1, 1, 2, NO_OWNER, NO_OWNER]
    visible = [3, 3, 2, 2, 2, 0, 3, 3]
    found = packed_mask(torch.tensor([owner]), 3, torch.tensor([visible]))
    assert found.shape == (1, 1, 11, 11)
    np.testing.assert_array_equal(found[0, 0].numpy(), naive_mask(owner, 3, visible))
    plain = packed_mask(torch.tensor([owner]), 3)
    np.testing.assert_array_equal(plain[0, 0].numpy(), naive_mask(owner, 3, [3] * 8))


def test_additive_mask_is_finite():
    mask = additive_mask(torch.tensor([[True, False]]), torch.bfloat16)
    assert mask.dtype == torch.bfloat16 and mask.isfinite().all()
    assert mask[0, 0] == 0 and mask[0, 1] < -1e38


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ours"])
@pytest.mark.parametrize("key_value_heads", [1, 4])
def test_packed_loss_and_gradients_equal_separate_samples(implementation, key_value_heads):
    """Two windows with 5 and 3 questions in two rows, against eight plain HF forwards."""
    llm = tiny_llm(num_key_value_heads=key_value_heads)
    masked = implementation != "ours"
    llm.set_attn_implementation(implementation if masked else "sdpa")
    rng = np.random.default_rng(7)
    prefix_length = 9
    prefixes = torch.from_numpy(rng.standard_normal((2, prefix_length, 32))).float()
    lengths = [[4, 6, 2, 5, 7], [3, 8, 4]]
    questions = [[torch.from_numpy(rng.integers(5, 500, n)) for n in row] for row in lengths]
    packed = _packed_losses(llm, prefixes, questions, prefix_length, masked)
    wanted = _separate_losses(llm, prefixes, questions)
    torch.testing.assert_close(torch.stack(packed), torch.stack(wanted), atol=1e-5, rtol=0)
    for together, alone in zip(_gradients(llm, packed), _gradients(llm, wanted), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def _gradients(llm, losses):
    llm.zero_grad()
    torch.stack(losses).sum().backward()
    return [p.grad.clone() for p in llm.parameters() if p.grad is not None]


def _separate_losses(llm, prefixes, questions):
    embed = llm.get_input_embeddings()
    losses = []
    for prefix, row in zip(prefixes, questions, strict=True):
        for ids in row:
            embeds = torch.cat([prefix, embed(ids)])[None]
            logits = llm(inputs_embeds=embeds).logits[0, len(prefix) : -1]
            losses.append(cross_entropy(logits, ids[1:]))
    return losses


def _packed_losses(llm, prefixes, questions, prefix_length, masked):
    width = max(sum(map(len, row)) for row in questions) + 2
    owners = torch.full((2, width), NO_OWNER)
    positions = torch.zeros(2, width, dtype=torch.long)
    ids = torch.zeros(2, width, dtype=torch.long)
    places = []
    for row, tokens in enumerate(questions):
        at = 0
        for owner, question in enumerate(tokens):
            place = slice(at, at + len(question))
            owners[row, place], ids[row, place] = owner, question
            positions[row, place] = prefix_length + torch.arange(len(question))
            places.append((row, at, len(question)))
            at += len(question)
    embeds = torch.cat([prefixes, llm.get_input_embeddings()(ids)], 1)
    prefix_positions = torch.arange(prefix_length).expand(2, -1)
    inputs = {
        "inputs_embeds": embeds,
        "position_ids": torch.cat([prefix_positions, positions], 1),
    }
    if masked:
        mask = additive_mask(packed_mask(owners, prefix_length), embeds.dtype)
        states = llm.model(attention_mask=mask, **inputs)
    else:
        visible = torch.full_like(owners, prefix_length)
        states = packed_forward(llm, owners, prefix_length, visible, **inputs)
    logits = llm.lm_head(states.last_hidden_state)[:, prefix_length:]
    assert logits.isfinite().all()
    return [
        cross_entropy(logits[row, at : at + n - 1], ids[row, at + 1 : at + n])
        for row, at, n in places
    ]


def test_prefix_tokens_that_a_question_does_not_see():
    """Rows with questions that see less of the prefix: states as under the mask, padding aside."""
    llm = tiny_llm(num_key_value_heads=2)
    owners = torch.tensor([[0, 0, 0, 1, 1, 2, 2, NO_OWNER], [0, 1, 1, 1, 1, 1, 1, 1]])
    visible = torch.where(owners == 1, 4, 6)
    embeds = torch.randn(2, 14, 32, generator=torch.Generator().manual_seed(1))
    inputs = {"inputs_embeds": embeds, "position_ids": torch.arange(14).expand(2, -1)}
    found = packed_forward(llm, owners, 6, visible, **inputs).last_hidden_state
    mask = additive_mask(packed_mask(owners, 6, visible), embeds.dtype)
    wanted = llm.model(attention_mask=mask, **inputs).last_hidden_state
    real = torch.cat([torch.ones(2, 6, dtype=torch.bool), owners != NO_OWNER], 1)
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=0)


def test_gradients_are_the_same_where_activations_are_recomputed():
    """Recomputation runs when the attention is switched back, so it takes the mask instead."""
    owners = torch.tensor([[0, 0, 0, 1, 1, NO_OWNER], [0, 1, 1, 2, 2, 2]])
    embeds = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for recomputes in (False, True):
        llm = tiny_llm(num_key_value_heads=2).train()
        if recomputes:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        states = packed_forward(
            *(llm, owners, 4, torch.full_like(owners, 4)),
            inputs_embeds=embeds.clone().requires_grad_(),
            position_ids=torch.arange(10).expand(2, -1),
            use_cache=False,
        ).last_hidden_state
        real = torch.cat([torch.ones(2, 4, dtype=torch.bool), owners != NO_OWNER], 1)
        states[real].square().sum().backward()
        gradients.append({n: p.grad for n, p in llm.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)
