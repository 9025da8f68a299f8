"""Where and how a model runs: device, dtype and attention."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import torch

from revisionllm.errors import UserError
from revisionllm.options import DEVICE

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(device: str = "auto") -> torch.device:
    """The device to run on; `auto` takes a GPU if there is one, and says so on stderr."""
    if device != "auto":
        return checked_device(device)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    reason = torch.cuda.get_device_name() if chosen == "cuda" else "no CUDA GPU is visible"
    say(f"device {chosen}: {reason}")
    return torch.device(chosen)


def checked_device(device: str) -> torch.device:
    """A device by name.

    Raises:
        UserError: no such name, or no such device here.
    """
    if not DEVICE.fullmatch(device) or device == "auto":
        raise UserError(f"device {device!r} is none of auto, cpu, cuda, cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise UserError(f"no device {device}: {count} CUDA GPUs are visible; try --device auto")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("no device mps here; try --device auto")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype to run in; `auto` is float32 on a CPU and bfloat16 (else float16) on a GPU.

    Raises:
        UserError: a name that is none of `DTYPES` or `auto`.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type != "cuda":
        chosen, reason = "float32", "half precision is slow or inexact on a CPU"
    elif torch.cuda.is_bf16_supported():
        chosen, reason = "bfloat16", "the GPU computes in it, with the range of float32"
    else:
        chosen, reason = "float16", "the GPU has no bfloat16"
    say(f"dtype {chosen}: {reason}")
    return DTYPES[chosen]


def choose_attention(attention: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention for transformers; `auto` is FlashAttention 2 where it can run, else SDPA."""
    if attention != "auto":
        return attention
    can_flash = device.type == "cuda" and dtype != torch.float32
    if can_flash and find_spec("flash_attn") is not None:
        say("attention flash_attention_2: flash-attn is installed")
        return "flash_attention_2"
    say("attention sdpa: " + ("flash-attn is not installed" if can_flash else "float32 or no GPU"))
    return "sdpa"


def say(text: str) -> None:
    """A line on stderr; of several processes that do the same, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"revisionllm: {text}", file=sys.stderr)
