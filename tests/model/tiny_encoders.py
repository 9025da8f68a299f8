"""Dual encoders with random weights, saved in the layouts of open_clip and of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from revisionllm.model.clip_open import CONFIG_NAME, WEIGHTS_NAME

WORDS = ["she", "opens", "the", "door", ".", "a", "man", "in", "red", "hat", "runs", "away", "?"]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
CONTEXT = 16
GREY = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
SIGLIP_TEXT = {
    "context_length": CONTEXT,
    "vocab_size": len(SPECIAL + WORDS),
    "hf_tokenizer_name": "tiny",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 64,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}
# name -> changes of the text tower, resize mode
OPEN_CLIP = {
    "SigLIP 2": ({}, "squash"),
    "end of text": ({"pool_type": "eos", "eos_id": 1}, "shortest"),
    "first token": ({"pool_type": "first"}, "squash"),
    "causal": ({"no_causal_mask": False, "proj_bias": False}, "shortest"),
}


def save_tokenizer(folder: Path, *, starts: bool) -> None:
    """Whole words, lower case, an end and perhaps a start."""
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, special = ("<s> $A </s>", ["<s>", "</s>"]) if starts else ("$A </s>", ["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(word, SPECIAL.index(word)) for word in special]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>" if starts else None,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"] if starts else ["input_ids"],
    ).save_pretrained(folder)


def save_open_clip(folder: Path, name: str) -> None:
    """One of `OPEN_CLIP`, as on the hub."""
    changes, resize_mode = OPEN_CLIP[name]
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg = {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": SIGLIP_TEXT | changes,
    }
    preprocess = {"size": 32, "mode": "RGB", "interpolation": "bicubic", "fill_color": 0} | GREY
    document = {"model_cfg": model_cfg, "preprocess_cfg": preprocess | {"resize_mode": resize_mode}}
    (folder / CONFIG_NAME).write_text(json.dumps(document))
    save_tokenizer(folder, starts=False)
    torch.manual_seed(0)
    cfg = json.loads(json.dumps(model_cfg))
    cfg.pop("custom_text")
    model = open_clip.CustomTextCLIP(**cfg)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS_NAME)


def save_transformers(folder: Path, kind: str) -> None:
    """A CLIP (words wider than the embedding) or SigLIP in transformers' layout."""
    torch.manual_seed(0)
    shared = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    shared["num_attention_heads"] = 2
    text = shared | {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": CONTEXT}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    vision = shared | {"image_size": 32, "patch_size": 8}
    processor = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    processor |= {"rescale_factor": 1 / 255, "image_mean": GREY["mean"], "image_std": GREY["std"]}
    if kind == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
        model = CLIPModel(config)
        processor |= {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True}
        processor |= {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    else:
        config = SiglipConfig(text_config=text, vision_config=vision)
        model = SiglipModel(config)
        processor |= {"image_processor_type": "SiglipImageProcessor", "resample": 2}
        processor |= {"size": {"height": 32, "width": 32}}
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_tokenizer(folder, starts=kind == "clip")
