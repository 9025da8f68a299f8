"""What the demo's dense LLM is asked for in training: the losses of one packed forward pass.

Beside the answers: presence, which would drown among their tokens; pointers half-way up the LLM, to
the frames that show whom a question is about and to those of the event; and, for the digits of
frame numbers, where to look and what to write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW, PackedBatch, Packer
from revisionllm.demo.training.dense_readout import PARTS, SAID, Readout
from revisionllm.engine.attention import packed_forward
from revisionllm.model.packing import packed_mask

# Behind the last prompt token come From, a space piece, two digits, to, a space piece, two digits:
# offsets of the tokens that predict the digits of the first and of the last frame.
DIGIT_OFFSETS = ((2, 3), (6, 7))
# how much more frames count that show the colour a question is about: there whom it asks about is
# mistaken for another, everywhere else is easy
NEAR = 4.0


class Pointer(nn.Module):
    """Training only: which frames is a question about?

    Scores first, last and inside per frame, and shown: that the frame has whom it is about.
    """

    HEADS = 4

    def __init__(self, hidden_size: int, head_dim: int = 64) -> None:
        super().__init__()
        self.ask = nn.Linear(hidden_size, self.HEADS * head_dim)
        self.frame = nn.Linear(hidden_size, self.HEADS * head_dim)
        self.readout = Readout(hidden_size)
        self.bias = nn.Parameter(torch.tensor(-2.0))  # most frames are neither inside nor shown
        self.register_buffer("is_binary", torch.tensor([0.0, 0, 1, 1])[:, None, None], False)

    def forward(self, asks_BQH: Tensor, frames_BFH: Tensor) -> Tensor:
        """Scores [B, 4, Q, F]."""
        asks = self.ask(asks_BQH).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)
        frames = self.frame(frames_BFH).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)
        scores = asks @ frames.transpose(-1, -2) / math.sqrt(asks.shape[-1])
        return scores + self.bias * self.is_binary

    def digit_loss(self, packed_BNH: Tensor, frames_BFH: Tensor, batch: PackedBatch) -> Tensor:
        """Cross-entropy of the frame that each digit of an answer is about.

        The token before a digit is to look for its frame itself; the layers above then only copy
        the digit from there.
        """
        row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
        if not len(row):
            return packed_BNH.sum() * 0
        frames = self.frame(frames_BFH).unflatten(-1, (self.HEADS, -1))
        losses = []
        for end, offsets in enumerate(DIGIT_OFFSETS):
            for offset in offsets:
                tokens = packed_BNH[row, batch.ask[row, question] + offset]
                asks = self.ask(tokens).unflatten(-1, (self.HEADS, -1))[:, end]
                scores = torch.einsum("nd,nfd->nf", asks, frames[row, :, end])
                target = batch.spans[row, question, end]
                losses.append(
                    functional.cross_entropy(scores.float() / math.sqrt(asks.shape[-1]), target)
                )
        return torch.stack(losses).mean()

    def loss(self, scores: Tensor, batch: PackedBatch) -> Tensor:
        """Cross-entropy of first and last frame, binary cross-entropy of inside and of shown."""
        first, last = scores[:, :2].float().unbind(1)
        present = batch.spans[..., 0] >= 0
        if not present.any():
            return scores.sum() * 0
        ends = functional.cross_entropy(first[present], batch.spans[present][:, 0])
        ends = ends + functional.cross_entropy(last[present], batch.spans[present][:, 1])
        cover, seen = frames_loss(scores[:, 2:], batch)
        return ends / 2 + 4 * cover + 8 * seen


def frames_loss(scores: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of which frames show the event, and of which show its actor.

    Args:
        scores: [B, 2, Q, F].
    """
    inside, shown = scores.float().unbind(1)
    frame = torch.arange(scores.shape[-1], device=scores.device)
    target = (frame >= batch.spans[..., :1]) & (frame <= batch.spans[..., 1:])
    target = target & (batch.spans[..., :1] >= 0)
    asked = batch.grounds
    weight = (1 + NEAR * shows_colour(batch))[asked]
    cover, seen = (
        functional.binary_cross_entropy_with_logits(part[asked], truth[asked].float(), weight)
        for part, truth in ((inside, target), (shown, batch.shown))
    )
    return cover, seen


def shows_colour(batch: PackedBatch) -> Tensor:
    """Whether a frame shows anything of the colour that a question is about, float [B, Q, F]."""
    colours = batch.table[..., : PARTS["shape"]].any(-1).transpose(1, 2)
    asked = batch.said[..., list(SAID).index("colour")].clamp(min=0)  # -1: no description
    return colours.gather(1, asked[..., None].expand(-1, -1, colours.shape[-1])).float()


@dataclass
class Output:
    """Losses and hits of one step; hits are (correct, all) pairs."""

    loss: Tensor
    answer_loss: Tensor
    pointer_loss: Tensor
    hits: dict[str, tuple[int, int]]


def forward(
    model, pointer: Pointer, batch: PackedBatch, packer: Packer, pointer_layer: int
) -> Output:
    """One packed forward pass with its losses."""
    embed = model.llm.get_input_embeddings()
    windows, device = len(batch.features), batch.features.device
    before, shared = (
        embed(torch.tensor(ids).to(device)).expand(windows, -1, -1)
        for ids in (packer.before, packer.shared)
    )
    frames = model.projector(batch.features)
    embeds = torch.cat([before, frames.to(before), shared, embed(batch.ids)], 1)
    prefix = packer.prefix_length
    allowed = packed_mask(batch.owners, prefix, batch.visible)
    first_positions = torch.arange(prefix, device=device).expand(windows, -1)
    positions = torch.cat([first_positions, batch.positions], 1)
    result = packed_forward(
        model.llm,
        batch.owners,
        prefix,
        batch.visible,
        inputs_embeds=embeds,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    packed = result.last_hidden_state[:, prefix:]
    wanted = batch.labels != -100
    logits = model.llm.lm_head(packed[wanted]).float()
    labels = batch.labels[wanted]
    answer_loss = functional.cross_entropy(logits, labels)
    middle = result.hidden_states[pointer_layer]
    first_frame = len(packer.before)
    asks = middle[:, prefix:].gather(1, batch.ask[..., None].expand(-1, -1, middle.shape[-1]))
    scores = pointer(asks, middle[:, first_frame : first_frame + FRAMES_PER_WINDOW])
    pointer_loss = pointer.loss(scores, batch)
    hits = count_hits(batch, wanted, logits.argmax(-1), labels, scores)
    decision_loss = decision(model, packed, batch)
    frames = middle[:, first_frame : first_frame + FRAMES_PER_WINDOW]
    readout_loss, read = pointer.readout.loss(frames, asks, batch.table, batch.said)
    hits |= read
    digit_loss = pointer.digit_loss(middle[:, prefix:], frames, batch)
    head_loss = head_losses(model, middle, allowed, positions, batch, packer, pointer_layer)
    total = answer_loss + 1.5 * decision_loss + 0.3 * pointer_loss
    total = (
        total
        + 0.3 * digit_loss
        + 0.3 * head_loss
        + 0.2 * readout_loss
        + written_digits(model, packed, batch)
    )
    return Output(total, answer_loss, pointer_loss, hits)


def first_heads(
    llm, layer_index: int, states: Tensor, positions: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, count, T, d] of a layer's first heads, with positions in them.

    Args:
        states: [B, T, H], what comes into the layer.
    """
    layer = llm.model.layers[layer_index]
    states = layer.input_layernorm(states)
    cos, sin = llm.model.rotary_emb(states, positions)
    size = (count, layer.self_attn.head_dim)
    query, key = (
        project(states)[..., : math.prod(size)].unflatten(-1, size).transpose(1, 2)
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    return apply_rotary_pos_emb(query, key, cos, sin)


def head_losses(
    model, middle, allowed, positions, batch: PackedBatch, packer: Packer, layer_index: int
) -> Tensor:
    """Where three attention heads of the layer above the pointers look.

    Head 0, when a digit is due, at the frame that carries the digit. A head learns to copy a digit
    only once it looks at the right frame, and is drawn to the right frame only once copying pays;
    asking for the first breaks the circle. Heads 1 and 2, from the last token of a question, at
    the frames of the event and of its actor. These are the LLM's own queries and keys, nothing is
    added to the model.
    """
    query, key = first_heads(model.llm, layer_index, middle, positions, 3)
    head_dim, first_frame = query.shape[-1], len(packer.before)
    rows = torch.arange(len(middle), device=middle.device)[:, None]
    asks = query[rows, 1:, packer.prefix_length + batch.ask].transpose(1, 2)  # [B, 2, Q, d]
    frames = key[:, 1:, first_frame : first_frame + FRAMES_PER_WINDOW]
    cover, seen = frames_loss(asks @ frames.transpose(-1, -2) / math.sqrt(head_dim), batch)
    looks = 4 * cover + 8 * seen
    row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
    if not len(row):
        return looks
    losses = []
    for end, offsets in enumerate(DIGIT_OFFSETS):
        for offset in offsets:
            column = packer.prefix_length + batch.ask[row, question] + offset
            scores = torch.einsum("nd,ntd->nt", query[row, 0, column], key[row, 0])
            scores = scores.float() / math.sqrt(head_dim)
            scores = scores.masked_fill(~allowed[row, 0, column], -1e9)
            target = first_frame + batch.spans[row, question, end]
            losses.append(functional.cross_entropy(scores, target))
    return torch.stack(losses).mean() + looks


def written_digits(model, packed: Tensor, batch: PackedBatch) -> Tensor:
    """Cross-entropy of the digits of present answers, the tokens that say when."""
    row, question = (batch.spans[..., 0] >= 0).nonzero(as_tuple=True)
    if not len(row):
        return packed.sum() * 0
    offsets = torch.tensor([offset for end in DIGIT_OFFSETS for offset in end]).to(row)
    column = batch.ask[row, question][:, None] + offsets
    logits = model.llm.lm_head(packed[row[:, None], column]).float()
    return functional.cross_entropy(
        logits.flatten(0, 1), batch.labels[row[:, None], column].flatten()
    )


def decision(model, packed: Tensor, batch: PackedBatch) -> Tensor:
    """Cross-entropy of the first answer token about events: "From" or "Not", "yes" or "no".

    Most tokens of an answer follow from the grammar; the one that decides presence would drown in
    the mean over all of them.
    """
    row, question = (batch.said[..., 0] >= 0).nonzero(as_tuple=True)
    column = batch.ask[row, question]
    logits = model.llm.lm_head(packed[row, column]).float()
    return functional.cross_entropy(logits, batch.labels[row, column])


def count_hits(batch, wanted, best, labels, scores) -> dict[str, tuple[int, int]]:
    """Right first tokens of present and absent questions, right later tokens, pointers within 1."""
    correct = torch.zeros_like(wanted)
    correct[wanted] = best == labels
    first = correct.gather(1, batch.ask)
    present = batch.grounds & (batch.spans[..., 0] >= 0)
    absent = batch.grounds & (batch.spans[..., 0] < 0)
    owner_present = present.gather(1, batch.owners.clamp(min=0)) & (batch.owners >= 0)
    later = wanted & owner_present
    captions = batch.said[..., 0] < 0
    caption = wanted & captions.gather(1, batch.owners.clamp(min=0)) & (batch.owners >= 0)
    otherwise = ~captions & ~batch.grounds
    near = (scores[:, 0].argmax(-1) - batch.spans[..., 0]).abs() <= 1
    shown, said = scores[:, 3][batch.grounds], batch.shown[batch.grounds]
    return {
        "shown": (int((shown[said] > 0).sum()), int(said.sum())),
        "not_shown": (int((shown[~said] <= 0).sum()), int((~said).sum())),
        "present": (int(first[present].sum()), int(present.sum())),
        "absent": (int(first[absent].sum()), int(absent.sum())),
        "other_stages": (int(first[otherwise].sum()), int(otherwise.sum())),
        "span_tokens": (int(correct[later].sum()), int(later.sum())),
        "caption_tokens": (int(correct[caption].sum()), int(caption.sum())),
        "pointer": (int(near[present].sum()), int(present.sum())),
    }
