"""Many questions about one window in one sequence: the block mask and the positions.

The prompt puts the video before the question, so all questions of a window share their beginning.
A packed sequence holds that prefix once, then the questions one after the other; a question's
tokens see the prefix and what came before in their own question, nothing of the others, and count
their positions as if they stood right behind the prefix. Every question is therefore computed as if
it were alone. Training packs like this; the engine needs no mask at all (`attention.py`).

Legend: B windows, P prefix tokens, N packed tokens after the prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revisionllm.constants import NO_OWNER


def packed_mask(owner_BN: Tensor, prefix_length: int, visible_BN: Tensor | None = None) -> Tensor:
    """Which positions may be attended to in `[prefix | packed questions]`.

    Args:
        owner_BN: number of the question each packed token belongs to; `NO_OWNER` for padding.
        prefix_length: P.
        visible_BN: how many prefix tokens each packed token sees; P everywhere if None.

    Returns:
        bool [B, 1, P + N, P + N], True where the row may look at the column. Padding sees itself
        alone, which keeps its softmax finite.
    """
    batch, packed = owner_BN.shape
    total = prefix_length + packed
    device = owner_BN.device
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    owner = torch.cat([owner_BN.new_full((batch, prefix_length), NO_OWNER - 1), owner_BN], 1)
    same = owner[:, :, None] == owner[:, None, :]
    column = torch.arange(total, device=device)
    reach = visible_BN if visible_BN is not None else torch.full_like(owner_BN, prefix_length)
    reach = torch.where(owner_BN == NO_OWNER, 0, reach)
    reach = torch.cat([reach.new_full((batch, prefix_length), prefix_length), reach], 1)
    in_prefix = column[None, None, :] < reach[:, :, None]
    allowed = causal & (same | in_prefix)
    padding = torch.cat([owner.new_zeros((batch, prefix_length)).bool(), owner_BN == NO_OWNER], 1)
    diagonal = torch.eye(total, dtype=torch.bool, device=device)
    return torch.where(padding[:, :, None], diagonal, allowed)[:, None]


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores: 0 where allowed, the dtype's most negative number else."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
