"""Puts visual tokens in the place of `<video>` in a batch of prompts, keeping all parts in step.

Legend: B batch, P positions of a prompt, M positions after the splice, N visual tokens, H LLM
width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID


@dataclass
class Spliced:
    """A batch ready for the LLM: embeddings [B, M, H]; mask bool, labels and positions [B, M].

    Padding has embedding 0, mask False, label `IGNORE_INDEX` and position 0.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor


def splice(
    input_ids: Tensor,
    visuals: Sequence[Sequence[Tensor]],
    embed_tokens: Callable[[Tensor], Tensor],
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    padding_side: str = "right",
    max_length: int | None = None,
) -> Spliced:
    """Replace each `VIDEO_TOKEN_ID` by the visual tokens of the next video of its row.

    Args:
        input_ids: [B, P] token ids with `VIDEO_TOKEN_ID` where videos go.
        visuals: per row its videos in order, each [N, H]. Where a row has no place for a video, its
            videos are ignored (a text-only row of a mixed batch).
        embed_tokens: token ids to embeddings.
        attention_mask: [B, P], nonzero for real tokens; None: all are.
        labels: [B, P]; None: nothing is supervised.
        padding_side: where the padding of the result goes, `right` or `left`.
        max_length: longest M; what is cut off is reported on stderr.

    Raises:
        ValueError: a row has more or fewer places than videos.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
    rows = []
    for row, keep in enumerate(mask.bool()):
        ids = input_ids[row][keep]
        embeds, row_labels = _splice_row(ids, labels[row][keep], visuals[row], embed_tokens, row)
        rows.append((embeds, row_labels))
    return _pad(_truncate(rows, max_length), padding_side)


def _splice_row(
    ids: Tensor,
    labels: Tensor,
    videos: Sequence[Tensor],
    embed_tokens: Callable[[Tensor], Tensor],
    row: int,
) -> tuple[Tensor, Tensor]:
    places = (ids == VIDEO_TOKEN_ID).nonzero().flatten().tolist()
    if places and len(places) != len(videos):
        raise ValueError(f"row {row}: {len(places)} <video> in the prompt, {len(videos)} videos")
    text = embed_tokens(ids[ids != VIDEO_TOKEN_ID])
    embeds, parts, done = [], [], 0
    for count, (place, video) in enumerate(zip(places, videos, strict=False)):
        embeds += [text[done - count : place - count], video.to(text)]
        parts += [labels[done:place], labels.new_full((len(video),), IGNORE_INDEX)]
        done = place + 1
    return torch.cat([*embeds, text[done - len(places) :]]), torch.cat([*parts, labels[done:]])


def _truncate(rows: list[tuple[Tensor, Tensor]], max_length: int | None) -> list:
    if max_length is None:
        return rows
    for index, (embeds, labels) in enumerate(rows):
        if len(embeds) > max_length:
            lost = int((labels[max_length:] != IGNORE_INDEX).sum())
            print(
                f"splice: row {index} cut from {len(embeds)} to {max_length} positions"
                f" (the model's maximum); {lost} supervised tokens are lost",
                file=sys.stderr,
            )
    return [(embeds[:max_length], labels[:max_length]) for embeds, labels in rows]


def _pad(rows: list[tuple[Tensor, Tensor]], padding_side: str) -> Spliced:
    lengths = [len(embeds) for embeds, _ in rows]
    device = rows[0][0].device

    def stack(parts: list[Tensor], value: float) -> Tensor:
        padded = []
        for part in parts:
            missing = max(lengths) - len(part)
            before_after = (missing, 0) if padding_side == "left" else (0, missing)
            padded.append(pad(part, (0, 0) * (part.dim() - 1) + before_after, value=value))
        return torch.stack(padded)

    return Spliced(
        inputs_embeds=stack([embeds for embeds, _ in rows], 0),
        attention_mask=stack([torch.ones(n, dtype=torch.bool, device=device) for n in lengths], 0),
        labels=stack([labels for _, labels in rows], IGNORE_INDEX),
        position_ids=stack([torch.arange(n, device=device) for n in lengths], 0),
    )
