"""Rendered frames and films."""

from __future__ import annotations

import numpy as np
import pytest

from revisionllm.data.video import iter_frames, probe
from revisionllm.demo.world.plans import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    WORLD_VERSION,
    plan_film,
    pose_of,
)
from revisionllm.demo.world.render import RGB, background, draw, frames, write_film


def test_frames_are_drawn_where_the_plan_says():
    plan = plan_film(1, 120, "test")
    checked = 0
    for shot in plan.shots:
        for time_s in np.arange(shot.start_s, shot.end_s, 1.3):
            image, empty = draw(shot, time_s), background(shot.place, shot.scenery)
            assert image.shape == (FRAME_HEIGHT, FRAME_WIDTH, 3) and image.dtype == np.uint8
            changed = (image != empty).any(axis=2)
            shown = [
                pose
                for pose in (pose_of(shot, i, time_s) for i in range(len(shot.actors)))
                if pose.visible and 0.1 < pose.x < 0.9
            ]
            for pose in shown:
                x, y = round(pose.x * FRAME_WIDTH), round(pose.y * FRAME_HEIGHT)
                near = changed[max(0, y - 45) : y + 46, max(0, x - 45) : x + 46]
                assert near.any()
                checked += 1
    assert checked > 50


def test_a_lone_actor_has_its_colour():
    plan = plan_film(2, 600, "test")
    shot = next(s for s in plan.shots if len(s.actors) == 1 and 0 < s.first_poses[0].x < 1)
    image = draw(shot, shot.start_s)
    colour = np.array(RGB[shot.actors[0].colour])
    assert (np.abs(image.astype(int) - colour).max(axis=2) <= 2).sum() > 20


def test_frames_number_and_step():
    plan = plan_film(3, 40, "train")
    every = list(frames(plan))
    assert len(every) == 200
    for thinned, expected in zip(frames(plan, first=2, step=3), every[2::3], strict=True):
        np.testing.assert_array_equal(thinned, expected)


def test_film_decodes_to_what_was_drawn_and_is_reproducible(tmp_path):
    plan = plan_film(4, 30, "test")
    write_film(plan, tmp_path / "a.mp4")
    write_film(plan, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert abs(probe(tmp_path / "a.mp4").duration_s - 30) < 0.01
    decoded = list(iter_frames(tmp_path / "a.mp4", 5.0))
    assert len(decoded) == 150
    for (_, _, picture), drawn in zip(decoded, frames(plan), strict=True):
        assert np.abs(picture.astype(int) - drawn).mean() < 6


# mean colours of some pictures of version 1
MEANS = {
    ("train", 1): [
        [51.29, 86.79, 109.64],
        [47.66, 84.68, 111.76],
        [168.39, 147.06, 135.42],
        [168.6, 146.98, 135.21],
    ],
    ("test", 2): [
        [146.67, 165.95, 132.65],
        [153.41, 133.93, 123.24],
        [58.59, 48.08, 44.38],
        [58.73, 48.17, 44.39],
    ],
}


@pytest.mark.parametrize("film", MEANS, ids=str)
def test_pictures_of_this_version_of_the_world(film):
    """Other pictures are another world: raise WORLD_VERSION, so that kept films are made again."""
    split, seed = film
    found = [frame.mean((0, 1)) for frame in frames(plan_film(seed, 60, split), first=7, step=75)]
    np.testing.assert_allclose(found, MEANS[film], atol=0.05)
    assert WORLD_VERSION == 1
