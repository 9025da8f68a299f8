"""Byte-level tokenizers that cut texts as those of Llama 3 and Qwen do, trained on a few words.

Llama 3 has tokens of up to three digits, Qwen writes every digit by itself and has no BOS. Their
chat templates are written after the models' own; that of "no system" refuses a system text.
"""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from revisionllm.formats.questions import QUESTIONS
from revisionllm.grounding.answers import NOT_PRESENT, format_segments, format_span
from revisionllm.model.prompts import SYSTEM

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}[INST] {{ m.content }} [/INST]{% endfor %}"
)
# name -> digits of a number's token, special tokens, BOS, EOS, chat template
KINDS = {
    "llama 3": (
        "{1,3}",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        LLAMA_3_CHAT,
    ),
    "qwen": ("", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", CHAT_ML),
    "no system": ("", ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", NO_SYSTEM),
}


@cache
def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    digits, special, bos, eos, template = KINDS[kind]
    backend = Tokenizer(models.BPE())
    pattern = Regex(SPLIT.replace("NUMBER", digits))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    numbers = [format_span(n, n) + format_segments(n, n) for n in range(250)]
    corpus = numbers * 4 + [SYSTEM, NOT_PRESENT, *QUESTIONS.values(), "system user assistant"] * 9
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos
    )
    tokenizer.chat_template = template
    return tokenizer
