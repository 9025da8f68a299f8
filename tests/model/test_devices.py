"""Device, dtype and attention are chosen, and why is told."""

from __future__ import annotations

import pytest
import torch

from revisionllm.errors import UserError
from revisionllm.model import devices


def test_choices_are_explained(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = devices.choose_device("auto")
    assert (device.type, devices.choose_dtype("auto", device)) == ("cpu", torch.float32)
    assert devices.choose_attention("auto", device, torch.float32) == "sdpa"
    said = capsys.readouterr().err
    assert "device cpu: no CUDA GPU" in said
    assert "dtype float32: " in said
    assert "attention sdpa: " in said
    with pytest.raises(UserError, match="float64"):
        devices.choose_dtype("float64", device)


def test_choices_on_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert devices.choose_dtype("auto", gpu) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert devices.choose_dtype("auto", gpu) == torch.float16
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    assert devices.choose_attention("auto", gpu, torch.float16) == "flash_attention_2"
    assert devices.choose_attention("auto", gpu, torch.float32) == "sdpa"
