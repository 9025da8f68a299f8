"""The CLIP adapter's start: pairs of windows and sentences, and the program end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from revisionllm.demo import train_segments
from revisionllm.demo.training.dense_data import FRAMES_PER_WINDOW, WindowSampler, load_film

DEMO = Path(__file__).resolve().parents[2] / "checkpoints" / "demo"


class Words:
    """A stand-in for CLIP: a sentence of n words has n rows."""

    def encode_texts(self, sentences):
        words = [torch.full((len(s.split()), 4), float(len(s))) for s in sentences]
        return words, torch.tensor([[float(len(s.split()))] * 4 for s in sentences])


@pytest.mark.parametrize("frames_per_window", [20, FRAMES_PER_WINDOW])
def test_hard_pairs_are_the_questions_of_their_windows(frames_per_window):
    numbers = np.arange(1500, dtype=np.float16)[:, None] * np.ones(4, np.float16)
    film = load_film(4, 900.0, "train", numbers)
    sampler = train_segments.PairSampler(Words(), frames_per_window, 12)
    pairs = sampler.draw([film], 0, 3, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.integers(1)  # the film of the crossed ones
    row = 0
    for _ in range(3):
        first = [int(rng.integers(1)), int(rng.integers(1401))][1]
        window = WindowSampler(12, 0).window(film, first, rng)
        for question in window.questions:
            count = len(question.sentence.split())
            assert pairs.mask[row].sum() == count + 1
            assert pairs.words[row, count, 0] == count  # the sentence, behind its words
            assert pairs.present[row] == (question.span is not None)
            # a frame of a coarser window is the one in the middle of its share
            share = FRAMES_PER_WINDOW / frames_per_window
            middle = ((np.arange(frames_per_window) + 0.5) * share).astype(int)
            np.testing.assert_array_equal(pairs.features[row, :, 0], first + middle)
            inside = [question.span and question.span[0] <= m <= question.span[1] for m in middle]
            assert pairs.inside[row].tolist() == [bool(is_inside) for is_inside in inside]
            assert pairs.shown[row].tolist() == [m in question.shown for m in middle]
            row += 1
    assert row == len(pairs.present)


def test_crossed_pairs_ask_every_sentence_in_every_window():
    film = load_film(4, 900.0, "train", np.zeros((1500, 4), np.float16))
    film.features[:] = np.arange(1500)[:, None]
    sampler = train_segments.PairSampler(Words(), FRAMES_PER_WINDOW, 12)
    pairs = sampler.draw([film], 6, 0, np.random.default_rng(2))
    assert len(pairs.present) == 36
    present, words = pairs.present.view(6, 6), pairs.words.view(6, 6, -1, 4)
    assert present.diagonal().all()  # its own window shows at least half of it
    assert words.eq(words[:, :1]).all()  # a row is one sentence
    firsts = pairs.features.view(6, 6, FRAMES_PER_WINDOW, 4)[..., 0, 0]
    assert firsts.eq(firsts[:1]).all()  # a column is one window
    inside = pairs.inside.view(6, 6, FRAMES_PER_WINDOW)
    for row in range(6):
        seen = {
            int(firsts[row, column]) + frame
            for column in range(6)
            for frame in inside[row, column].nonzero()[:, 0].tolist()
        }
        own = inside[row, row].nonzero()[:, 0]
        for column in range(6):  # frames of the event are the same film frames in every window
            there = {int(firsts[row, column]) + f for f in range(FRAMES_PER_WINDOW)} & seen
            assert len(there) == int(inside[row, column].sum())
        assert len(own) > 0


def test_program_trains_resumes_and_writes_a_sparse_run(tmp_path):
    from revisionllm.model.loading import load_model

    words = ["--run", str(DEMO / "dense"), "--out", str(tmp_path / "run")]
    words += ["--cache", str(tmp_path / "cache"), "--films", "1", "--film_minutes", "3"]
    words += ["--windows", "1", "--questions", "4", "--workers", "0", "--frames_per_window", "10"]
    words += ["--crossed", "2"]
    words += ["--adapter_ffn_dim", "32", "--save_every", "2"]
    assert train_segments.main([*words, "--steps", "2"]) == 0
    model = load_model(tmp_path / "run", device="cpu")
    config = model.config
    assert (config.stage, config.question, config.frames_per_window) == ("sparse", "yes_no", 10)
    assert model.projector.encoder.layers[0].linear1.out_features == 32
    known = load_model(DEMO / "dense", device="cpu").projector.position.table
    assert model.projector.position.table.equal(known)  # the numbers that the LLM reads already
    before = model.projector.mm_projector.weight.clone()
    assert train_segments.main([*words, "--steps", "2"]) == 0  # nothing left to do
    again = load_model(tmp_path / "run", device="cpu").projector.mm_projector.weight
    assert again.equal(before)
