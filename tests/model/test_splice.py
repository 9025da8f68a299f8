"""Visual tokens in the place of `<video>`: literal tensors in, literal tensors out."""

from __future__ import annotations

import pytest
import torch

from revisionllm.constants import IGNORE_INDEX as X
from revisionllm.constants import VIDEO_TOKEN_ID as V
from revisionllm.model.splice import splice


def embed(ids):
    """Token 7 becomes [7, 7]."""
    return ids[..., None].expand(*ids.shape, 2).float()


def video(start, num_tokens):
    """Tokens start, start + 1, ... as [N, 2]."""
    return embed(torch.arange(start, start + num_tokens))


IDS = torch.tensor([[1, V, 2, V, 3], [4, 5, V, 6, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
LABELS = torch.tensor([[X, X, X, X, 3], [X, X, X, 6, X]])
VIDEOS = [[video(100, 2), video(200, 1)], [video(300, 3)]]


def first(embeds):
    return embeds[..., 0].int().tolist()


def test_two_videos_in_one_row_and_right_padding():
    found = splice(IDS, VIDEOS, embed, attention_mask=MASK, labels=LABELS)
    assert first(found.inputs_embeds) == [[1, 100, 101, 2, 200, 3], [4, 5, 300, 301, 302, 6]]
    assert found.labels.tolist() == [[X, X, X, X, X, 3], [X, X, X, X, X, 6]]
    assert found.attention_mask.all()
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_left_padding_keeps_all_parts_in_step():
    videos = [VIDEOS[0], [video(300, 1)]]
    found = splice(IDS, videos, embed, attention_mask=MASK, labels=LABELS, padding_side="left")
    assert first(found.inputs_embeds)[1] == [0, 0, 4, 5, 300, 6]
    assert found.attention_mask[1].tolist() == [False, False, True, True, True, True]
    assert found.labels[1].tolist() == [X, X, X, X, X, 6]
    assert found.position_ids[1].tolist() == [0, 0, 0, 1, 2, 3]


def test_video_first_and_last():
    ids = torch.tensor([[V, 1, V]])
    found = splice(ids, [[video(10, 1), video(20, 2)]], embed)
    assert first(found.inputs_embeds) == [[10, 1, 20, 21]]
    assert (found.labels == X).all()


def test_text_only_row_ignores_its_video():
    found = splice(torch.tensor([[1, V], [2, 3]]), [[video(10, 1)], [video(20, 1)]], embed)
    assert first(found.inputs_embeds) == [[1, 10], [2, 3]]


@pytest.mark.parametrize("videos", [[[], [video(0, 1)]], [[video(0, 1)] * 3, [video(0, 1)]]])
def test_places_and_videos_must_agree(videos):
    with pytest.raises(ValueError, match="row 0: 2 <video> in the prompt"):
        splice(IDS, videos, embed, attention_mask=MASK)


def test_truncation_is_reported(capsys):
    found = splice(IDS, VIDEOS, embed, attention_mask=MASK, labels=LABELS, max_length=5)
    assert found.inputs_embeds.shape == (2, 5, 2)
    assert "cut from 6 to 5 positions" in capsys.readouterr().err


def test_gradients_reach_text_and_video():
    table = torch.nn.Embedding(10, 2)
    tokens = video(1, 2).requires_grad_()
    splice(torch.tensor([[1, V, 2]]), [[tokens]], table).inputs_embeds.sum().backward()
    assert torch.equal(tokens.grad, torch.ones(2, 2))
    assert table.weight.grad.sum() == 4
