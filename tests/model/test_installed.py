"""`revisionllm models`: what lies in the caches, told apart, and what is ready by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_encoders import save_transformers

from revisionllm.cli import main
from revisionllm.library.model_file import installed_encoder
from revisionllm.model import installed as room
from revisionllm.model.installed import (
    BROKEN,
    ENCODER,
    GGUF,
    LLM,
    OTHER,
    SENTENCES,
    VIDEO_LLM,
    WHISPER,
    installed,
    kind_of,
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def snapshot(cache: Path, name: str) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}"
    place = folder / "snapshots" / ("c0ffee" + name.replace("/", "0"))
    place.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(place.name)
    return place


def files(folder: Path, **texts: dict | str) -> Path:
    for name, text in texts.items():
        path = folder / name.replace("__", ".")
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


LAYOUTS = {
    ENCODER: {"open_clip_config__json": {}},
    SENTENCES: {"modules__json": "[]", "config__json": {"architectures": ["BertModel"]}},
    GGUF: {"small__gguf": "GGUF"},
    LLM: {"config__json": {"architectures": ["Qwen3ForCausalLM"]}},
    VIDEO_LLM: {
        "config__json": {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "vision_config": {},
            "text_config": {},
        },
        "preprocessor_config__json": {},
    },
    WHISPER: {"config__json": {"alignment_heads": []}, "model__bin": "x"},
    OTHER: {"README__md": "words"},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_kinds(tmp_path, kind) -> None:
    assert kind_of(files(tmp_path, **LAYOUTS[kind])) == kind


def test_dual_encoders_of_transformers(tmp_path) -> None:
    save_transformers(tmp_path / "siglip", "siglip")
    assert kind_of(tmp_path / "siglip") == ENCODER


def test_a_broken_model_stops_nothing(cache, capsys) -> None:
    """A download that was cut off and a damaged config are told, and others are used."""
    files(snapshot(cache, "a/damaged"), config__json="{")
    cut = snapshot(cache, "a/half")
    (cut.parent.parent / "blobs").mkdir()
    (cut.parent.parent / "blobs" / "1.incomplete").write_text("x")
    assert installed_encoder() is None
    save_transformers(snapshot(cache, "b/encoder"), "siglip")
    assert installed_encoder() == "hf:b/encoder"
    assert [model.kind for model in installed()] == [BROKEN, BROKEN, ENCODER]
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "frames and sentences (--model)" in out and "ready: hf:b/encoder" in out


def test_what_is_missing_is_told_with_its_command(cache, capsys, monkeypatch) -> None:
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda *_: None)
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    lines = out.split("\n\n")[1].splitlines()
    assert len(lines) == len(room.USES)
    assert all("not ready: " in line for line in lines)
