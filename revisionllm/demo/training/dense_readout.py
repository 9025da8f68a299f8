"""Training only: what the frames show and what a question says, read half-way up the dense LLM.

An LLM of this size finds colours and places by itself and then stays with them for hours: sentences
that differ in a shape, a size or an action get the same answer. Linear read-outs of its hidden
states make it carry these too, after which the answers learn to use them. Every colour has a slot
in a frame, a linear map of its hidden state, and all slots are read by the same maps, so that an
action looks the same in every colour.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from revisionllm.demo.world.language import PHRASES, Description
from revisionllm.demo.world.plans import COLOURS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES

ACTIONS = tuple(sorted(PHRASES))
WAYS = ("left", "right")
SLOT = 32
# What a question can say; the last class of each is that it does not.
SAID = {
    "action": ACTIONS,
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": WAYS,
    "place": PLACES,
    "other_colour": COLOURS,
    "other_shape": SHAPES,
}
# Columns of a slot's truth: shapes shown, actions going on, motion to the left or right, sizes
PARTS = {"shape": len(SHAPES), "action": len(ACTIONS), "way": len(WAYS), "size": len(SIZES)}
NUM_SHOWN = sum(PARTS.values())
# What a question says of somebody, told apart by colour (`wished_table`)
BOUND = {"shape": SHAPES, "size": SIZES, "direction": WAYS, "other_shape": SHAPES}
BINDING = 5.0
WEIGHTS = {"shape": 1.0, "action": 4.0, "way": 4.0, "size": 1.0}  # what moves is learned last


def said(description: Description | None) -> list[int]:
    """Class of each of `SAID`; all -1 for no description."""
    if description is None:
        return [-1] * len(SAID)
    size, colour, shape = description.actor
    _, other_colour, other_shape = description.other or (None, None, None)
    values = (
        *(description.action, size, colour, shape),
        *(description.direction, description.place, other_colour, other_shape),
    )
    return [
        names.index(value) if value in names else len(names)
        for names, value in zip(SAID.values(), values, strict=True)
    ]


def shown_table(seen: list, facts: list, times_s: np.ndarray) -> np.ndarray:
    """What each frame shows, bool [F, 8 colours, NUM_SHOWN].

    Args:
        seen: (place, visible actors) of each of the F frames.
        facts: facts that may hold at some of them.
        times_s: [F], film seconds of the frames.
    """
    table = np.zeros((len(seen), len(COLOURS), NUM_SHOWN), bool)
    first_action, first_way = len(SHAPES), len(SHAPES) + len(ACTIONS)
    for frame, (_, actors) in enumerate(seen):
        for actor in actors:
            row = table[frame, COLOURS.index(actor.colour)]
            row[SHAPES.index(actor.shape)] = True
            row[first_way + len(WAYS) + SIZES.index(actor.size)] = True
    for fact in facts:
        colour = COLOURS.index(fact.actor.colour)
        during = (times_s >= fact.start_s) & (times_s < fact.end_s)
        table[during, colour, first_action + ACTIONS.index(fact.action)] = True
        if fact.direction:
            table[during, colour, first_way + WAYS.index(fact.direction)] = True
    return table


def wished_table(said_NS: Tensor) -> Tensor:
    """What belongs together in a question: float [N, 8 colours, columns of `BOUND`].

    1 where the actor of that colour has that shape, size and direction, and its partner of that
    colour that shape; 0 elsewhere.

    Args:
        said_NS: classes of `SAID`.
    """
    column = {name: number for number, name in enumerate(SAID)}
    parts = []
    for name, values in BOUND.items():
        colour = said_NS[:, column["other_colour" if name.startswith("other") else "colour"]]
        value = said_NS[:, column[name]]
        pair = (
            functional.one_hot(colour, len(COLOURS) + 1)[:, : len(COLOURS), None]
            * functional.one_hot(value, len(values) + 1)[:, None, : len(values)]
        )
        parts.append(pair)
    return torch.cat(parts, -1).float()


def readout_weights() -> Tensor:
    """Weights [8 colours, NUM_SHOWN] in the loss.

    0 for the pairs of colour and shape that no training film shows: a read-out that says so is not
    wrong there, and of no use elsewhere.
    """
    row = [WEIGHTS[name] for name, size in PARTS.items() for _ in range(size)]
    weights = torch.tensor(row).repeat(len(COLOURS), 1)
    for colour, shape in HELD_OUT_PAIRS:
        weights[COLOURS.index(colour), SHAPES.index(shape)] = 0
    return weights


class FrameReadout(nn.Module):
    """Reads what frames show out of their tokens or hidden states, linearly."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.slots = nn.Linear(hidden_size, len(COLOURS) * SLOT)
        self.frames = nn.Linear(SLOT, NUM_SHOWN)
        nn.init.constant_(self.frames.bias, -4.0)
        self.register_buffer("weights", readout_weights(), persistent=False)

    def frame_loss(
        self, frames_BFH: Tensor, table_BFCN: Tensor
    ) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """Cross-entropy of what a frame shows, and (seen, all) pairs of the things that it does."""
        slots = self.slots(frames_BFH).unflatten(-1, (len(COLOURS), SLOT))
        logits = self.frames(slots).float()
        truth = table_BFCN.to(logits)
        each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        loss = (each * self.weights).sum((-1, -2)).mean()
        parts = zip(
            PARTS, *(x.split(list(PARTS.values()), -1) for x in (logits, table_BFCN)), strict=True
        )
        hits = {
            f"saw_{name}": (int((part[want] > 0).sum()), int(want.sum()))
            for name, part, want in parts
        }
        return loss, hits


class Readout(FrameReadout):
    """The read-outs half-way up: of frame tokens, and of each question's last token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.words = nn.Linear(hidden_size, sum(len(names) + 1 for names in SAID.values()))
        self.bound = nn.Linear(hidden_size, len(COLOURS) * sum(map(len, BOUND.values())))

    def loss(
        self, frames_BFH: Tensor, asks_BQH: Tensor, table_BFCN: Tensor, said_BQS: Tensor
    ) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """Cross-entropies, summed over what a frame shows and what a question says, and squared
        error of what belongs together in the question.

        Logits of a red star can be the sum of those of red and star, and a question that knows no
        more finds a red circle beside a blue star, too. Numbers that are 1 for a red star and 0 for
        every other pair cannot: they take a feature of the pair.

        Returns:
            The loss, and (right, all) pairs: words told right, things on screen that were seen.
        """
        loss, hits = self.frame_loss(frames_BFH, table_BFCN)
        sizes = [len(names) + 1 for names in SAID.values()]
        asked = said_BQS[..., 0] >= 0
        classes = said_BQS[asked]
        guesses = self.words(asks_BQH[asked]).float().split(sizes, -1)
        for number, (name, guess) in enumerate(zip(SAID, guesses, strict=True)):
            loss = loss + functional.cross_entropy(guess, classes[:, number])
            right = guess.argmax(-1) == classes[:, number]
            hits[f"said_{name}"] = (int(right.sum()), len(right))
        wished = wished_table(classes)
        bound = self.bound(asks_BQH[asked]).float().unflatten(-1, wished.shape[1:])
        loss = loss + BINDING * (bound - wished).square().sum((-1, -2)).mean()
        true_ones = bound[wished > 0]
        hits["bound"] = (int((true_ones > 0.5).sum()), len(true_ones))
        return loss, hits
