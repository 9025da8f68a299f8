"""Dual encoders through transformers: any `AutoModel` that has features of images and of texts.

`google/siglip2-base-patch16-224`, `openai/clip-vit-large-patch14` and their like, as folders or
`hf:` references. https://huggingface.co/docs/transformers/model_doc/siglip
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revisionllm.errors import UserError, reading
from revisionllm.files import read_json
from revisionllm.model.clip import GET_CLIP, Pictures
from revisionllm.model.hub import SAFE, refuse_own_code

PROCESSOR_NAME = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3  # of PIL


class TransformersTowers:
    """`clip.Towers` of a transformers dual encoder and its tokenizer."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Any, processor: dict) -> None:
        self.module, self._tokenizer = model, tokenizer
        self.pictures = _pictures(name, processor)
        self.about = {"preprocess": vars(self.pictures), "model_type": model.config.model_type}
        self.context_length = int(model.config.text_config.max_position_embeddings)
        self.special_tokens = list(tokenizer.all_special_tokens)
        with reading(f"broken tokenizer of CLIP {name}"):
            self.num_tokens("a man opens the door.")
        with torch.inference_mode():
            states, _, sentence = self.texts(["a man opens the door."])
            size = self.pictures.size
            image = self.images(torch.zeros(1, 3, size, size))
        self.text_width, self.dim = states.shape[-1], sentence.shape[-1]
        if image.shape != sentence.shape:
            raise UserError(f"{name} gives pictures {image.shape[-1]} numbers, texts {self.dim}")
        if self.text_width != self.dim and self._projection() is None:
            raise UserError(
                f"{name}: words are {self.text_width} wide, sentences {self.dim}, and no linear"
                " layer leads from one to the other; choose another encoder"
            )

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return _features(self.module.get_image_features(pixel_values=pixels))

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # padded as in their training: SigLIP reads the padding
        inputs = self._tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.context_length,
            return_tensors="pt",
        )
        found: list[torch.Tensor] = []
        hook = self.module.text_model.register_forward_hook(
            lambda _module, _inputs, output: found.append(output[0])
        )
        device = next(self.module.parameters()).device
        try:
            sentence = _features(self.module.get_text_features(**inputs.to(device)))
        finally:
            hook.remove()
        special = torch.tensor(self._tokenizer.all_special_ids)
        return found[0], ~torch.isin(inputs["input_ids"].cpu(), special), sentence

    def widen(self, states: torch.Tensor) -> torch.Tensor:
        projection = self._projection()
        return projection(states.to(projection.weight))

    def _projection(self) -> nn.Linear | None:
        """The last layer of the text tower, from W_t to D."""
        for owner, name in ((self.module, "text_projection"), (self.module.text_model, "head")):
            layer = getattr(owner, name, None)
            if isinstance(layer, nn.Linear):
                return layer
        return None

    def num_tokens(self, text: str) -> int:
        return len(self._tokenizer(text)["input_ids"])


def _features(output: Any) -> torch.Tensor:
    """Features [n, D]; transformers 5 returns them inside its usual output."""
    return output if torch.is_tensor(output) else output.pooler_output


def _pictures(name: str, processor: dict[str, Any]) -> Pictures:
    """What the image tower takes, by `preprocessor_config.json`."""
    with reading(f"cannot read the preprocessing of {name}"):
        size, crop = processor["size"], processor.get("crop_size") or {}
        squash = "height" in size
        sizes = [size["height"], size["width"]] if squash else [size["shortest_edge"]] * 2
        cropped = [crop["height"], crop["width"]] if processor.get("do_center_crop") else sizes
        mean, std = (tuple(float(x) for x in processor[f"image_{key}"]) for key in ("mean", "std"))
        resample = int(processor.get("resample", BICUBIC))
        factor = float(processor.get("rescale_factor", 1 / 255))
    plain = all(processor.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize"))
    square = sizes[0] == sizes[1] and cropped[0] == cropped[1] <= sizes[0]
    whole = processor.get("do_center_crop") or squash
    if not (plain and square and whole and len(mean) == len(std) == 3):
        raise UserError(f"{name} prepares pictures in a way that is not supported: {processor}")
    if resample not in (BILINEAR, BICUBIC) or abs(factor - 1 / 255) > 1e-6:
        raise UserError(f"{name}: resample {resample}, rescale_factor {factor} are not supported")
    squash = squash and cropped == sizes
    return Pictures(int(cropped[0]), int(sizes[0]), squash, resample == BILINEAR, mean, std)


def load_folder(name: str, folder: Path) -> TransformersTowers:
    """Towers of a folder in transformers' layout.

    Raises:
        UserError: something is missing or damaged, it brings code of its own, or it is no dual
            encoder of square pictures.
    """
    from transformers import AutoModel, AutoTokenizer

    for file in ("config.json", PROCESSOR_NAME):
        if not (folder / file).is_file():
            raise UserError(f"no CLIP folder, open_clip_config.json or {file} is missing: {folder}")
    refuse_own_code(folder, "CLIPs")
    processor = read_json(folder / PROCESSOR_NAME, kind=dict)
    kind = read_json(folder / "config.json", kind=dict).get("model_type")
    if kind == "siglip2":
        raise UserError(
            f"{name} takes pictures of any shape (NaFlex), which is not supported; take one of a"
            " fixed size, e.g. hf:google/siglip2-base-patch16-224"
        )
    with reading(f"cannot load CLIP {name}", GET_CLIP):
        model, info = AutoModel.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **SAFE
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise UserError(f"{name} is a {kind}: it has no features of images and of texts")
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    if missing or info["mismatched_keys"]:
        keys = ", ".join([*missing, *map(str, info["mismatched_keys"])][:5])
        raise UserError(f"CLIP {name} lacks weights: {keys}; {GET_CLIP}")
    with reading(f"cannot use CLIP {name}", GET_CLIP):
        return TransformersTowers(name, model.eval(), tokenizer, processor)
