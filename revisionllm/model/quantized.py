"""Frozen weights in 4 bits (NF4), so that a 7B LLM trains on one small GPU: QLoRA.

Through bitsandbytes, an optional extra, which runs on NVIDIA GPUs and on CPUs
(https://github.com/bitsandbytes-foundation/bitsandbytes). Paper: https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from revisionllm.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

NF4 = "nf4"
BLOCK = 64  # weights with one scale
GET = "`pip install 'revisionllm[nf4]'` installs it"
# bits per weight: the code, a scale in 8 bits for each 64, one in 32 bits for 256 of these
BITS = 4 + 8 / 64 + 32 / (64 * 256)


def is_there() -> bool:
    """Is bitsandbytes installed?"""
    return find_spec("bitsandbytes") is not None


def quantize(llm: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Give the linear layers of an LLM's blocks weights in NF4 (in place); scales in 8 bits.

    Layers whose rows are no whole blocks stay as they are; no LLM that one would train has any.
    The codes are made when the LLM is moved to its device, layer by layer. Embeddings, norms and
    the LM head stay as they are.

    Args:
        llm: frozen; LoRAs that belong to its weights are merged already.
        compute_dtype: what products are computed in.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if not is_there():
        raise UserError(f"weights in {NF4} need bitsandbytes; {GET}")
    import bitsandbytes as bnb
    from torch import nn

    for name, module in list(block_linears(llm)):
        if module.in_features % BLOCK:  # bitsandbytes reads these wrongly on some CPUs (0.50.2)
            continue
        packed = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type=NF4,
            device="meta",
        )
        # its way for CPUs with bfloat16 rounds to it, and repacks weights that training then reads:
        # all CPUs compute alike instead
        packed.support_avx512bf16_for_cpu = False
        packed.weight = bnb.nn.Params4bit(
            module.weight.data,
            requires_grad=False,
            compress_statistics=True,
            quant_type=NF4,
            module=packed,
        )
        if module.bias is not None:
            packed.bias = nn.Parameter(module.bias.data, requires_grad=False)
        parent, _, own = name.rpartition(".")
        setattr(llm.get_submodule(parent), own, packed)
    llm.is_loaded_in_4bit = True  # what peft asks


def block_linears(llm: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Names and modules of the linear layers inside the LLM's blocks."""
    from torch import nn

    for name, module in llm.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            yield name, module
