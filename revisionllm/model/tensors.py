"""Reading, checking and writing files of named tensors; nothing here trusts a file.

Pickled files are read with `weights_only`, every difference between what a file holds and what a
module needs is reported in one message, and files appear under their name only when complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from revisionllm.errors import UserError, reading
from revisionllm.files import replacing

MAX_LISTED = 20
ZERO3_HINT = (
    "ZeRO-3 saved partitions instead of tensors: save again with"
    " stage3_gather_16bit_weights_on_model_save, or run DeepSpeed's zero_to_fp32.py"
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or of a pickled `.bin` / `.pt` file, on the CPU.

    Raises:
        UserError: no such file, or it is torn, or it holds anything else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights not found: {path}; checkpoints/README.md says where to get them")
    with reading(f"cannot read {path}: torn, or not a plain file of tensors"):
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path} holds other things than named tensors; is it a training state?")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object
) -> None:
    """Compare names and shapes with what a module needs.

    Args:
        found: tensors of a file, under the module's names.
        expected: the module's own (their values do not matter; meta tensors will do).
        source: what to name in the message.

    Raises:
        UserError: one message with every missing, unexpected and misshapen tensor.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    misshapen = [n for n in sorted(found) if n in expected and found[n].shape != expected[n].shape]
    parts = []
    if missing:
        parts.append(f"missing {_listed(missing)}")
    if unexpected:
        parts.append(f"unexpected {_listed(unexpected)}")
    if misshapen:
        shapes = [f"{n} {[*found[n].shape]} for {[*expected[n].shape]}" for n in misshapen]
        parts.append(f"misshapen {_listed(shapes)}")
    if any(_is_partition(found[name], expected[name]) for name in misshapen):
        parts.append(ZERO3_HINT)
    if parts:
        raise UserError(f"{source} does not fit the model: " + "; ".join(parts))


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a safetensors file atomically.

    Raises:
        ValueError: an empty tensor, as ZeRO-3 leaves outside of its gathering context.
    """
    path = Path(path)
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty:
        raise ValueError(
            f"not saved to {path}: empty {_listed(empty)}; gather ZeRO-3 parameters first"
        )
    whole = {
        n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()
    }
    with replacing(path) as temporary:
        save_file(whole, temporary, metadata={"format": "pt"})


def _is_partition(found: Tensor, expected: Tensor) -> bool:
    """True if ZeRO-3 left this tensor empty, or flattened (whole, padded or a share of it)."""
    return found.numel() == 0 or (found.dim() == 1 and expected.dim() > 1)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"({len(names)}): {', '.join(names[:MAX_LISTED])}{more}"
