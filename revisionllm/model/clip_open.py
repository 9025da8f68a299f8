"""Dual encoders through open_clip, with text towers that pool in any way.

https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revisionllm.errors import UserError, reading
from revisionllm.files import read_json, replacing, write_json
from revisionllm.model.clip import GET_CLIP, Pictures
from revisionllm.model.hub import missing, refuse_own_code

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
HUB_FILES = (WEIGHTS_NAME, "open_clip_pytorch_model.bin", "open_clip_pytorch_model.safetensors")


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


class OpenClipTowers:
    """`clip.Towers` of an open_clip model and its tokenizer.

    Raises:
        UserError: preprocessing or text tower of an unknown kind.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer: Any) -> None:
        self.module, self._tokenizer = model, tokenizer
        self.pictures, preprocess = _pictures(name, model)
        layers = sorted({type(module).__name__ for module in model.modules()})
        # GELU and QuickGELU share weights and differ in features.
        activations = [layer for layer in layers if layer.endswith("GELU")]
        self.about = {"preprocess": preprocess, "activations": activations}
        self._text = model if "ln_final" in model._modules else getattr(model, "text", None)
        self._states_of = self._states_module(name)
        with reading(f"broken tokenizer of CLIP {name}"):
            self.num_tokens("a man opens the door.")
        with torch.inference_mode():
            states, _, sentence = self.texts(["a man opens the door."])
        if states.dim() != 3:
            raise UserError(
                f"the text tower of {name} gives no states of its words; choose another"
            )
        self.text_width, self.dim = states.shape[-1], sentence.shape[-1]

    def _states_module(self, name: str) -> nn.Module:
        """What gives the states of words: the final layer norm, or a whole encoder."""
        for part in ("ln_final", "transformer"):
            if self._text is not None and part in self._text._modules:
                return getattr(self._text, part)
        raise UserError(f"the text tower of {name} is of an unknown kind; choose another CLIP")

    @property
    def context_length(self) -> int:
        return int(self._tokenizer.context_length or self.module.context_length)

    @property
    def special_tokens(self) -> list[str]:
        if self._is_simple:
            return [self._tokenizer.decoder[n] for n in self._tokenizer.all_special_ids]
        return list(self._tokenizer.tokenizer.all_special_tokens)

    @property
    def _is_simple(self) -> bool:
        import open_clip

        return isinstance(self._tokenizer, open_clip.SimpleTokenizer)

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(pixels)

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = self._tokenizer(list(texts))
        found: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.append(output if torch.is_tensor(output) else output.last_hidden_state)

        hook = self._states_of.register_forward_hook(keep)
        try:
            sentence = self.module.encode_text(ids.to(next(self.module.parameters()).device))
        finally:
            hook.remove()
        return found[0], self._words(texts, ids), sentence

    def _words(self, texts: Sequence[str], ids: torch.Tensor) -> torch.Tensor:
        """bool [n, L], True where a token is neither padding nor special."""
        if not self._is_simple:
            special = torch.tensor(self._tokenizer.tokenizer.all_special_ids)
            return ~torch.isin(ids, special)
        # this tokenizer pads with the number of "!"
        last = torch.tensor([[self.num_tokens(text) - 1] for text in texts])
        column = torch.arange(ids.shape[1])[None]
        return (column > 0) & (column < last)

    def widen(self, states: torch.Tensor) -> torch.Tensor:
        projection = getattr(self._text, "text_projection", None)
        projection = getattr(self._text, "proj", None) if projection is None else projection
        if isinstance(projection, nn.Module):
            return projection(states.to(next(projection.parameters())))
        return states.to(projection) @ projection

    def num_tokens(self, text: str) -> int:
        if self._is_simple:
            return len(self._tokenizer.encode(text)) + 2
        return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text))["input_ids"])


def _pictures(name: str, model: nn.Module) -> tuple[Pictures, dict[str, Any]]:
    """What the image tower takes, and open_clip's own description of it."""
    with reading(f"cannot read the preprocessing of CLIP {name}"):
        preprocess = dict(model.visual.preprocess_cfg)
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mean, std = (tuple(float(x) for x in preprocess[key]) for key in ("mean", "std"))
        if not len(mean) == len(std) == 3:
            raise ValueError(f"mean {mean} and std {std} are not of three colours")
    if height != width or preprocess["resize_mode"] not in ("shortest", "squash"):
        raise UserError(
            f"CLIP {name} takes {height}x{width} pictures, resize mode"
            f" {preprocess['resize_mode']}; only square ones, shortest or squash, are supported"
        )
    squash, bilinear = preprocess["resize_mode"] == "squash", preprocess["interpolation"]
    return Pictures(height, height, squash, bilinear == "bilinear", mean, std), preprocess


def load_folder(name: str, folder: Path) -> OpenClipTowers:
    """Towers of a folder with `open_clip_config.json`, its weights and, if it has one, tokenizer.

    Raises:
        UserError: something is missing, damaged, or brings code of its own.
    """
    return _load_open_clip(name, f"local-dir:{_checked_folder(folder)}", None)


def _checked_folder(folder: Path) -> Path:
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"not a CLIP folder, {CONFIG_NAME} is missing: {folder}")
    read_json(folder / CONFIG_NAME, kind=dict, mend="copy the CLIP again")
    refuse_own_code(folder, "CLIPs", ["tokenizer_config.json"])
    return folder.resolve()


def _load_open_clip(name: str, open_clip_name: str, tag: str | None, **options):
    """Let open_clip build and fill the model; refuse to go on with random weights."""
    import open_clip

    with reading(f"cannot load CLIP {name}", GET_CLIP):
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
        return OpenClipTowers(name, model.eval(), tokenizer)


def load_by_name(name: str) -> OpenClipTowers:
    """Towers of an open_clip name with its tag, `ViT-L-14:openai`, from the local cache.

    Raises:
        UserError: no such name or tag, or not in the cache; names the command that gets it.
    """
    model_name, tag, config = pretrained(name)
    if cached_weights(config) is None:
        raise UserError(
            f"{name} is not in the local cache; `revisionllm models get clip:{name}` downloads it"
        )
    quick_gelu = bool(config.get("quick_gelu"))
    return _load_open_clip(name, model_name, tag, force_quick_gelu=quick_gelu)


def pretrained(name: str) -> tuple[str, str, dict[str, Any]]:
    """open_clip's model name, tag and description of the weights of `NAME:TAG`.

    Raises:
        UserError: there are no such weights; lists those there are.
    """
    import open_clip

    model_name, _, tag = name.partition(":")
    if open_clip.get_model_config(model_name) is None:
        raise UserError(
            f"no CLIP file, folder or open_clip model of this name: {missing(name)};"
            " open_clip's names look like ViT-L-14:openai"
        )
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise UserError(
            f"say which weights of {model_name}, e.g. {model_name}:{tags[0]}; there are"
            f" {', '.join(tags)}"
            if tags
            else f"open_clip knows no weights of {model_name}; give a folder instead"
        )
    return model_name, tag, open_clip.get_pretrained_cfg(model_name, tag)


def cached_weights(config: dict[str, Any]) -> str | None:
    """Where the cache has the weights that `pretrained` describes; None if it has not."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = config.get("hf_hub", "").rpartition("/")
    names = (file,) if file else HUB_FILES
    if repository:
        found = [try_to_load_from_cache(repository, name) for name in names]
        return next((path for path in found if isinstance(path, str)), None)
    path = Path("~/.cache/clip").expanduser() / os.path.basename(config.get("url", ""))
    return str(path) if path.is_file() else None


def load_openai_file(path: Path) -> OpenClipTowers:
    """Towers of OpenAI's own file: a TorchScript archive (as released), or a plain state dict."""
    import open_clip
    from open_clip.model import build_model_from_openai_state_dict
    from open_clip.transform import PreprocessCfg

    with reading(f"not an OpenAI CLIP weight file: {path}", "fetch it again"):
        weights = _read_openai_weights(path)
        model = build_model_from_openai_state_dict(weights, cast_dtype=torch.float32).float()
    open_clip.model.set_model_preprocess_cfg(
        model, {**vars(PreprocessCfg()), "size": model.visual.image_size}
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    return OpenClipTowers(str(path), model.eval(), tokenizer)


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
