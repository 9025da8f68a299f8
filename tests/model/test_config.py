"""`config.json` of a run: round trip, paths, contradictions."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from revisionllm.errors import UserError
from revisionllm.model.config import (
    AdapterConfig,
    RunConfig,
    is_run_folder,
    read_config,
    write_config,
)


def test_round_trip_keeps_every_field(tmp_path):
    config = RunConfig(
        base="hf:lmsys/vicuna-7b-v1.5@abc",
        clip="ViT-L-14",
        adapter=AdapterConfig("clip", 8, 16, "alternate", {"output_norm": True}),
        lora=[str(tmp_path / "parent" / "lora"), str(tmp_path / "run" / "lora")],
        adapter_file=str(tmp_path / "run" / "adapter.safetensors"),
        stage="long",
        question="video",
        window_s=60.0,
        versions={"torch": "1"},
    )
    write_config(config, tmp_path / "run")
    assert is_run_folder(tmp_path / "run")
    assert read_config(tmp_path / "run") == config


def test_paths_are_stored_relative_and_move_with_the_folder(tmp_path):
    run = tmp_path / "checkpoints" / "run"
    base = tmp_path / "checkpoints" / "base"
    base.mkdir(parents=True)
    far = "/somewhere/else/vicuna"
    write_config(RunConfig(base=str(base), clip=far, lora=[str(run / "lora")]), run)
    stored = json.loads((run / "config.json").read_text())
    assert (stored["base"], stored["clip"], stored["lora"]) == ("../base", far, ["lora"])

    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    found = read_config(tmp_path / "moved" / "run")
    assert found.base == str(tmp_path / "moved" / "base")
    assert found.lora == [str(tmp_path / "moved" / "run" / "lora")]
    assert found.adapter_file == str(tmp_path / "moved" / "run" / "adapter.safetensors")


def test_every_field_explains_itself():
    for kind in (RunConfig, AdapterConfig):
        assert all(f.metadata["help"] for f in fields(kind))


def test_all_contradictions_in_one_message():
    with pytest.raises(UserError) as error:
        RunConfig(stage="medium", window_s=0, adapter=AdapterConfig(kind="linear", output="all"))
    for part in ("stage is 'medium'", "window_s must be above 0", "linear adapter gives frames"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_thing": 1}, "unknown keys.*new_thing"),
        ({"adapter": {"width": 3}}, "unknown keys.*adapter.width"),
        ({"format": "other"}, "not a run folder"),
        ({"question": "who"}, "question is 'who'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, change, message):
    path = write_config(RunConfig(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_a_base_folder_is_no_run_folder(tmp_path):
    assert not is_run_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not is_run_folder(tmp_path)
    with pytest.raises(UserError, match="not a run folder"):
        read_config(Path(tmp_path))
