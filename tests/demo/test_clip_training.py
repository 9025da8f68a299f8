"""Frames, targets and read-outs that teach the demo's CLIP, and its training end to end."""

from __future__ import annotations

import json

import numpy as np
import torch

from revisionllm.demo.training import clip_heads
from revisionllm.demo.training.clip_data import (
    Tint,
    as_films_show,
    attributes,
    mixed_tint,
    plan_films,
    pose_values,
    sample_frames,
)
from revisionllm.demo.training.film_features import film_features
from revisionllm.demo.world.plans import (
    COLOURS,
    HELD_OUT_PAIRS,
    RADIUS_PX,
    SHAPES,
    Actor,
    plan_film,
    pose_of,
)
from revisionllm.demo.world.render import RGB, frames


def test_attributes_name_what_a_frame_shows():
    plan = plan_film(3, 300.0, "train")
    for shot in plan.shots[:12]:
        time_s = (shot.start_s + shot.end_s) / 2
        shapes, poses = attributes(shot, time_s)
        shown = [
            (actor, pose_of(shot, i, time_s))
            for i, actor in enumerate(shot.actors)
            if pose_of(shot, i, time_s).visible and 0 < pose_of(shot, i, time_s).x < 1
        ]
        pairs = {(a.colour, a.shape) for a, _ in shown}
        assert {(COLOURS[c], SHAPES[s]) for c, s in np.argwhere(shapes == 1)} == pairs
        for actor, pose in shown:
            row = poses[COLOURS.index(actor.colour)]
            if sum(other.colour == actor.colour for other, _ in shown) == 1:
                radius = RADIUS_PX[actor.size] * pose.scale
                np.testing.assert_allclose(
                    row, pose_values(pose.x, pose.y, radius, pose.angle), atol=1e-6
                )
            else:
                assert np.isnan(row).all()


def test_tints_between_colours_keep_held_out_pairs_out():
    """Paint is between both colours; a held-out pair is neither nearly pure nor named."""
    rng = np.random.default_rng(0)
    most = {True: 0.0, False: 0.0}
    for _ in range(2000):
        tint = mixed_tint(Actor("big", "orange", "star"), rng)  # red stars are kept from training
        one, two = np.array(RGB[tint.colour]), np.array(RGB[tint.second])
        assert "orange" in (tint.colour, tint.second) and 0 <= tint.share <= 0.5
        np.testing.assert_allclose(tint.rgb, one * (1 - tint.share) + two * tint.share, atol=0.51)
        if tint.colour != "orange":
            is_held_out = (tint.colour, "star") in HELD_OUT_PAIRS
            most[is_held_out] = max(most[is_held_out], 1 - tint.share)
    assert 0.6 < most[True] <= 0.7 and most[False] > 0.95
    plans = plan_films(6, "train")
    drawn = sample_frames(plans, 200, rng, mixed=1.0)
    named = [colour for frame in drawn for colour in COLOURS if colour in frame.caption]
    pairs = {(c, s) for f in drawn for c in COLOURS for s in SHAPES if f"{c} {s}" in f.caption}
    assert len(named) > 50 and not pairs & HELD_OUT_PAIRS
    shares = np.concatenate([frame.shapes[frame.shapes > 0] for frame in drawn])
    assert (shares < 1).mean() > 0.5 and (shares == 1).any()


def test_attributes_of_a_tint_are_shared_by_both_colours():
    plan = plan_film(3, 300.0, "train")
    shot = next(s for s in plan.shots if len(s.actors) == 1 and 0 < s.first_poses[0].x < 1)
    time_s = shot.start_s + 0.1
    shapes, poses = attributes(shot, time_s, [Tint("red", "blue", 0.25)])
    shape = SHAPES.index(shot.actors[0].shape)
    red, blue = COLOURS.index("red"), COLOURS.index("blue")
    assert shapes[red, shape] == 0.75 and shapes[blue, shape] == 0.25 and shapes.sum() == 1
    assert not np.isnan(poses[red]).any() and np.isnan(poses[blue]).all()
    known = clip_heads.single_things(torch.from_numpy(shapes), torch.from_numpy(poses))
    assert known.nonzero().flatten().tolist() == [red]


def test_some_frames_are_as_decoded_from_a_film():
    rng = np.random.default_rng(0)
    drawn = sample_frames(plan_films(1, "train"), 6, rng)
    shown = as_films_show(drawn, 0.5, rng)
    changed = [(a.image != b.image).any() for a, b in zip(drawn, shown, strict=True)]
    assert sum(changed) == round(0.5 * len(drawn))
    error = [
        np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(drawn, shown, strict=True)
    ]
    assert max(error) < 6
    assert [a.caption for a in drawn] == [b.caption for b in shown]


def test_closeups_show_their_thing():
    """A close-up is cut out of its picture with the thing at the place that it names."""
    rng = np.random.default_rng(0)
    size, middle = 96, torch.tensor([[30.0, 50.0], [60.0, 20.0], [5.0, 90.0]])
    pictures = torch.from_numpy(rng.random((3, 3, size, size), np.float32))
    shapes, poses = torch.zeros(3, 8, 6), torch.full((3, 8, 5), torch.nan)
    for i, (x, y) in enumerate((middle / size).tolist()):
        shapes[i, i, 2 * i] = 1
        poses[i, i] = torch.tensor(pose_values(x, y, 14.0, 0.1))
        pictures[i, :, int(middle[i, 1]), int(middle[i, 0])] = 7.0
    generator = torch.Generator().manual_seed(0)
    pieces, places, colour, shape, _ = clip_heads._closeups(pictures, shapes, poses, generator)
    assert colour.tolist() == [0, 1, 2] and shape.tolist() == [0, 2, 4]
    for piece, place in zip(pieces, places, strict=True):
        x, y = ((place + 1) / 2 * clip_heads.CLOSEUP).round().long().tolist()
        assert (piece[:, y, x] == 7.0).all()


def test_read_out_loss_counts_what_is_known():
    """Pairs cut by the edge and colours without one thing add nothing."""
    readout = clip_heads.AttributeReadout(16)
    features = torch.randn(2, 16)
    shapes, poses = torch.zeros(2, 8, 6), torch.full((2, 8, 5), torch.nan)
    shapes[0, 1, 2], shapes[1, 3, 4] = 1, -1
    poses[0, 1] = torch.arange(5.0)
    logits, values = readout(features)
    chance = torch.sigmoid(logits)
    expected = -torch.log(chance[0, 1, 2]) + torch.log(1 - chance[0, 1, 2])
    expected = expected - torch.log(1 - chance).sum() + torch.log(1 - chance[1, 3, 4])
    expected = expected + (values[0, 1] - torch.arange(5.0)).square().sum() / 4
    torch.testing.assert_close(readout.loss(features, shapes, poses), expected / 2)


def test_features_of_a_film_are_those_of_its_frames():
    """Frames that repeat are encoded once; every row is its own frame's."""

    class Mean:
        calls = 0

        def encode_images(self, images):
            self.calls += len(images)
            return torch.from_numpy(images.reshape(len(images), -1)[:, ::97].astype(np.float32))

    clip, plan = Mean(), plan_film(7, 200.0, "train")
    rows = film_features(7, 200.0, "train", clip)
    images = np.stack(list(frames(plan, first=7 % 3, step=3)))
    np.testing.assert_array_equal(rows, Mean().encode_images(images).numpy().astype(np.float16))
    assert clip.calls < len(images)


def test_close_ups_are_not_learned_twice(tmp_path, monkeypatch):
    """Killed behind the close-ups, training goes on behind them."""
    from revisionllm.demo import train_clip
    from revisionllm.demo.training import clip_heads

    small = ["--steps", "1", "--batch_size", "16", "--films", "3", "--test_shots", "40"]
    small += ["--closeup_steps", "2", "--closeup_shots", "8", "--out", str(tmp_path)]
    small += ["--workers", "0"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clip_heads.AttributeReadout, "loss", killed)
        assert train_clip.main(small) == 130
    monkeypatch.setattr(clip_heads, "train_closeups", killed)
    assert train_clip.main(small) == 0


def test_training_resumes_and_loads(tmp_path):
    """The real command at toy size gives a CLIP that loads; a finished one is not trained again."""
    from revisionllm.demo import train_clip
    from revisionllm.model.clip import load_clip

    small = ["--steps", "3", "--batch_size", "16", "--films", "3", "--save_every", "3"]
    small += ["--closeup_steps", "2", "--closeup_shots", "8", "--test_shots", "40"]
    assert train_clip.main(["--out", str(tmp_path), *small, "--workers", "1"]) == 0
    small += ["--workers", "0"]
    card = json.loads((tmp_path / "training.json").read_text())
    assert 0 <= card["test_films"]["read_out"]["shape_of_colour"] <= 1
    clip = load_clip(str(tmp_path))
    frame = sample_frames(plan_films(1, "test"), 1, np.random.default_rng(0))[0]
    assert clip.encode_images(frame.image[None]).shape == (1, clip.dim)
    assert train_clip.main(["--out", str(tmp_path), *small]) == 0  # all steps are done
    assert load_clip(str(tmp_path)).fingerprint() == clip.fingerprint()
