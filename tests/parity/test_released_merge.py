"""Visual tokens in the place of `<video>`: padding sides, positions, truncation, ragged videos."""

from __future__ import annotations

import pytest
import torch
from model_assets import dense_images, numbers, released

from revisionllm.model.splice import splice


@pytest.fixture(scope="module")
def model():
    return released("ckpt_dense")


@pytest.fixture(scope="module")
def expected():
    return numbers("parity_merge_cases")


@torch.no_grad()
def merge(model, expected, lengths=(20, 20, 20), **settings):
    visuals = [
        [model.embed_frames(dense_images()[row : row + 1, :length])[0]]
        for row, length in enumerate(lengths)
    ]
    return splice(
        expected["input_ids"],
        visuals,
        model.llm.get_input_embeddings(),
        attention_mask=expected["attention_mask_in"],
        labels=expected["labels_in"],
        **settings,
    )


@pytest.mark.parametrize(
    ("prefix", "settings"),
    [
        ("right", {}),
        ("right_with_pos", {}),
        ("left", {"padding_side": "left"}),
        ("trunc64", {"max_length": 64}),
        ("list", {"lengths": (20, 30, 20)}),
    ],
)
def test_merge_case(model, expected, prefix, settings):
    found = merge(model, expected, **settings)
    torch.testing.assert_close(
        found.inputs_embeds, expected[f"{prefix}_inputs_embeds"], atol=1e-5, rtol=0
    )
    assert torch.equal(found.attention_mask, expected[f"{prefix}_attention_mask"])
    assert torch.equal(found.labels, expected[f"{prefix}_labels"])
    if f"{prefix}_position_ids" in expected:
        assert torch.equal(found.position_ids, expected[f"{prefix}_position_ids"])
