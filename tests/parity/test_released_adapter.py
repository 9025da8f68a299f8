"""The CLIP adapter's direct outputs, by output kind and with and without segments."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_assets import ASSETS, dense_images, numbers, query, released, segment_images

from revisionllm.model.clip_adapter import ClipAdapter, sine_positions
from revisionllm.model.loading import load_model

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def expected():
    return numbers("parity_clipencoder")


@pytest.fixture(scope="module")
def adapter():
    return released("ckpt_stage2_cls", stage="long").projector


def words(batch):
    return tuple(query(batch).values())


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


def test_position_table(expected):
    assert torch.equal(sine_positions(7, 768), expected["pos_embed_T7"][0])
    rows = sine_positions(250, 768)[[0, 124, 249]]
    assert torch.equal(rows, expected["pos_embed_T250_rows_0_124_249"][0])


@pytest.mark.parametrize(
    ("ours", "released_names"),
    [
        ("segment", ["cls_hier0_b3", "cls_hier1_b3", "temporal_hier1_b3", "alternate_step0_b3"]),
        ("frames", ["temporal_hier0_b3", "alternate_step1_b3"]),
        ("all", ["all_hier0_b3"]),
    ],
)
@torch.no_grad()
def test_three_queries(adapter, expected, ours, released_names):
    found = adapter(dense_images(), *words(3), output=ours)
    for name in released_names:
        close(found, expected[name])


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        ("segment", "cls_hier0_b1_len100"),
        ("segment", "cls_hier1_b1_len100"),
        ("segment", "temporal_hier1_b1_len100"),
        ("frames", "temporal_hier0_b1_len100"),
        ("all", "all_hier0_b1_len100"),
    ],
)
@torch.no_grad()
def test_one_query_hundred_frames(adapter, expected, ours, name):
    close(adapter(dense_images()[:1, :100], *words(1), output=ours), expected[name])


@torch.no_grad()
def test_33_segments(adapter, expected):
    found = adapter(segment_images(33), *words(1))
    close(found[0], expected["cls_hier1_v33"][:, 0])


@pytest.mark.slow
@torch.no_grad()
def test_100_segments(adapter, expected):
    found = adapter(segment_images(100), *words(1))
    close(found[0], expected["cls_hier1_v100"][:, 0])


@torch.no_grad()
def test_bf16_checkpoint_read_in_float32(expected):
    adapter = released("ckpt_sparse", stage="sparse").projector
    close(adapter(dense_images()[:, :100], *words(3)), expected["sparse_cls_b3_len100"])


@torch.no_grad()
def test_the_legacy_encoder_without_text_layers(adapter, tmp_path):
    """28 tensors instead of 52; the sentence is not looked at."""
    shutil.copytree(ASSETS / "ckpt_stage2_cls", tmp_path / "x")
    path = tmp_path / "x" / "non_lora_trainables.bin"
    path.chmod(0o644)
    tensors = torch.load(path, weights_only=True)
    kept = {key: tensor.clone() for key, tensor in tensors.items() if "t2v_encoder" not in key}
    assert len(kept) == 28
    torch.save(kept, path)
    base = str(ASSETS / "ckpt_base")
    model = load_model(tmp_path / "x", base=base, stage="long", device="cpu", dtype="float32")
    assert model.config.adapter.options["num_text_layers"] == 0
    plain = ClipAdapter(768, 64, num_text_layers=0).eval()
    plain.load_state_dict({k: t for k, t in adapter.state_dict().items() if "t2v_" not in k})
    close(model.projector(dense_images(), *words(3)), plain(dense_images(), *words(3)))
