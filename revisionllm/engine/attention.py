"""Attention of many questions that share prefixes, without padding and without others' blocks.

The questions of a forward stand one behind the other in one row of tokens, sorted by window. Each
token attends to the prefix of its window (no mask at all) and to its own question's tokens so far
(a small causal block); the two parts are merged by their log-sum-exps, so that the result is that
of one softmax over both. Nothing is computed for other questions' tokens, and windows may have any
number of questions.

It reaches the unchanged LLM through transformers' attention interface: `packed_attention`
switches it on, and `llm.model(..., attention_pass=...)` says what a forward is.

Legend: H heads, K key-value heads, D head dim, N tokens of the forward, W windows of a prefix
batch, P prefix tokens, A questions, L tokens of the longest question, T its history and new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from revisionllm.constants import NO_OWNER
from revisionllm.model.packing import additive_mask, packed_mask

NAME = "revisionllm_packed"
KeyValues = list[tuple[Tensor, Tensor]]  # per layer


class PrefixPass:
    """Plain causal attention; each layer's keys and values are written to `batch` rows."""

    def __init__(self, layers: KeyValues, rows: slice) -> None:
        self.layers, self.rows = layers, rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [W, H, P, D], k and v [W, K, P, D] to [W, H, P, D]."""
        keys, values = self.layers[layer]
        keys[self.rows], values[self.rows] = k, v
        shared_heads = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=shared_heads
        )


@dataclass(frozen=True)
class Group:
    """Windows side by side in a prefix batch whose questions have equally many tokens."""

    layers: KeyValues
    first_row: int
    num_windows: int
    first_token: int
    tokens_per_window: int

    @property
    def stop_token(self) -> int:
        """One past the group's last token."""
        return self.first_token + self.num_windows * self.tokens_per_window


class QuestionPass:
    """Questions over their windows' prefixes and their own earlier tokens.

    Args:
        groups: which tokens look at which prefixes; together all tokens, in order.
        lengths: new tokens of each of the A questions, in the order of the tokens.
        history: keys and values [A, K, T0, D] of the questions' earlier tokens, a layer at a time,
            or None.
        history_valid: bool [A, T0], True where the history holds a token.
        keep: whether more tokens will follow.

    Attributes:
        kept: history and new tokens, [A, K, T0 + L, D] per layer, after the forward; empty unless
            `keep`.
        kept_valid: bool [A, T0 + L].
    """

    def __init__(
        self,
        groups: Sequence[Group],
        lengths: Sequence[int],
        device: torch.device,
        history: Iterator[tuple[Tensor, Tensor]] | None = None,
        history_valid: Tensor | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.groups, self.history, self.keep = groups, history, keep
        self.num_questions, self.width = len(lengths), max(lengths)
        length = torch.tensor(lengths, device=device)
        column = torch.arange(self.width, device=device)
        is_token = column < length[:, None]  # [A, L]
        first = length.cumsum(0) - length
        self.slots = torch.where(is_token, first[:, None] + column, 0).flatten()
        self.tokens = is_token.flatten().nonzero()[:, 0]  # slot of each token
        self.kept: KeyValues = []
        self.kept_valid = is_token
        visible = (column[:, None] >= column)[None].expand(self.num_questions, -1, -1)
        if history_valid is not None:
            self.kept_valid = torch.cat([history_valid, is_token], 1)
            past = history_valid[:, None].expand(-1, self.width, -1)
            visible = torch.cat([past, visible], 2)
        self.hidden = ~visible[:, None, None]  # [A, 1, 1, L, T]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [1, H, N, D], k and v [1, K, N, D] to [1, H, N, D]."""
        q, k, v = q[0] * scaling, k[0], v[0]
        over_prefix = [self._over_prefix(layer, group, q, k.shape[0]) for group in self.groups]
        outputs, sums, tops = (torch.cat(part, 1) for part in zip(*over_prefix, strict=True))
        own_output, own_sum, own_top = self._over_own(q, k, v)
        top = torch.maximum(tops, own_top)
        weight, own_weight = (tops - top).exp(), (own_top - top).exp()
        total = weight * sums + own_weight * own_sum
        merged = outputs.float() * (weight / total) + own_output.float() * (own_weight / total)
        return merged.to(q.dtype)[None]

    def _over_prefix(self, layer: int, group: Group, q: Tensor, key_heads: int):
        """Unnormalised attention of a group: outputs [H, n, D], sums and tops [H, n, 1]."""
        rows = slice(group.first_row, group.first_row + group.num_windows)
        keys, values = (part[rows] for part in group.layers[layer])
        chunk = q[:, group.first_token : group.stop_token]
        heads, _, dim = chunk.shape
        # heads that share keys become further rows of one product: [W, K, H/K * n, D]
        chunk = chunk.reshape(key_heads, heads // key_heads, group.num_windows, -1, dim)
        chunk = chunk.permute(2, 0, 1, 3, 4).reshape(group.num_windows, key_heads, -1, dim)
        parts = _attend(chunk @ keys.transpose(-1, -2), values)
        return tuple(
            part.unflatten(2, (heads // key_heads, -1))
            .permute(1, 2, 0, 3, 4)
            .reshape(heads, -1, part.shape[-1])
            for part in parts
        )

    def _over_own(self, q: Tensor, k: Tensor, v: Tensor):
        """Unnormalised attention to the question's own tokens: [H, N, D], [H, N, 1] twice."""
        heads, key_heads = q.shape[0], k.shape[0]
        keys, values = (self._by_question(x) for x in (k, v))  # [A, K, L, D]
        if self.history is not None:
            old_keys, old_values = next(self.history)  # layers come in order
            keys, values = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        if self.keep:
            self.kept.append((keys, values))
        asks = self._by_question(q).unflatten(1, (key_heads, heads // key_heads))
        weights = asks @ keys.transpose(-1, -2)[:, :, None]
        parts = _attend(weights.masked_fill_(self.hidden, -torch.inf), values[:, :, None])
        return tuple(  # [A, K, H/K, L, x] to [H, N, x]
            part.flatten(1, 2).transpose(0, 1).flatten(1, 2).index_select(1, self.tokens)
            for part in parts
        )

    def _by_question(self, x: Tensor) -> Tensor:
        """[heads, N, D] to [A, heads, L, D]; what lies behind a question's end repeats a token."""
        return x.index_select(1, self.slots).unflatten(1, (self.num_questions, -1)).transpose(0, 1)


class PackedPass:
    """Rows of `[prefix | packed questions]` in one forward that can be trained through.

    What `packing.packed_mask` with a dense mask computes, without the blocks that it hides: on a
    CPU most of a packed row's attention. It keeps scores [B, H, N, P + L] per layer for the
    backward, which long prompts on a GPU cannot afford; there the masked kernels are better.

    Args:
        owner_BN: number of the question each packed token belongs to; questions stand one behind
            the other, `packing.NO_OWNER` (at the end of a row) is padding.
        prefix_length: P.
        visible_BN: how many prefix tokens each packed token sees.
    """

    def __init__(self, owner_BN: Tensor, prefix_length: int, visible_BN: Tensor) -> None:
        self.prefix_length = prefix_length
        device, padding = owner_BN.device, owner_BN == NO_OWNER
        starts = torch.ones_like(padding)
        starts[:, 1:] = owner_BN[:, 1:] != owner_BN[:, :-1]
        question = (starts & ~padding).flatten().cumsum(0) - 1  # [B * N], over the whole batch
        question = torch.where(padding.flatten(), -1, question)
        lengths = torch.bincount(question + 1)[1:]
        self.shape = (len(lengths), int(lengths.max()))  # A, L
        first = (starts & ~padding).flatten().nonzero()[:, 0]
        column = torch.arange(self.shape[1], device=device)
        is_token = column < lengths[:, None]
        self.slots = torch.where(is_token, first[:, None] + column, 0).flatten()  # [A * L]
        token = torch.arange(owner_BN.numel(), device=device)
        place = question * self.shape[1] + token - first[question]  # slot of each token
        self.place = torch.where(question < 0, 0, place)  # padding: whatever, nobody looks at it
        self.later = column > column[:, None]  # [L, L]
        visible = torch.where(padding, prefix_length, visible_BN)
        self.seen_by_all = int(visible.min())  # prefix tokens that nobody has to be kept from
        prefix = torch.arange(self.seen_by_all, prefix_length, device=device)
        self.unseen = (prefix >= visible[..., None])[:, None]  # [B, 1, N, P - seen by all]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [B, H, P + N, D], k and v [B, K, P + N, D] to [B, H, P + N, D]."""
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
        size = [self.prefix_length, q.shape[2] - self.prefix_length]
        (q0, q1), (k0, k1), (v0, v1) = (x.split(size, 2) for x in (q, k, v))
        before = scaled_dot_product_attention(q0, k0, v0, is_causal=True, scale=scaling)
        q1 = q1 * scaling
        asks, keys, values = (self._by_question(x) for x in (q1, k1, v1))  # [H, A, L, D]
        open_part, rest = (q1 @ k0.transpose(-1, -2)).split(
            [self.seen_by_all, size[0] - self.seen_by_all], -1
        )
        over_own = (asks @ keys.transpose(-1, -2)).masked_fill(self.later, -torch.inf)
        scores = [open_part, rest.masked_fill(self.unseen, -torch.inf), self._by_row(over_own, q1)]
        weights = torch.cat(scores, -1).softmax(-1, dtype=torch.float32).to(v.dtype)
        to_prefix, to_own = weights.split([size[0], self.shape[1]], -1)
        own = self._by_row(self._by_question(to_own) @ values, q1)
        return torch.cat([before, to_prefix @ v0 + own], 2)

    def _by_question(self, x: Tensor) -> Tensor:
        """[B, H, N, X] to [H, A, L, X]; what lies behind a question's end repeats a token."""
        tokens = x.transpose(0, 1).flatten(1, 2)  # [H, B * N, X]
        return tokens.index_select(1, self.slots).unflatten(1, self.shape)

    def _by_row(self, x: Tensor, like: Tensor) -> Tensor:
        """[H, A, L, X] to [B, H, N, X]."""
        tokens = x.flatten(1, 2).index_select(1, self.place)
        return tokens.unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1)


def _attend(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax without its division: outputs, sums of exponentials, and the tops taken off first.

    Overwrites `weights`.
    """
    weights = weights.float()
    top = weights.amax(-1, keepdim=True)
    weights = weights.sub_(top).exp_()  # in place: fresh memory costs more than the arithmetic
    return weights.to(values.dtype) @ values, weights.sum(-1, keepdim=True), top


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    attention_pass: PrefixPass | QuestionPass | PackedPass,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer."""
    attended = attention_pass.attend(module.layer_idx, query, key, value, scaling)
    return attended.transpose(1, 2), None


AttentionInterface.register(NAME, _interface)


@contextmanager
def packed_attention(llm: PreTrainedModel) -> Iterator[None]:
    """Switch the LLM to this attention, and back.

    Inside, every forward needs `attention_pass`; no mask is made.
    """
    usual = llm.config._attn_implementation
    llm.config._attn_implementation = NAME  # set_attn_implementation() came with transformers 4.54
    try:
        yield
    finally:
        llm.config._attn_implementation = usual


def packed_forward(
    llm: PreTrainedModel, owner_BN: Tensor, prefix_length: int, visible_BN: Tensor, **inputs: Any
) -> Any:
    """`llm.model(**inputs)` on rows of `[prefix | packed questions]`, to be trained through.

    On a CPU by `PackedPass`, which computes no more than is looked at. On a GPU, and where
    activations are recomputed (which happens when the switch below is back), under the mask.
    """
    # the property that says so has another name in newer versions of transformers
    recomputes = llm.training and any(
        getattr(module, "gradient_checkpointing", False) for module in llm.modules()
    )
    if owner_BN.device.type == "cpu" and not recomputes:
        with packed_attention(llm):
            rows = PackedPass(owner_BN, prefix_length, visible_BN)
            return llm.model(attention_pass=rows, **inputs)
    allowed = packed_mask(owner_BN, prefix_length, visible_BN)
    mask = additive_mask(allowed, inputs["inputs_embeds"].dtype)
    return llm.model(attention_mask=mask, **inputs)
