"""Training losses of the demo's dense LLM: what they ask for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.demo.training.dense_losses import NEAR, first_heads, frames_loss, shows_colour
from revisionllm.demo.training.dense_readout import (
    BOUND,
    NUM_SHOWN,
    Readout,
    readout_weights,
    said,
    wished_table,
)
from revisionllm.demo.world.language import Description
from revisionllm.demo.world.plans import COLOURS, HELD_OUT_PAIRS, SHAPES, SIZES

JUMP = Description("jump", ("big", "red", "cross"), "left", (None, "blue", "circle"), None)
SPIN = Description("spin", (None, "pink", "star"), None, None, "snow")
COLUMNS = [(name, value) for name, values in BOUND.items() for value in values]


def test_what_a_question_binds_together():
    table = wished_table(torch.tensor([said(JUMP), said(SPIN)]))
    assert table.shape == (2, len(COLOURS), len(COLUMNS))
    found = {(row, COLOURS[c], *COLUMNS[column]) for row, c, column in table.nonzero().tolist()}
    assert found == {
        *((0, "red", *pair) for pair in (("shape", "cross"), ("size", "big"))),
        (0, "red", "direction", "left"),
        (0, "blue", "other_shape", "circle"),
        (1, "pink", "shape", "star"),
    }


def test_sums_of_colours_and_shapes_do_not_bind_but_say_both():
    """The reason for the squared error: states that only add up let the words be told from each
    other without error, and a linear read-out of them misses most of the pairs."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    classes = torch.tensor([said(Description("spin", (None, *p), None, None, None)) for p in pairs])
    wished = wished_table(classes).flatten(1)
    summed = torch.cat(
        [
            torch.eye(len(COLOURS)).repeat_interleave(len(SHAPES), 0),
            torch.eye(len(SHAPES)).repeat(8, 1),
        ],
        1,
    )
    best = summed @ torch.linalg.lstsq(summed, wished, driver="gelsd").solution
    assert (best - wished).square().sum() > 0.7 * wished.sum()
    for features, few in ((summed, False), (torch.eye(len(pairs)), True)):
        readout = Readout(features.shape[1])
        readout.bound.weight.data = torch.linalg.lstsq(
            features, wished, driver="gelsd"
        ).solution.T.contiguous()
        readout.bound.bias.data.zero_()
        frames = torch.zeros(1, 1, features.shape[1])
        table = torch.zeros(1, 1, len(COLOURS), NUM_SHOWN, dtype=torch.bool)
        hits = readout.loss(frames, features[None], table, classes[None])[1]
        assert hits["bound"] == (len(pairs) if few else 0, len(pairs))


def _batch(num_frames: int, seed: int = 0) -> SimpleNamespace:
    """Two windows of two questions: one present, one absent, a caption and another absent one."""
    rng = np.random.default_rng(seed)
    table = torch.zeros(2, num_frames, len(COLOURS), NUM_SHOWN, dtype=torch.bool)
    table[0, 2:6, COLOURS.index("red"), SHAPES.index("cross")] = True
    table[0, 4:, COLOURS.index("pink"), SHAPES.index("ring")] = True
    return SimpleNamespace(
        table=table,
        said=torch.tensor([[said(JUMP), said(SPIN)], [said(None), said(SPIN)]]),
        spans=torch.tensor([[[3, 5], [-1, -1]], [[-1, -1], [-1, -1]]]),
        grounds=torch.tensor([[True, True], [False, True]]),
        shown=torch.from_numpy(rng.random((2, 2, num_frames)) < 0.5),
    )


def test_frames_that_show_the_colour_asked_for():
    near = shows_colour(_batch(8))
    assert near[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert near[0, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not near[1, 1].any()


def test_frames_near_to_what_is_asked_count_more():
    """Against a loop over questions and frames."""
    torch.manual_seed(0)
    batch, scores = _batch(8), torch.randn(2, 2, 2, 8)
    near, wanted = shows_colour(batch), [[], []]
    for b, q in batch.grounds.nonzero().tolist():
        first, last = batch.spans[b, q].tolist()
        for frame in range(8):
            truths = (first <= frame <= last and first >= 0, bool(batch.shown[b, q, frame]))
            for kind, truth in enumerate(truths):
                score = scores[b, kind, q, frame]
                loss = -torch.nn.functional.logsigmoid(score if truth else -score)
                wanted[kind].append(loss * (1 + NEAR * near[b, q, frame]))
    for got, want in zip(frames_loss(scores, batch), wanted, strict=True):
        torch.testing.assert_close(got, torch.stack(want).mean())


def test_first_heads_are_those_of_the_model():
    """The scores are Hugging Face's attention before the softmax."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        attn_implementation="eager",
    )
    llm = LlamaForCausalLM(config).eval()
    positions = torch.tensor([[0, 1, 2, 3, 4, 9], [0, 1, 2, 2, 3, 4]])
    with torch.no_grad():
        result = llm(
            inputs_embeds=torch.randn(2, 6, 24),
            position_ids=positions,
            output_attentions=True,
            output_hidden_states=True,
        )
        query, key = first_heads(llm, 1, result.hidden_states[1], positions, 3)
    assert query.shape == key.shape == (2, 3, 6, 6)
    scores = query @ key.transpose(-1, -2) / 6**0.5
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(scores.softmax(-1), result.attentions[1][:, :3])


def test_pairs_kept_from_training_are_not_asked_of_frames():
    weights = readout_weights()
    for colour, shape in HELD_OUT_PAIRS:
        assert weights[COLOURS.index(colour), SHAPES.index(shape)] == 0
    assert (weights == 0).sum() == len(HELD_OUT_PAIRS)
    assert set(SIZES) <= {value for _, value in COLUMNS}
