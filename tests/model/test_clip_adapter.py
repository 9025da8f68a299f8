"""The CLIP adapter against torch's own attention modules, and what must not change its output."""

from __future__ import annotations

import pytest
import torch
from model_assets import manifest
from torch import nn

from revisionllm.model.clip_adapter import ClipAdapter, sine_positions

D, H, T, L = 32, 24, 7, 5
PREFIX = "base_model.model.model.mm_projector."


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    module = ClipAdapter(D, H, num_heads=4, ffn_dim=48)
    for parameter in module.parameters():  # biases and norms start at trivial values
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def inputs(batch=3, segments=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch, segments, T, D, generator=generator)
    text = torch.randn(batch, L, D, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])[:batch]
    return frames, text * mask[..., None], mask


def reference_attention(ours):
    """torch's module with the same weights."""
    theirs = nn.MultiheadAttention(D, ours.num_heads, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def reference(adapter, frames_TD, text_LD):
    """One window, one query without padding, written out with torch's modules: [1 + T, H]."""
    positions = sine_positions(len(frames_TD), D)[None]
    x, text = frames_TD[None], text_LD[None]
    for layer in adapter.t2v_encoder.layers:
        attended, _ = reference_attention(layer.self_attn)(x + positions, text, text)
        x = x + attended
        inner = layer.linear2(torch.relu(layer.linear1(layer.norm1(x))))
        x = layer.norm2(x + inner)
    x = torch.cat([adapter.global_rep_token[None, None], x], dim=1)
    positions = torch.cat([adapter.global_rep_pos[None, None], positions], dim=1)
    for layer in adapter.encoder.layers:
        attended, _ = reference_attention(layer.self_attn)(x + positions, x + positions, x)
        x = layer.norm1(x + attended)
        x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
    return adapter.mm_projector(x[0])


@torch.no_grad()
def test_equals_torch_modules_window_by_window(adapter):
    frames, text, mask = inputs()
    found = adapter(frames, text, mask, output="all").unflatten(1, (2, 1 + T))
    for row in range(3):
        for segment in range(2):
            words = text[row, mask[row].bool()]
            wanted = reference(adapter, frames[row, segment], words)
            torch.testing.assert_close(found[row, segment], wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_sentence_is_the_last_row_and_its_match_is_added_to_the_frames(adapter):
    frames, text, mask = inputs()
    torch.manual_seed(3)
    reading = ClipAdapter(D, H, num_heads=4, ffn_dim=48, reads_sentence=True).eval()
    missing = reading.load_state_dict(adapter.state_dict(), strict=False)
    assert missing == (["match.weight"], [])
    plain = adapter(frames, text, mask, output="all")
    torch.testing.assert_close(reading(frames, text, mask, output="all"), plain)  # no effect yet
    nn.init.normal_(reading.match.weight)
    for row, length in enumerate(mask.sum(1)):
        sentence = text[row, length - 1] / text[row, length - 1].norm()
        unit = frames[row] / frames[row].norm(dim=-1, keepdim=True)
        told = frames[row] + D * (unit * sentence) @ reading.match.weight.T
        wanted = adapter(told[None], text[row : row + 1], mask[row : row + 1])
        found = reading(frames, text, mask)[row : row + 1]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    whole = reading(frames[:1], text[:1], mask[:1])
    torch.testing.assert_close(reading(frames[:1], text[:1]), whole)


@torch.no_grad()
def test_output_kinds_are_parts_of_all(adapter):
    frames, text, mask = inputs(segments=1)
    every = adapter(frames, text, mask, output="all")
    segment = adapter(frames, text, mask, output="segment")
    torch.testing.assert_close(segment, every[:, :1], atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter(frames, text, mask, output="frames"), every[:, 1:])
    assert torch.equal(adapter(frames[:, 0], text, mask), segment)  # [B, T, D] is one segment


@torch.no_grad()
def test_batch_segments_and_padding_do_not_change_a_token(adapter):
    frames, text, mask = inputs()
    together = adapter(frames, text, mask)
    for row in range(3):
        num_words = int(mask[row].sum())
        for segment in range(2):
            alone = adapter(frames[row : row + 1, segment], text[row : row + 1, :num_words])
            torch.testing.assert_close(together[row, segment], alone[0, 0], atol=1e-5, rtol=0)
    garbage = text.masked_fill(mask[..., None] == 0, 7.0)
    assert torch.equal(adapter(frames, garbage, mask), together)


def test_keys_and_shapes_are_the_released_ones():
    wanted = manifest("ckpt_stage2_cls")["non_lora_trainables.bin"]
    found = ClipAdapter(768, 64).state_dict()
    assert {PREFIX + name: [*t.shape] for name, t in found.items()} == {
        name: entry["shape"] for name, entry in wanted.items()
    }
    assert len(found) == 52


def test_dropout_only_in_training_and_every_parameter_learns(adapter):
    frames, text, mask = inputs()
    assert torch.equal(adapter(frames, text, mask), adapter(frames, text, mask))
    adapter.train()
    assert not torch.equal(adapter(frames, text, mask), adapter(frames, text, mask))
    adapter(frames, text, mask, output="all").square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


@torch.no_grad()
def test_output_norm_is_a_layer_norm_on_the_tokens(adapter):
    frames, text, mask = inputs()
    normed = ClipAdapter(D, H, num_heads=4, ffn_dim=48, output_norm=True).eval()
    normed.load_state_dict(adapter.state_dict(), strict=False)
    nn.init.normal_(normed.alternate_layer_norm.weight)
    wanted = normed.alternate_layer_norm(adapter(frames, text, mask))
    torch.testing.assert_close(normed(frames, text, mask), wanted)


@torch.no_grad()
def test_half_precision_stays_close(adapter):
    frames, text, mask = inputs()
    wanted = adapter(frames, text, mask)
    found = adapter.bfloat16()(frames.bfloat16(), text.bfloat16(), mask)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@torch.no_grad()
def test_words_of_another_width_are_mapped_first(adapter):
    torch.manual_seed(2)
    wide = ClipAdapter(D, H, text_width=20, num_heads=4, ffn_dim=48).eval()
    wide.load_state_dict(adapter.state_dict(), strict=False)
    frames, _, mask = inputs()
    words = torch.randn(3, L, 20)
    mapped = words @ wide.text_projector.weight.T + wide.text_projector.bias
    torch.testing.assert_close(wide(frames, words, mask), adapter(frames, mapped, mask))
    assert set(wide.state_dict()) - set(adapter.state_dict()) == {
        "text_projector.weight",
        "text_projector.bias",
    }
