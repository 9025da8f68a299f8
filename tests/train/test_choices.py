"""Choices that used to need an edit of the source: LoRA's layers, the schedule, where logs go."""

from __future__ import annotations

import json

import pytest
from tiny_training import flags, metrics

from revisionllm.train.train import main


def rates(run) -> list[float]:
    return [record["learning_rate"] for record in metrics(run) if "learning_rate" in record]


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("cosine", [1.0, 0.854, 0.5, 0.146]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(world, tmp_path, schedule, wanted):
    run = tmp_path / "run"
    changes = {"lr_schedule": schedule, "max_steps": 4, "warmup_ratio": 0, "learning_rate": 1e-3}
    assert main(flags(world, "dense", output_dir=run, **changes)) == 0
    assert [rate / 1e-3 for rate in rates(run)] == pytest.approx(wanted, abs=1e-3)


def test_lora_on_chosen_layers(world, tmp_path, capsys):
    run = tmp_path / "run"
    words = flags(world, "dense", output_dir=run)
    assert main([*words, "--lora_targets", "q_proj", "v_proj"]) == 0
    config = json.loads((run / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    words = flags(world, "dense", output_dir=tmp_path / "other")
    assert main([*words, "--lora_targets", "query"]) == 2
    assert "no linear layers query" in capsys.readouterr().err


def test_logs_for_tensorboard(world, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main([*flags(world, "dense", output_dir=run), "--report_to", "tensorboard"]) == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    # what is logged where changes nothing about what is learned: the run goes on without it
    assert main(flags(world, "dense", output_dir=run)) == 0
