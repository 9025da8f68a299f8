"""What the demo's CLIP is asked besides captions, in training only: which thing is where, and how.

Captions are few bits for a picture, and a CLIP from nothing has seen few pictures. Three questions
with many bits teach its image tower to see, in the order in which they are used:

- close-ups (`train_closeups`): colour, shape, size and turn of one thing in a small piece of a
  picture, asked of the first three stages, which cost a tenth there;
- spots: the same at each thing's place in the whole picture, asked of the third stage's map;
- attributes: all of it at once, and the places, asked of the image features themselves, linearly:
  the frame adapter of the LLM is linear too.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from revisionllm.demo.training.loop import Loop
from revisionllm.demo.world.plans import COLOURS, SHAPES

log = logging.getLogger("train_clip")
CLOSEUP = 32  # pixels
JITTER = 6  # how far a close-up's middle is from its thing's, pixels
SLOT = 16


class AttributeReadout(nn.Module):
    """Reads what is where out of image features.

    Every colour has a slot, a linear map of the features; what a slot says about shape and pose is
    read by one map for all colours, so that a shape looks the same in every colour.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.slots = nn.Linear(embed_dim, len(COLOURS) * SLOT)
        self.shape = nn.Linear(SLOT, len(SHAPES))
        self.pose = nn.Linear(SLOT, 5)
        nn.init.constant_(self.shape.bias, -3.0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Image features [N, D] to shape logits [N, 8, 6] and `pose_values` [N, 8, 5]."""
        slots = self.slots(self.norm(features)).unflatten(-1, (len(COLOURS), SLOT))
        return self.shape(slots), self.pose(slots)

    def loss(self, features: Tensor, shapes: Tensor, poses: Tensor) -> Tensor:
        """Binary cross-entropy of the pairs shown and squared error of their poses."""
        logits, values = self(features)
        each = nn.functional.binary_cross_entropy_with_logits(
            logits, shapes.clamp(min=0), reduction="none"
        )
        error = (values - poses.nan_to_num()).square()[~poses.isnan()].sum()
        return ((each * (shapes >= 0)).sum() + error / 4) / len(features)

    def scores(self, features: Tensor, shapes: Tensor, poses: Tensor) -> dict[str, float]:
        """Right shapes of colours that show once; mean error of place (in frame widths or heights)
        and of turn (in turns; 0.25 is chance)."""
        logits, values = self(features)
        known = single_things(shapes, poses)
        right = logits.argmax(-1)[known] == shapes.argmax(-1)[known]
        want, got = poses[known], values[known]
        turn = torch.atan2(*want[:, 3:].T) - torch.atan2(*got[:, 3:].T)
        turn = torch.atan2(turn.sin(), turn.cos()).abs() / (2 * torch.pi)
        off = (got - want).abs() / 4
        return {
            "shape_of_colour": float(right.float().mean()),
            "x_error": float(off[:, 0].mean()),
            "y_error": float(off[:, 1].mean()),
            "turn_error": float(turn.mean()),
        }


class SpotReadout(nn.Module):
    """Reads what stands at a spot of the third stage's map: colour, shape, size and turn."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        channels = visual.layer3[-1].bn3.num_features
        self.read = nn.Linear(channels, len(COLOURS) + len(SHAPES) + 3)
        self.right = 0.0  # share of right shapes at the last call

    def forward(
        self, maps: Tensor, places: Tensor, colour: Tensor, shape: Tensor, pose: Tensor
    ) -> Tensor:
        """Loss over M things.

        Args:
            maps: [M, C, h, w], of each thing's picture; places: [M, 2], x and y in -1..1.
            colour, shape: [M] indices; pose: [M, 5] of `pose_values`.
        """
        at_spot = nn.functional.grid_sample(
            maps.float(), places[:, None, None], align_corners=False, padding_mode="border"
        )[..., 0, 0]
        parts = self.read(at_spot).split((len(COLOURS), len(SHAPES), 3), dim=1)
        self.right = int((parts[1].argmax(-1) == shape).sum()), len(shape)
        named = nn.functional.cross_entropy(parts[0], colour)
        named = named + nn.functional.cross_entropy(parts[1], shape)
        return named + 2 * nn.functional.mse_loss(parts[2], pose[:, 2:])

    def of_pictures(self, maps: Tensor, shapes: Tensor, poses: Tensor) -> Tensor:
        """Loss over all things of pictures [N, C, h, w] that stand alone in their colour."""
        picture, colour = single_things(shapes, poses).nonzero(as_tuple=True)
        pose = poses[picture, colour]
        shape = shapes[picture, colour].argmax(-1)
        return self(maps[picture], pose[:, :2] / 2, colour, shape, pose)


def single_things(shapes: Tensor, poses: Tensor) -> Tensor:
    """[N, 8]: colours that one thing has or mainly has, whole (see `clip_data.CaptionedFrame`)."""
    return ~poses[..., 0].isnan() & (shapes.amax(-1) > 0)


def _closeups(pictures: Tensor, shapes: Tensor, poses: Tensor, generator: torch.Generator):
    """One close-up of a thing of each picture that has one: pieces, places, colour, shape, pose."""
    known = single_things(shapes, poses)
    some = known.any(-1)
    pictures, shapes, poses = pictures[some], shapes[some], poses[some]
    colour = torch.multinomial(known[some].float(), 1, generator=generator)[:, 0]
    rows = torch.arange(len(colour))
    pose, size = poses[rows, colour], pictures.shape[-1]
    middle = (pose[:, :2] + 2) / 4 * size
    shift = (2 * torch.rand(len(rows), 2, generator=generator) - 1) * JITTER
    corner = (middle - CLOSEUP / 2 + shift).round().clamp(0, size - CLOSEUP).long()
    pieces = [
        picture[:, y : y + CLOSEUP, x : x + CLOSEUP]
        for picture, (x, y) in zip(pictures, corner.tolist(), strict=True)
    ]
    places = (middle - corner) / CLOSEUP * 2 - 1
    return torch.stack(pieces), places, colour, shapes[rows, colour].argmax(-1), pose


def train_closeups(
    visual, spots: SpotReadout, pool, *, steps: int, lr: float, seed: int, bf16: bool
):
    """Teach the first three stages of the image tower on close-ups.

    Args:
        visual: open_clip's ModifiedResNet; trained in place, as is `spots`.
        pool: (pictures float32 [N, 3, s, s], shapes, poses) to draw from.
    """
    device = next(visual.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    stages = [visual.layer1, visual.layer2, visual.layer3]
    kept = ("attnpool", "layer4")
    parameters = [p for n, p in visual.named_parameters() if not n.startswith(kept)]
    parameters += list(spots.parameters())
    loop = Loop(
        "close-ups",
        {"visual": visual, "spots": spots},
        parameters,
        steps=steps,
        lr=lr,
        warmup=steps // 20,
        bf16=bf16,
    )
    for _ in loop:
        rows = torch.randint(0, len(pool[0]), (128,), generator=generator)
        pieces, *asked = _closeups(*(part[rows] for part in pool), generator)
        pieces, *asked = (part.to(device) for part in (pieces, *asked))
        with loop.autocast():
            maps = visual.stem(pieces.contiguous(memory_format=torch.channels_last))
            for stage in stages:
                maps = stage(maps)
        loop.take(spots(maps, *asked), {"shape": spots.right})
