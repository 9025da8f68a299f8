"""A tiny Whisper with random weights, in faster-whisper's layout."""

from __future__ import annotations

import json
from pathlib import Path


def save_tiny_whisper(folder: Path) -> Path:
    """Write a model that faster-whisper loads; `folder` must not be there yet."""
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    source = folder.parent / f"{folder.name}-source"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += ["<|nospeech|>", "<|notimestamps|>"]
    special += [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
    vocab = {token: number for number, token in enumerate([*alphabet, *special])}
    plain = Tokenizer(models.BPE({token: vocab[token] for token in alphabet}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(special)
    tokenizer = WhisperTokenizerFast(tokenizer_object=plain)
    config = WhisperConfig(
        vocab_size=len(vocab),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=80,
        bos_token_id=vocab["<|endoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
        decoder_start_token_id=vocab["<|startoftranscript|>"],
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    import torch

    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.lang_to_id = {f"<|{code}|>": vocab[f"<|{code}|>"] for code in LANGUAGES}
    model.generation_config.no_timestamps_token_id = vocab["<|notimestamps|>"]
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    WhisperFeatureExtractor().save_pretrained(source)
    TransformersConverter(
        str(source), copy_files=["tokenizer.json", "preprocessor_config.json"]
    ).convert(str(folder))
    assert json.loads((folder / "config.json").read_text())
    return folder
