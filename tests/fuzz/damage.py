"""Damaged copies of good files, from a seed: what disks, downloads, editors and strangers do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

NASTY = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, "", "x", "\ud800"),
    *([], {}, [[]], [None], {"a": {}}, "../../etc/passwd", "<script>", "a" * 5000, "\0", "nan"),
)
MORE_BYTES = (b"\0" * 64, b"\xff" * 32, b"\xef\xbb\xbf", b"{", b"]]]]", b"NaN", b"1e999", b"\r\n")


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One kind of damage to a file's bytes: a cut, flipped bits, a hole, something put in."""
    kind, size = rng.integers(7), max(1, len(data))
    at = int(rng.integers(size))
    if kind == 0:
        return data[:at]
    if kind == 1:
        changed = bytearray(data)
        for place in rng.integers(size, size=int(rng.integers(1, 9))):
            if changed:
                changed[int(place)] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == 2:  # headers are at the front
        changed = bytearray(data)
        for place in rng.integers(min(size, 128), size=3):
            if changed:
                changed[int(place)] = int(rng.integers(256))
        return bytes(changed)
    if kind == 3:
        length = int(rng.integers(1, 200))
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at] + MORE_BYTES[int(rng.integers(len(MORE_BYTES)))] + data[at:]
    if kind == 5:
        return data + data[:at]
    return MORE_BYTES[int(rng.integers(len(MORE_BYTES)))] + data


def damaged_json(document: Any, rng: np.random.Generator) -> bytes:
    """The document with one or two of its values, keys or entries changed, as JSON."""
    changed = json.loads(json.dumps(document))
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        nasty = copy.deepcopy(NASTY[int(rng.integers(len(NASTY)))])
        if rng.random() < 0.25:
            del holder[key]
        elif isinstance(holder, dict) and rng.random() < 0.2:
            holder[f"{key}_"] = holder.pop(key)
        else:
            holder[key] = nasty
    text = json.dumps(changed)
    if rng.random() < 0.1:
        text = text.replace("0", "NaN", 1)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from _places(value[index])
