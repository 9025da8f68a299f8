"""Films for measurements: their windows must show what those of a film with all features show."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from revisionllm.demo.evaluation.judged_films import judged_film
from revisionllm.demo.training import film_features as rendering
from revisionllm.demo.training.dense_data import (
    FEATURE_FPS,
    FRAMES_PER_WINDOW,
    STRIDE_S,
    WINDOW_S,
)
from revisionllm.demo.world.plans import plan_film
from revisionllm.demo.world.render import frames
from revisionllm.grounding.windows import dense_windows

SEED, MINUTES = 5000, 4.0


def brightness(images) -> np.ndarray:
    """Stands in for CLIP: a few pixels of each frame tell it from the others."""
    return np.stack([image[::7, ::7].astype(np.float32).ravel()[:200] for image in images])


def test_windows_show_the_frames_that_windows_of_all_features_show(tmp_path):
    clip = SimpleNamespace(
        fingerprint=lambda: "no_clip",
        encode_images=brightness,
        encode_texts=lambda texts: ([np.zeros((1, 4))] * len(texts), torch.zeros(len(texts), 4)),
    )
    few, everything = (
        judged_film(
            *(0, MINUTES, clip, tmp_path),
            num_present=2,
            num_absent=1,
            first_seed=SEED,
            all_features=all_features,
        )[0]
        for all_features in (False, True)
    )
    assert few.feature_fps == pytest.approx(FEATURE_FPS / 3) and everything.feature_fps == 5
    whole = rendering.encode_frames(frames(plan_film(SEED, MINUTES * 60, "test")), clip)
    assert np.array_equal(everything.features, whole)
    config = SimpleNamespace(frames_per_window=FRAMES_PER_WINDOW, time_mapping="centered")
    windows = dense_windows(few.duration_s, window_s=WINDOW_S, stride_s=STRIDE_S)
    assert len(windows) > 3
    for window in windows:
        shown = few.window_frames(window, config)
        assert np.array_equal(shown, everything.window_frames(window, config))
