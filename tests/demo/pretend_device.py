"""A second device for machines that have none: finds tensors that were left on the CPU.

A `Pretended` tensor says that it is on the meta device and holds its numbers in a CPU tensor.
Operations on it give what they give on the CPU, and refuse CPU tensors beside it as a GPU does.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
MIXING = ("_to_copy", "copy_", "index", "index_put_", "_index_put_impl_")  # may read CPU tensors


class Pretended(torch.Tensor):
    """On the pretended device."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """An operation on tensors of which some may be pretended."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    pretended = [isinstance(x, Pretended) for x in tensors]
    device = kwargs.get("device")
    to_pretended = torch.device(device) == DEVICE if device is not None else any(pretended)
    if name not in MIXING and any(pretended):
        left = [x for x, is_it in zip(tensors, pretended, strict=True) if not is_it and x.ndim]
        if left:
            raise RuntimeError(f"{name}: a tensor {tuple(left[0].shape)} was left on the CPU")
    if to_pretended and device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    out = func(*plain[0], **plain[1])
    if name in ("copy_", "index_put_", "_index_put_impl_"):
        return args[0]
    if not to_pretended:
        return out
    known = {id(x.held): x for x in tensors if isinstance(x, Pretended)}  # in place: the same one

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Pretended(x)

    return tree_map(wrapped, out)


class PretendedDevice(TorchDispatchMode):
    """Inside, tensors can be made on and moved to `DEVICE`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})
