"""Tiny random runs for the engine's tests, and the plain reference over many questions."""

from __future__ import annotations

import numpy as np
import torch
from model_assets import BASE, tiny_llm

from revisionllm.grounding.levels import Level
from revisionllm.grounding.windows import Window
from revisionllm.model.base import load_tokenizer
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.records.films import Query

D = 16
FRAMES = 24
WINDOW_S = 12.0
WORDS = ["a", "the", "man", "woman", "dog", "opens", "closes", "red", "door", "walks", "3", "tall"]


def tiny_run(seed: int = 0, *, frames: int = FRAMES, **llm_changes) -> GroundingModel:
    """A random dense run: hidden 64, 2 layers, the fixtures' tokenizer, answers all over."""
    llm = tiny_llm(seed, **({"hidden_size": 64, "intermediate_size": 96} | llm_changes))
    adapter = AdapterConfig("linear", D, llm.config.hidden_size)
    torch.manual_seed(seed + 1)
    projector = build_adapter(adapter).eval()
    config = RunConfig(
        adapter=adapter, frames_per_window=frames, window_s=WINDOW_S, stride_s=6.0, feature_fps=2.0
    )
    return GroundingModel(llm, projector, load_tokenizer(str(BASE)), config)


def windows(count: int) -> list[Window]:
    """Dense windows, half overlapping."""
    return [Window(i, i * 6.0, i * 6.0 + WINDOW_S) for i in range(count)]


def features_of(window: Window, frames: int = FRAMES) -> np.ndarray:
    """Random frame features [F, D] that depend on the window alone."""
    rng = np.random.default_rng(window.index)
    return rng.standard_normal((frames, D)).astype(np.float32) * 3


class TinyFilm:
    """A film of which any window's features can be had."""

    def __init__(self, features=features_of, key: str | None = None, fps: float = 2.0) -> None:
        self.features, self.key, self.feature_fps, self.duration_s = features, key, fps, 1e4

    def window_frames(self, window: Window, config) -> np.ndarray:
        return self.features(window)


def ask(engine, questions, texts, features=features_of, *, words=None, film=None, narrow=False):
    """The engine's answers about a film that `film` names."""
    dense = words is None
    level = Level("a", "dense" if dense else "segments", WINDOW_S, 6.0, narrow=narrow)
    words = [None] * len(texts) if dense else words
    queries = [Query(str(i), t, words=w) for i, (t, w) in enumerate(zip(texts, words, strict=True))]
    return engine.answer(level, questions, TinyFilm(features, film), queries)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 1 to 9 words, all different."""
    rng = np.random.default_rng(seed)
    drawn = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) + f" {i}." for i in range(count)]
    return drawn
