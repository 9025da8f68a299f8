"""The frozen CLIP that turns frames and sentences into features, loaded through open_clip.

Frames go in as uint8 batches and are prepared in torch the way the model's own PIL transform does
it; sentences give token states and one sentence feature, as the released extractor defines them.
CLIP: https://arxiv.org/abs/2103.00020; open_clip: https://github.com/mlfoundations/open_clip

Shapes: N images or sentences, H x W pixels, D the shared embedding, L tokens, W_t the text width.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from revisionllm.constants import LINE_BREAKS
from revisionllm.errors import UserError, reading
from revisionllm.files import read_json, replacing, write_json
from revisionllm.model.base import checked_device, spare_time_outs
from revisionllm.versions import warn_if_newer

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def normalise_query(query: str) -> str:
    """The sentence as the text tower sees it: dots, spaces and question marks stripped, one dot."""
    return query.strip(".").strip(" ").strip("?") + "."


class ClipFeatures:
    """A frozen CLIP with its preprocessing; made by `load_clip`.

    Attributes:
        name: what `load_clip` was given.
        dim: D, width of image and sentence features.
        text_width: W_t, width of token features (equal to D in ViT-L/14).
        image_size: height = width of the pictures the image tower takes.
        context_length: most tokens of a sentence, start and end included.
        device: where the towers live.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer,
        *,
        dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        with reading(f"cannot read the preprocessing of CLIP {name}"):
            preprocess = dict(model.visual.preprocess_cfg)
            size = preprocess["size"]
            height, width = (size, size) if isinstance(size, int) else size
            mean, std = (torch.tensor(preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
            scale, shift = 1 / (255 * std), -mean / std
            if not (torch.isfinite(scale).all() and torch.isfinite(shift).all() and height > 0):
                raise UserError(f"CLIP {name} states no usable size, mean or std")
        if height != width or preprocess["resize_mode"] not in ("shortest", "squash"):
            raise UserError(
                f"CLIP {name} takes {height}x{width} pictures, resize mode"
                f" {preprocess['resize_mode']}; only square ones, shortest or squash, are supported"
            )
        self.name = name
        self.dim = dim
        self.image_size = int(height)
        self.device = device
        self._dtype = dtype
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        # Frames arrive as [N, H, W, 3] in memory, which is channels_last already; convolutions of
        # ResNet towers run faster on it.
        self._model = model.eval().requires_grad_(False).to(device)
        self._model.visual.to(memory_format=torch.channels_last)
        self._scale, self._shift = scale.to(device), shift.to(device)

    @property
    def text_width(self) -> int:
        return _text_tower(self._model).ln_final.weight.shape[0]

    @property
    def context_length(self) -> int:
        return int(self._model.context_length)

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) a decoder may shrink frames to so that only the crop is left to do."""
        size = self.image_size
        if self._preprocess["resize_mode"] == "squash":
            return size, size
        if width <= height:
            return size, int(size * height / width)
        return int(size * width / height), size

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """Resize, crop and normalise uint8 [N, H, W, 3] to float32 [N, 3, size, size].

        Equal to open_clip's PIL transform up to one grey level (1/255 before normalising): both
        resize 8-bit pictures with antialiasing, rounding can differ.
        """
        pictures = frames.to(self.device).permute(0, 3, 1, 2)
        size = self.image_size
        squash = self._preprocess["resize_mode"] == "squash"
        bilinear = self._preprocess["interpolation"] == "bilinear"
        mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
        pictures = vision.resize(pictures, [size, size] if squash else [size], mode, antialias=True)
        pictures = vision.center_crop(pictures, [size, size])
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
            self._run(lambda batch: self._model.encode_image(self.preprocess(batch)), batch)
            for batch in frames.split(batch_size)
        ]
        return torch.cat(parts)

    def encode_texts(
        self, queries: Sequence[str], *, batch_size: int = 256
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of sentences, each written as `normalise_query` says.

        Returns:
            token_features: per sentence float32 [L, D], the states after the final layer norm
                without the start and end-of-text tokens; where the text tower is not D wide (it is
                in CLIP ViT-L/14), through its projection to D, because frames look at them;
            sentence: float32 [N, D], the projected end-of-text state, not normalised. On the CPU.

        Raises:
            UserError: a sentence has more tokens than `context_length`; nothing is cut off.
        """
        texts = [self._text(query) for query in queries]
        lengths = [self._checked_length(query) for query in queries]
        token_features: list[torch.Tensor] = []
        sentences = [torch.zeros(0, self.dim)]
        for start in range(0, len(texts), batch_size):
            ids = self._tokenizer(texts[start : start + batch_size])
            states, sentence = self._encode_ids(ids)
            sentences.append(sentence)
            token_features += [
                row[1 : length - 1].clone()
                for row, length in zip(states, lengths[start : start + batch_size], strict=True)
            ]
        return token_features, torch.cat(sentences)

    def _encode_ids(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States after the final layer norm [n, context, D] and sentence features [n, D]."""
        states: list[torch.Tensor] = []
        hook = _text_tower(self._model).ln_final.register_forward_hook(
            lambda _module, _inputs, output: states.append(output)
        )
        try:
            sentence = self._run(self._model.encode_text, ids)
        finally:
            hook.remove()
        return self._as_wide_as_frames(states[0].float()).cpu(), sentence

    @torch.inference_mode()
    def _as_wide_as_frames(self, states: torch.Tensor) -> torch.Tensor:
        """[..., W_t] to [..., D], by the text projection where they differ."""
        projection = _text_tower(self._model).text_projection
        if states.shape[-1] == self.dim or projection is None:
            return states
        if isinstance(projection, torch.nn.Linear):
            return projection(states.to(projection.weight)).float()
        return (states.to(projection) @ projection).float()

    @torch.inference_mode()  # callers copy the result outside, so that training may use it
    def _run(self, encode, batch: torch.Tensor) -> torch.Tensor:
        half = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=half):
            return encode(batch.to(self.device)).float().cpu()

    def num_tokens(self, query: str) -> int:
        """Tokens of a sentence, start and end-of-text included, before any limit."""
        return _count_tokens(self._tokenizer, self._text(query))

    def _text(self, query: str) -> str:
        """What is tokenised: one line, in which special tokens are taken apart."""
        text = normalise_query(LINE_BREAKS.sub(" ", query))
        if "&" in text:  # open_clip's tokenizer would unescape it, twice
            text = html.unescape(html.unescape(text))
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _checked_length(self, query: str) -> int:
        num = self.num_tokens(query)
        if num > self.context_length:
            raise UserError(
                f"sentence too long for CLIP {self.name}: {num} tokens, at most"
                f" {self.context_length}; shorten it: {query[:60]!r}..."
            )
        return num

    @cached_property
    def _fingerprint(self) -> str:
        layers = sorted({type(module).__name__ for module in self._model.modules()})
        # GELU and QuickGELU share weights and differ in features.
        activations = [layer for layer in layers if layer.endswith("GELU")]
        config = {"preprocess": self._preprocess, "activations": activations}
        about = json.dumps(config, sort_keys=True, default=list)
        return weights_digest(self._model, about)

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
    """Load a CLIP and freeze it.

    Args:
        path_or_name: a folder with `open_clip_config.json` and `open_clip_model.safetensors`; the
            OpenAI file `ViT-L-14.pt`; an open_clip name with its tag (`ViT-L-14:openai`); or
            `hf-hub:owner/model`. The last two download unless cached.
        device: "auto" takes a GPU when there is one.
        dtype: arithmetic of the towers, "float32", or "float16" / "bfloat16" by autocast.

    Raises:
        UserError: nothing there, weights missing or not fitting, or the name is unknown.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checked_device(device)
    warn_if_newer()
    name = os.fspath(path_or_name)
    path = Path(name)
    if path.is_dir():
        model, tokenizer = _load_open_clip(name, f"local-dir:{_checked_folder(path)}", None)
    elif path.is_file():
        model, tokenizer = _load_openai_file(path)
    elif name.startswith("hf-hub:"):
        spare_time_outs()
        model, tokenizer = _load_open_clip(name, name, None)
    elif path.suffix in (".pt", ".safetensors") or os.sep in name:
        raise UserError(
            f"CLIP weights not found: {name}; checkpoints/README.md says where to get them"
        )
    else:
        model, tokenizer = _load_by_name(name)
    return ClipFeatures(
        name,
        model,
        tokenizer,
        dim=_embedding_dim(model),
        device=torch.device(device),
        dtype=getattr(torch, dtype),
    )


def save_clip(model: nn.Module, folder: str | os.PathLike, *, model_cfg: dict) -> None:
    """Write an open_clip model as a folder that `load_clip` (and open_clip's `local-dir:`) reads.

    Args:
        model: an open_clip model with its `visual.preprocess_cfg`.
        folder: made if missing.
        model_cfg: the architecture, as in open_clip's `model_configs/*.json`.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    config = {"model_cfg": model_cfg, "preprocess_cfg": dict(model.visual.preprocess_cfg)}
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary)
    write_json(folder / CONFIG_NAME, config)


def _is_clip_text(model: nn.Module, tokenizer) -> bool:
    """CLIP's own text transformer: pools at the end-of-text token, behind a final layer norm."""
    import open_clip

    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return "ln_final" in _text_tower(model)._modules
    return isinstance(model, open_clip.CLIP) and model.text_pool_type == "argmax"


def _count_tokens(tokenizer, text: str) -> int:
    """Tokens of a text with start and end-of-text, before any cut to the context length."""
    import open_clip

    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(tokenizer.clean_fn(text))["input_ids"])


def _special_tokens(tokenizer) -> re.Pattern:
    """Finds the texts that a tokenizer would take for special tokens."""
    import open_clip

    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        words = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    else:
        words = list(tokenizer.tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(word) for word in words) or r"(?!)", re.IGNORECASE)


def _text_tower(model: nn.Module) -> nn.Module:
    """The module that holds `ln_final`: the model itself, or its `text` part in newer configs."""
    return model if "ln_final" in model._modules else model.text


def _embedding_dim(model: nn.Module) -> int:
    """D, from the text projection."""
    projection = _text_tower(model).text_projection
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _checked_folder(folder: Path) -> Path:
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"not a CLIP folder, {CONFIG_NAME} is missing: {folder}")
    read_json(folder / CONFIG_NAME, kind=dict, mend="copy the CLIP again")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and "auto_map" in read_json(tokenizer, kind=dict):
        raise UserError(
            f"{tokenizer} names code of its own (auto_map): such CLIPs are not supported"
        )
    return folder.resolve()


def _load_open_clip(name: str, open_clip_name: str, tag: str | None, **options):
    """Let open_clip build and fill the model; refuse to go on with random weights."""
    import open_clip

    with reading(f"cannot load CLIP {name}", "checkpoints/README.md says where to get one"):
        model = open_clip.create_model(
            open_clip_name,
            pretrained=tag,
            precision="fp32",
            device="cpu",
            require_pretrained=True,
            weights_only=True,
            **options,
        )
        try:
            tokenizer = open_clip.get_tokenizer(open_clip_name, trust_remote_code=False)
        except TypeError:  # open_clip's own tokenizer runs no code and does not know the argument
            tokenizer = open_clip.get_tokenizer(open_clip_name)
        tokenizer(["a man opens the door."])  # what its files lack would show later
        _count_tokens(tokenizer, "a man opens the door.")
    if not _is_clip_text(model, tokenizer):
        raise UserError(f"the text tower of {name} is not CLIP's own; choose a CLIP that has one")
    return model, tokenizer


def _load_by_name(name: str):
    import open_clip

    model_name, _, tag = name.partition(":")
    if open_clip.get_model_config(model_name) is None:
        raise UserError(
            f"no CLIP file, folder or open_clip model of this name: {name};"
            " names look like ViT-L-14:openai"
        )
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise UserError(
            f"say which weights of {model_name}, e.g. {model_name}:{tags[0]}; there are"
            f" {', '.join(tags)}"
            if tags
            else f"open_clip knows no weights of {model_name}; give a folder instead"
        )
    spare_time_outs()
    quick_gelu = bool(open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu"))
    return _load_open_clip(name, model_name, tag, force_quick_gelu=quick_gelu)


def _load_openai_file(path: Path):
    """OpenAI's own file: a TorchScript archive (as released), or a plain state dict."""
    import open_clip
    from open_clip.model import build_model_from_openai_state_dict
    from open_clip.transform import PreprocessCfg

    with reading(f"not an OpenAI CLIP weight file: {path}", "fetch it again"):
        weights = _read_openai_weights(path)
        model = build_model_from_openai_state_dict(weights, cast_dtype=torch.float32).float()
    open_clip.model.set_model_preprocess_cfg(
        model, {**vars(PreprocessCfg()), "size": model.visual.image_size}
    )
    return model, open_clip.SimpleTokenizer(context_length=model.context_length)


def _read_openai_weights(path: Path) -> dict[str, torch.Tensor]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive, as OpenAI's files are; was the download cut?")
    with zipfile.ZipFile(path) as archive:
        scripted = any("/code/" in member for member in archive.namelist())
    if scripted:
        # TorchScript's reader builds tensors and script objects only; it imports no Python code.
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)
