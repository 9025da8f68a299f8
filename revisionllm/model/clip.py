"""The frozen dual encoder that turns frames and sentences into features, "the CLIP" for short.

CLIPs, SigLIPs, MetaCLIPs, MobileCLIPs and their like, loaded through open_clip (`clip_open.py`) or
transformers (`clip_transformers.py`). Frames go in as uint8 batches and are prepared in torch the
way the model's own transform does it; sentences give token states and one sentence feature, as the
released extractor defines them.
CLIP: https://arxiv.org/abs/2103.00020; SigLIP: https://arxiv.org/abs/2303.15343

Shapes: N images or sentences, H x W pixels, D the shared embedding, L tokens, W_t the text width.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from revisionllm.constants import LINE_BREAKS
from revisionllm.errors import UserError
from revisionllm.files import cache_dir, json_digest, stamp_of, write_text
from revisionllm.model.devices import checked_device
from revisionllm.model.hub import check_encoder, go_offline
from revisionllm.versions import warn_if_newer

FINGERPRINT = re.compile("[0-9a-f]{16}")
KEPT_FROM = 50_000_000  # weights whose fingerprint is kept: reading them all takes a while
GET_CLIP = "checkpoints/README.md says where to get one"


def normalise_query(query: str) -> str:
    """The sentence as the text tower sees it: dots, spaces and question marks stripped, one dot."""
    return query.strip(".").strip(" ").strip("?") + "."


@dataclass(frozen=True)
class Pictures:
    """What an image tower takes.

    Attributes:
        size: height = width of its pictures.
        resize: the shorter side before the crop, at least `size`; squashed pictures have no crop.
        squash: whether pictures lose their aspect ratio.
        bilinear: resizing, else bicubic.
        mean, std: per channel of pictures in 0..1.
    """

    size: int
    resize: int
    squash: bool
    bilinear: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Towers(Protocol):
    """An image and a text tower, as a library loads them.

    Attributes:
        module: both, with all weights.
        pictures: what `images` takes.
        about: what tells two towers of equal weights apart, for the fingerprint.
        dim: D; text_width: W_t.
        context_length: most tokens of a sentence, special ones included.
        special_tokens: texts that the tokenizer would take for special tokens.
    """

    module: nn.Module
    pictures: Pictures
    about: dict[str, Any]
    dim: int
    text_width: int
    context_length: int
    special_tokens: list[str]

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] to features [n, D]."""

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token states after the final layer norm [n, L, W_t], which of them are words (bool
        [n, L]), and sentence features [n, D]."""

    def widen(self, states: torch.Tensor) -> torch.Tensor:
        """Token states through the text tower's projection: [..., W_t] to [..., D]."""

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, special ones included, before any cut."""


class ClipFeatures:
    """A frozen dual encoder with its preprocessing; made by `load_clip`.

    Attributes:
        name: what `load_clip` was given.
        dim: D, width of image and sentence features.
        text_width: W_t, width of token features (equal to D in ViT-L/14).
        image_size: height = width of the pictures the image tower takes.
        context_length: most tokens of a sentence, start and end included.
        device: where the towers live.
        arithmetic: "float32", or what autocast computes in.
    """

    def __init__(
        self,
        name: str,
        towers: Towers,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        weights: Path | None = None,
    ) -> None:
        pictures = towers.pictures
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (pictures.mean, pictures.std))
        scale, shift = 1 / (255 * std), -mean / std
        if not (torch.isfinite(scale).all() and torch.isfinite(shift).all() and pictures.size > 0):
            raise UserError(f"CLIP {name} states no usable size, mean or std")
        self.name = name
        self.dim = towers.dim
        self.text_width = towers.text_width
        self.image_size = pictures.size
        self.context_length = towers.context_length
        self.device = device
        self.arithmetic = str(dtype).removeprefix("torch.")
        self._dtype = dtype
        self._pictures = pictures
        self._towers = towers
        self._weights = weights  # where they were read
        words = towers.special_tokens
        self._special = re.compile("|".join(map(re.escape, words)) or r"(?!)", re.IGNORECASE)
        # Frames arrive as [N, H, W, 3] in memory, which is channels_last already; convolutions of
        # ResNet towers run faster on it.
        module = towers.module.eval().requires_grad_(False).to(device)
        module.to(memory_format=torch.channels_last)
        self._scale, self._shift = scale.to(device), shift.to(device)

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) a decoder may shrink frames to so that only the crop is left to do."""
        size = self._pictures.resize
        if self._pictures.squash:
            return size, size
        if width <= height:
            return size, int(size * height / width)
        return int(size * width / height), size

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """Resize, crop and normalise uint8 [N, H, W, 3] to float32 [N, 3, size, size].

        Equal to the library's PIL transform up to one grey level (1/255 before normalising): both
        resize 8-bit pictures with antialiasing, rounding can differ.
        """
        pictures = frames.to(self.device).permute(0, 3, 1, 2)
        size = self._pictures.size
        width, height = self.decode_size(pictures.shape[3], pictures.shape[2])
        if pictures.shape[2:] != (height, width):
            mode = "bilinear" if self._pictures.bilinear else "bicubic"
            pictures = nn.functional.interpolate(
                pictures.float(), (height, width), mode=mode, antialias=True
            )
            pictures = pictures.clamp(0, 255).round()  # as 8-bit pictures
        top, left = round((height - size) / 2), round((width - size) / 2)
        pictures = pictures[:, :, top : top + size, left : left + size]
        return pictures * self._scale + self._shift

    def encode_images(
        self, frames: np.ndarray | torch.Tensor, *, batch_size: int = 64
    ) -> torch.Tensor:
        """Image features of uint8 RGB [N, H, W, 3]: float32 [N, D] on the CPU, not normalised."""
        frames = torch.as_tensor(frames)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"expected uint8 [N, H, W, 3], got {frames.dtype} {frames.shape}")
        if not len(frames):
            return torch.zeros(0, self.dim)
        parts = [
            self._run(
                lambda batch: self._towers.images(self.preprocess(batch.to(self.device))), batch
            )
            for batch in frames.split(batch_size)
        ]
        return torch.cat(parts)

    def encode_texts(
        self, queries: Sequence[str], *, batch_size: int = 256
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of sentences, each written as `normalise_query` says.

        Returns:
            token_features: per sentence float32 [L, D], the states after the final layer norm
                of its words, without start, end and padding; where the text tower is not D wide
                (it is in CLIP ViT-L/14), through its projection to D, because frames look at them;
            sentence: float32 [N, D], not normalised. On the CPU.

        Raises:
            UserError: a sentence has more tokens than `context_length`; nothing is cut off.
        """
        texts = [self._text(query) for query in queries]
        for query in queries:
            self._check_length(query)
        token_features: list[torch.Tensor] = []
        sentences = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            states, words, sentence = self._encode(texts[start : start + batch_size])
            sentences.append(sentence.clone())
            token_features += [row[mask].clone() for row, mask in zip(states, words, strict=True)]
        return token_features, torch.cat(sentences)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with self._autocast():
            states, words, sentence = self._towers.texts(texts)
        states = states.float()
        if self.text_width != self.dim:
            states = self._towers.widen(states).float()
        return states.cpu(), words.cpu(), sentence.float().cpu()

    def _autocast(self) -> torch.autocast:
        half = self._dtype != torch.float32
        return torch.autocast(self.device.type, self._dtype, enabled=half)

    @torch.inference_mode()  # callers copy the result outside, so that training may use it
    def _run(self, encode, batch: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return encode(batch).float().cpu()

    def num_tokens(self, query: str) -> int:
        """Tokens of a sentence, start and end-of-text included, before any limit."""
        return self._towers.num_tokens(self._text(query))

    def tokens_per_word(self, queries: Sequence[str]) -> np.ndarray:
        """float64 [N]: 1 where the tokenizer knows every word of a sentence; words that it must
        spell are words that the encoder has hardly seen."""
        around = self.num_tokens("a") - 1
        return np.array([(self.num_tokens(q) - around) / max(len(q.split()), 1) for q in queries])

    def _text(self, query: str) -> str:
        """What is tokenised: one line, in which special tokens are taken apart."""
        text = normalise_query(LINE_BREAKS.sub(" ", query))
        if "&" in text:  # open_clip's tokenizer would unescape it, twice
            text = html.unescape(html.unescape(text))
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _check_length(self, query: str) -> None:
        num = self.num_tokens(query)
        if num > self.context_length:
            raise UserError(
                f"sentence too long for CLIP {self.name}: {num} tokens, at most"
                f" {self.context_length}; shorten it: {query[:60]!r}..."
            )

    @cached_property
    def _fingerprint(self) -> str:
        about = json.dumps(self._towers.about, sort_keys=True, default=list)
        module = self._towers.module
        count = sum(weight.numel() for weight in module.parameters())
        if self._weights is None or count < KEPT_FROM:
            return weights_digest(module, about)
        kept = cache_dir() / "encoders" / json_digest([about, stamp_of(self._weights)])
        if kept.is_file() and (found := FINGERPRINT.fullmatch(kept.read_text("ascii", "replace"))):
            return found[0]
        digest = weights_digest(module, about)
        with contextlib.suppress(OSError):  # a full or read-only disk costs the next call a second
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, digest)
        return digest

    def fingerprint(self) -> str:
        """16 hex digits over preprocessing and weights: which CLIP made a feature file."""
        return self._fingerprint


def weights_digest(module: torch.nn.Module, about: str) -> str:
    """16 hex digits over a text and all weights, by name, shape and value."""
    digest = hashlib.sha256(about.encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_clip(
    path_or_name: str | os.PathLike, *, device: str = "auto", dtype: str = "float32"
) -> ClipFeatures:
    """Load a dual encoder and freeze it. Nothing is downloaded.

    Args:
        path_or_name: a folder in open_clip's layout (`open_clip_config.json`) or in transformers'
            (`config.json`); `hf:owner/name@revision` of such a folder; an open_clip name with its
            tag (`ViT-L-14:openai`); or the OpenAI file `ViT-L-14.pt`.
        device: "auto" takes a GPU when there is one.
        dtype: arithmetic of the towers, "float32", or "float16" / "bfloat16" by autocast.

    Raises:
        UserError: nothing there, weights missing or not fitting, or the name is unknown.
    """
    from revisionllm.model import clip_open, clip_transformers

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checked_device(device)
    warn_if_newer()
    go_offline()
    name = os.fspath(path_or_name)
    path = check_encoder(name)
    if path.is_dir() and not (path / clip_open.CONFIG_NAME).is_file():
        towers: Towers = clip_transformers.load_folder(name, path)
    elif path.is_dir():
        towers = clip_open.load_folder(name, path)
    elif path.is_file():
        towers = clip_open.load_openai_file(path)
    else:
        towers = clip_open.load_by_name(name)
        path = Path(clip_open.cached_weights(clip_open.pretrained(name)[2]))
    where = torch.device(device)
    return ClipFeatures(name, towers, device=where, dtype=getattr(torch, dtype), weights=path)
