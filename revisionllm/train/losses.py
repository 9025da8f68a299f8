"""The training loss: one number per question, alone in its sequence or packed with others.

A question's loss is the mean cross-entropy of its answer's tokens; a step's loss is the mean over
its questions. Both are the same whether a question sits alone behind its window or shares the
window with others under a block mask (`model/packing.py`).

Legend: B rows, N packed tokens, M positions, F frames, H LLM width, Q questions of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from revisionllm.constants import IGNORE_INDEX, NO_OWNER
from revisionllm.engine.attention import packed_forward
from revisionllm.model.llama import GroundingModel

BOOKKEEPING = ("query_ids", "num_questions", "present")


class QuestionLosses(nn.Module):
    """A `GroundingModel` whose forward pass gives the loss of every question: what is trained.

    What is frozen stays in evaluation mode: no dropout in a frozen adapter or LoRA.
    """

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Tensor:
        """Losses [Q] of a packed or plain batch (see `train/collator.py`), row by row."""
        inputs = {key: value for key, value in batch.items() if key not in BOOKKEEPING}
        if "owners" in inputs:
            return packed_losses(self.model, inputs)
        return plain_losses(self.model, inputs)

    def train(self, mode: bool = True) -> QuestionLosses:
        super().train(mode)
        train_trained(self.model.projector, mode)
        for name, module in self.model.llm.named_modules():
            if name.endswith("lora_dropout"):
                module.train(mode and self._trains_lora)
        return self

    @property
    def _trains_lora(self) -> bool:
        return is_trained(self.model.llm)


def train_trained(module: nn.Module, mode: bool) -> None:
    """Training mode for what is trained, at every depth; what is frozen stays in evaluation mode.

    A part without parameters, such as a dropout, belongs to the module that it stands in.
    """
    has_parameters = next(module.parameters(), None) is not None
    if has_parameters and not is_trained(module):
        module.eval()
        return
    module.training = mode
    for child in module.children():
        train_trained(child, mode)


def is_trained(module: nn.Module) -> bool:
    """Does training move anything in it?"""
    return any(parameter.requires_grad for parameter in module.parameters())


def plain_losses(model: GroundingModel, inputs: Mapping[str, Any]) -> Tensor:
    """Losses [B] of a batch with one question per row; arguments of `GroundingModel.forward`."""
    spliced = model.splice_prompts(**inputs)
    hidden_BMH = model.llm.model(
        inputs_embeds=spliced.inputs_embeds,
        attention_mask=spliced.attention_mask.long(),
        position_ids=spliced.position_ids,
        use_cache=False,
    ).last_hidden_state
    targets = spliced.labels[:, 1:]
    row = torch.arange(len(targets), device=targets.device)[:, None].expand_as(targets)
    return _losses(model, hidden_BMH[:, :-1], targets, row, len(targets))


def packed_losses(model: GroundingModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Losses [Q] of windows with many questions each, windows one after the other.

    Args:
        inputs: images [B, F, D], before_ids [K], shared_ids [C], and ids, owners, positions,
            visible, labels, each [B, N]; labels say what their position must predict.
    """
    owners_BN, ids_BN = inputs["owners"], inputs["ids"]
    rows, embed = len(ids_BN), model.llm.get_input_embeddings()
    # one lookup for all tokens: under ZeRO-3 every call gathers the table
    texts = [inputs["before_ids"].expand(rows, -1), inputs["shared_ids"].expand(rows, -1), ids_BN]
    before, shared, own = embed(torch.cat(texts, 1)).split([t.shape[1] for t in texts], 1)
    frames = model.embed_frames(inputs["images"]).to(own)
    embeds = torch.cat([before, frames, shared, own], 1)
    prefix = embeds.shape[1] - ids_BN.shape[1]
    in_prefix = torch.arange(prefix, device=ids_BN.device).expand(rows, -1)
    hidden = packed_forward(
        model.llm,
        owners_BN,
        prefix,
        inputs["visible"],
        inputs_embeds=embeds,
        position_ids=torch.cat([in_prefix, inputs["positions"]], 1),
        use_cache=False,
    ).last_hidden_state
    question_BN, count = number_questions(owners_BN)
    return _losses(model, hidden[:, prefix:], inputs["labels"], question_BN, count)


def num_tokens(batch: Mapping[str, Any]) -> int:
    """Positions that go through the LLM for a batch of `train/collator.py`; the video's are frames,
    or a token per segment."""
    images = batch["images"]
    rows = len(images)
    if "owners" in batch:
        own = batch["ids"].numel()
        shared = len(batch["before_ids"]) + len(batch["shared_ids"]) + images.shape[1]
        return own + rows * shared
    return batch["input_ids"].numel() + sum(len(image) for image in images)


def number_questions(owners_BN: Tensor) -> tuple[Tensor, int]:
    """Owners, which count from 0 in every row, as numbers over the whole batch, and how many."""
    per_row = owners_BN.amax(1) + 1
    first = per_row.cumsum(0) - per_row
    numbers = torch.where(owners_BN == NO_OWNER, 0, owners_BN + first[:, None])
    return numbers, int(per_row.sum())


def _losses(
    model: GroundingModel, hidden: Tensor, targets: Tensor, question: Tensor, count: int
) -> Tensor:
    """Mean cross-entropy per question; the LM head runs at supervised positions alone."""
    supervised = targets != IGNORE_INDEX
    logits = model.llm.lm_head(hidden[supervised]).float()
    token_losses = cross_entropy(logits, targets[supervised], reduction="none")
    owner = question[supervised]
    total = token_losses.new_zeros(count).index_add(0, owner, token_losses)
    return total / torch.bincount(owner, minlength=count).clamp(min=1)
