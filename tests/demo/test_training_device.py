"""The demo's trainings on another device than the CPU: nothing stays behind, and the weights are
those of a CPU."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from pretend_device import DEVICE, PretendedDevice
from safetensors.torch import load_file
from torch.utils._python_dispatch import _disable_current_modes

from revisionllm.demo import train_clip, train_dense, train_segments
from revisionllm.demo.training import dense_training, film_features
from revisionllm.model import loading

DEMO = Path(__file__).resolve().parents[2] / "checkpoints" / "demo"
DENSE = (
    "--films 1 --val_films 1 --film_minutes 3 --steps 2 --windows 2 --questions 4 --captions 1"
    " --early_captions 1 --frame_steps 2 --frame_windows 2 --save_every 1 --pointer_layer 1"
)
SEGMENTS = (
    "--films 1 --film_minutes 3 --frames_per_window 20 --adapter_ffn_dim 64 --steps 2 --crossed 3"
    " --questions 4"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter")
CLIP = "--steps 2 --closeup_steps 3 --films 2 --closeup_shots 20 --test_shots 12 --batch_size 16"


class PlainDescent(torch.optim.SGD):
    """In Adam's place, which makes steps of full size out of gradients that are only rounding."""

    def __init__(self, parameters, lr: float, **_: object) -> None:
        super().__init__(parameters, lr=lr, momentum=0.9)


@pytest.fixture
def on(monkeypatch):
    """Runs a program's main on a device."""

    def run(program, device: str, *flags) -> None:
        flags = [*map(str, flags), "--no-bf16", "--workers", "1", "--device", device]
        with PretendedDevice() if device == DEVICE.type else contextlib.nullcontext():
            assert program.main(flags) == 0

    def no_gradients(mode: torch.inference_mode) -> None:
        mode._inference_mode_context = torch.no_grad()
        mode._inference_mode_context.__enter__()

    autocast = torch.autocast

    def no_autocast(device_type, *args, **options):
        if device_type == DEVICE.type:
            return contextlib.nullcontext()
        return autocast(device_type, *args, **options)

    monkeypatch.setattr(torch, "autocast", no_autocast)  # it knows no such device
    # Pretended tensors know no inference mode; functions decorated with it look this method up.
    monkeypatch.setattr(torch.inference_mode, "__enter__", no_gradients)
    monkeypatch.setattr(torch.optim, "AdamW", PlainDescent)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield run
    torch.__future__.set_swap_module_params_on_conversion(before)


def assert_same(folder: Path, other: Path, *names: str) -> None:
    """Weights that two runs wrote are equal but for rounding."""
    for name in names:
        here, there = load_file(folder / name), load_file(other / name)
        assert here.keys() == there.keys()
        for key, value in here.items():
            torch.testing.assert_close(value.float(), there[key].float(), atol=2e-5, rtol=2e-3)


def test_dense_training_on_a_device(on, tmp_path, monkeypatch):
    few = functools.partial(dense_training.validate, batches=1)
    monkeypatch.setattr(dense_training, "validate", few)
    small = functools.partial(dense_training.Sizes, layers=3, temporal_layers=1)
    monkeypatch.setattr(dense_training, "Sizes", small)
    common = ["--clip", DEMO / "clip", "--cache", tmp_path / "features", *DENSE.split()]
    for device in ("cpu", DEVICE.type):
        on(train_dense, device, "--out", tmp_path / device, *common)
    files = "base/model.safetensors", "dense/adapter.safetensors"
    assert_same(tmp_path / "cpu", tmp_path / DEVICE.type, *files)
    for device in ("cpu", DEVICE.type):  # resumed
        on(train_dense, device, "--out", tmp_path / device, *common, "--steps", 3)
    assert_same(tmp_path / "cpu", tmp_path / DEVICE.type, *files)


def test_segments_training_on_a_device(on, tmp_path, monkeypatch):
    load_model = loading.load_model

    def loaded(*args, device, **options):  # transformers makes empty weights on this device first
        with _disable_current_modes():
            model = load_model(*args, device="cpu", **options)
        return model.to(device)

    monkeypatch.setattr(loading, "load_model", loaded)
    common = ["--run", DEMO / "dense", "--cache", tmp_path / "features", *SEGMENTS.split()]
    for device in ("cpu", DEVICE.type):
        on(train_segments, device, "--out", tmp_path / device, *common)
    assert_same(tmp_path / "cpu", tmp_path / DEVICE.type, "adapter.safetensors")


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="its index_put takes numbers from the CPU"
)
def test_clip_training_on_a_device(on, tmp_path):
    for device in ("cpu", DEVICE.type):
        on(train_clip, device, "--out", tmp_path / device, *CLIP.split())
    assert_same(tmp_path / "cpu", tmp_path / DEVICE.type, "open_clip_model.safetensors")


def test_what_stays_on_the_cpu_is_found():
    with PretendedDevice():
        there = torch.ones(4).to(DEVICE)
        with pytest.raises(RuntimeError, match="left on the CPU"):
            there + torch.ones(4)
        assert (there + 1).cpu().tolist() == [2.0] * 4


def test_films_are_rendered_in_fresh_processes(tmp_path, monkeypatch):
    """Neither CUDA nor the threads of torch and FFmpeg survive a fork."""
    asked = []

    class Pool:
        def __init__(self, workers, context, initializer):
            asked.append((workers, context.get_start_method()))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, function, jobs):
            return [None for _ in jobs]

    monkeypatch.setattr(film_features, "ProcessPoolExecutor", Pool)
    film_features.cached_features([0], 60.0, "train", DEMO / "clip", tmp_path)
    assert asked == [(film_features.num_workers(), "spawn")]
