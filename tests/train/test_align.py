"""The alignment stage: a projector for a base that has none, from captions of windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_training import FPS, WIDTH, flags, losses

from revisionllm.model.config import read_config
from revisionllm.model.loading import load_model
from revisionllm.train.arguments import parse
from revisionllm.train.losses import QuestionLosses
from revisionllm.train.train import main, training_data

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def captioned(world, tmp_path_factory):
    """Films whose frames say a colour, and captions that name it, of spans and of moments."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "features").mkdir()
    (folder / "base").symlink_to(world / "base")
    rng = np.random.default_rng(4)
    shown = rng.normal(size=(len(COLOURS), WIDTH)).astype(np.float32) * 3
    lines = []
    for film in range(2):
        colours = rng.integers(0, len(COLOURS), 40)
        rows = np.repeat(shown[colours], round(5 * FPS), axis=0)
        np.save(folder / "features" / f"film{film}.npy", rows + 0.1 * rng.normal(size=rows.shape))
        for number, colour in enumerate(colours.tolist()):
            start_s = 5.0 * number
            end_s = start_s if number % 4 == 0 else start_s + 5.0
            caption = f"A {COLOURS[colour]} wall."
            line = {"vid": f"film{film}", "start_s": start_s, "end_s": end_s, "caption": caption}
            lines.append(json.dumps(line))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_samples_are_captions_of_their_own_time(captioned):
    args = parse(flags(captioned, "align"))
    dataset, _ = training_data(args)
    assert dataset.num_questions() == 80 and not dataset.skipped
    plans = dataset.plans(0)
    moment, span = plans[0], plans[1]
    assert (span.starts_s, span.window_s) == ((5.0,), 5.0)
    assert moment.window_s == pytest.approx(1 / FPS) and moment.starts_s[0] <= 0.1
    sample = dataset[span]
    assert sample.features.shape == (1, 20, WIDTH)
    (question,) = sample.questions
    assert question.text == "What happens in this video?" and question.answer.endswith("wall.")


def test_the_projector_learns_alone_and_hands_over(captioned, tmp_path):
    run = tmp_path / "align"
    settings = {"output_dir": run, "max_steps": 60, "global_batch_size": 16}
    settings |= {"per_device_batch_size": 16, "learning_rate": 3e-2}
    assert main(flags(captioned, "align", **settings)) == 0
    found = losses(run)
    assert np.mean(found[-5:]) < 0.95 * np.mean(found[:5])  # through a frozen random LLM
    config = read_config(run)
    assert (config.stage, config.lora, config.adapter.kind) == ("dense", [], "linear")
    assert config.adapter.options == {"input_norm": True} and config.feature_fps == FPS
    untouched = load_model(captioned / "base", device="cpu", adapter=config.adapter).llm
    for (name, before), (_, after) in zip(
        untouched.named_parameters(),
        load_model(run, device="cpu").llm.named_parameters(),
        strict=True,
    ):
        assert torch.equal(before, after), name


def test_a_dense_stage_starts_from_it_or_from_a_new_projector(world, captioned, tmp_path):
    run = tmp_path / "align"
    assert main(flags(captioned, "align", output_dir=run)) == 0
    for number, projector in enumerate(({"init_projector": run}, {"train_projector": None})):
        words = flags(
            world,
            "dense",
            init_lora="",
            lora_init="new",
            base=world / "base",
            output_dir=tmp_path / f"dense{number}",
            **{k: v for k, v in projector.items() if v},
        )
        words += [] if "init_projector" in projector else ["--train_projector"]
        assert main(words) == 0
    begun = load_model(tmp_path / "dense0", device="cpu").projector.state_dict()
    for name, tensor in load_model(run, device="cpu").projector.state_dict().items():
        assert begun[name].equal(tensor), name  # dense trains LoRA, not the projector


def stopping(forward, at: int):
    calls = []

    def stopped(self, **batch):
        calls.append(batch)
        if len(calls) == at:
            raise KeyboardInterrupt
        return forward(self, **batch)

    return stopped


def test_it_goes_on_where_it_was(captioned, tmp_path, monkeypatch):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    settings = {"max_steps": 4, "save_steps": 2}
    assert main(flags(captioned, "align", output_dir=whole, **settings)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(QuestionLosses, "forward", stopping(QuestionLosses.forward, at=4))
        assert main(flags(captioned, "align", output_dir=pieces, **settings)) == 130
    assert not (pieces / "config.json").exists() and (pieces / "checkpoint-2").is_dir()
    assert main(flags(captioned, "align", output_dir=pieces, **settings)) == 0
    first, second = (
        load_model(run, device="cpu").projector.state_dict() for run in (whole, pieces)
    )
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": ""}, "stage align needs --base alone"),
        ({"init_lora": "start"}, "stage align needs --base alone"),
    ],
)
def test_what_does_not_fit_is_one_line(captioned, capsys, changes, said):
    assert main(flags(captioned, "align", **changes)) == 2
    assert said in capsys.readouterr().err


def test_captions_are_asked_for(captioned, capsys):
    words = flags(captioned, "align")
    at = words.index("--data_path")
    assert main(words[:at] + words[at + 2 :]) == 2
    assert "--data_path is needed" in capsys.readouterr().err
