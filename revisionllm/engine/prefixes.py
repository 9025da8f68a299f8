"""Prefixes of many prompts: their keys and values, computed once, and the memory they may take.

Legend: W prompts of a batch, P tokens of their prefixes, H LLM width.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from revisionllm.engine.attention import KeyValues, PrefixPass

MIN_BUDGET_MB, MAX_CPU_BUDGET_MB = 256, 4096
PREFIX_TOKENS = {"cpu": 1024, "cuda": 16384}  # tokens of one forward: enough to keep it busy
QUESTION_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass
class PrefixBatch:
    """Keys and values [W, heads, P, head dim] per layer of W prompts' beginnings.

    Attributes:
        keys: what each row is about (a window), in order.
        shared: the last tokens of the prefix: those that all questions begin with.
    """

    layers: KeyValues
    keys: list[Hashable]
    shared: list[int]

    @property
    def length(self) -> int:
        """P."""
        return self.layers[0][0].shape[2]


@dataclass(frozen=True)
class Budget:
    """Memory in bytes for keys, values and activations, and how it is shared out.

    Half holds prefixes that may be asked again, a quarter one batch more (whose answers are still
    being decoded), a quarter the questions' own tokens with their activations.
    """

    total: int
    token: int  # keys and values of one token in all layers
    device_type: str

    @classmethod
    def of(cls, llm: PreTrainedModel, budget_mb: int | None) -> Budget:
        """For an LLM; None: `default_budget_mb`."""
        device = llm.device.type
        if budget_mb is None:
            budget_mb = default_budget_mb(llm)
        return cls(budget_mb * 2**20, token_bytes(llm), "cpu" if device == "cpu" else "cuda")

    def prefixes_per_batch(self, prefix_length: int) -> int:
        """How many prefixes of so many tokens one batch may hold; at least 1."""
        return max(1, self.total // 4 // (prefix_length * self.token))

    def kept_batches(self, batch: PrefixBatch) -> int:
        """How many batches like this one may be kept."""
        return max(1, self.total // 2 // (len(batch.keys) * batch.length * self.token))

    def prefix_tokens(self) -> int:
        """Tokens of one forward over prefixes; one prefix at least is run anyway."""
        return min(PREFIX_TOKENS[self.device_type], self.total // 8 // self.token)

    def question_tokens(self) -> int:
        """Tokens of one forward over questions: their keys and values, copied once, fit too."""
        return max(64, min(QUESTION_TOKENS[self.device_type], self.total // 8 // self.token))


def default_budget_mb(llm: PreTrainedModel) -> int:
    """Half of what the weights leave of a GPU; on a CPU an eighth of the memory, 4 GiB at most.

    Of all memory, not of what happens to be free, so that two runs batch alike.
    """
    if llm.device.type == "cuda":
        total = torch.cuda.get_device_properties(llm.device).total_memory
        weights = sum(p.numel() * p.element_size() for p in llm.parameters())
        return max(MIN_BUDGET_MB, (total - weights) // 2**21)
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return max(MIN_BUDGET_MB, min(MAX_CPU_BUDGET_MB, pages * page_bytes // 2**23))


def token_bytes(llm: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = llm.config
    return 2 * config.num_hidden_layers * _kv_width(llm) * llm.dtype.itemsize


def _kv_width(llm: PreTrainedModel) -> int:
    return llm.config.num_key_value_heads * llm.model.layers[0].self_attn.head_dim


def run_prefixes(
    llm: PreTrainedModel,
    embeds: Sequence[Tensor],
    keys: list[Hashable],
    shared: list[int],
    tokens_per_forward: int,
) -> PrefixBatch:
    """Run the beginnings of W prompts; inside `packed_attention` only.

    Args:
        embeds: one embedded prefix [P, H] per prompt, all of one length.
        tokens_per_forward: prefixes are run a few at a time, about so many tokens.
    """
    count, length = len(embeds), len(embeds[0])
    head_dim = llm.model.layers[0].self_attn.head_dim
    shape = (count, llm.config.num_key_value_heads, length, head_dim)
    layers = [
        (embeds[0].new_empty(shape), embeds[0].new_empty(shape))
        for _ in range(llm.config.num_hidden_layers)
    ]
    step = max(1, tokens_per_forward // length)
    for first in range(0, count, step):
        rows = slice(first, min(count, first + step))
        llm.model(
            inputs_embeds=torch.stack(list(embeds[rows])),
            use_cache=False,
            attention_pass=PrefixPass(layers, rows),
        )
    return PrefixBatch(layers, keys, shared)
