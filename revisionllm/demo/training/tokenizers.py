"""The demo's two small tokenizers, trained on its own sentences.

Both are byte-fallback BPE, so that any text a user types can be encoded. The LLM's follows LLaMA's
layout (<unk> 0, <s> 1, </s> 2, single digits, leading-space pieces); CLIP's ends with its
end-of-text token, because open_clip pools the text at the highest id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.files import read_json, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = [f"<0x{value:02X}>" for value in range(256)]
CLIP_START, CLIP_END = "<start_of_text>", "<end_of_text>"


def _bpe(corpus: Iterable[str], specials: list[str], vocab_size: int):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=specials[0], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(Regex("[\r\t]"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*specials, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def train_llm_tokenizer(corpus: Iterable[str], folder: str | Path, vocab_size: int) -> None:
    """Train the LLM's tokenizer on `corpus` and write it to `folder` (transformers layout)."""
    from tokenizers import processors

    tokenizer = _bpe(corpus, ["<unk>", "<s>", "</s>"], vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    _save(tokenizer, folder, bos_token="<s>", eos_token="</s>")


def train_clip_tokenizer(corpus: Iterable[str], folder: str | Path, vocab_size: int) -> int:
    """Train CLIP's tokenizer, write it to `folder` and return its vocabulary size."""
    from tokenizers import normalizers, processors

    tokenizer = _bpe(corpus, ["<unk>"], vocab_size - 2)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (CLIP_START, CLIP_END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}", special_tokens=ids
    )
    _save(tokenizer, folder, bos_token=CLIP_START, eos_token=CLIP_END)
    return tokenizer.get_vocab_size()


def _save(tokenizer: Tokenizer, folder: str | Path, **special_tokens: str) -> None:
    """Write a tokenizer in transformers' layout, under a class name that all its versions know."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        **special_tokens,
    ).save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})
