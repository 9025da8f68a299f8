"""The LLM and its tokenizer from a folder, a GGUF file or the hub's cache.

Bases are decoder-only LLMs of the families in `FAMILIES`, as transformers implements them; RoPE,
masks, biases and norms are each model's own. Vicuna-7B v1.5 is that of the published weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from revisionllm.errors import UserError, reading
from revisionllm.model.hub import SAFE, local, missing, refuse_own_code

# model_type of the bases that the tests run: Llama 2 and 3, Vicuna, SmolLM2; Qwen 2.5; Qwen 3;
# Mistral without a sliding window; SmolLM3
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "smollm3")
# kept in old LLaMA files; the tables are computed in float32 from the config instead
IGNORED_SUFFIX = "rotary_emb.inv_freq"
KNOWN_SENTENCE = "a man opens the door"
GET_BASE = "checkpoints/README.md says where to get it"


def dtype_argument() -> str:
    """What `from_pretrained` calls the dtype: transformers 4.56 renamed it."""
    return "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def load_base(base: str, *, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """Load an LLM; every weight must be in the file and used.

    Raises:
        UserError: not found, of another family, or weights that do not fit (all listed in one
            message).
    """
    location, extra = _location(base)
    config = llm_config(base)
    with reading(f"cannot load base {base}", GET_BASE):
        llm, info = AutoModelForCausalLM.from_pretrained(
            location,
            **extra,
            config=config,
            **{dtype_argument(): dtype},
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported below, with everything else
            **SAFE,
        )
    check_loading(base, info)
    # the file's own sampling settings play no part: decoding is greedy
    llm.generation_config = GenerationConfig(
        bos_token_id=llm.config.bos_token_id, eos_token_id=llm.config.eos_token_id
    )
    return llm.eval()


def llm_config(base: str) -> PretrainedConfig:
    """The LLM's config.

    Raises:
        UserError: it cannot be read, is of another family, or attends to a sliding window.
    """
    location, extra = _location(base)
    with reading(f"no config in base {base}", GET_BASE):
        config = AutoConfig.from_pretrained(location, **extra, **SAFE)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"base {base} has model_type {config.model_type!r}; what is read is"
            f" {', '.join(FAMILIES)}"
        )
    window = _sliding_window(config)
    if window is not None:
        raise UserError(
            f"base {base} attends to the last {window} tokens alone (sliding_window), a prompt must"
            " be seen whole; take a base without"
        )
    return config


def _sliding_window(config: PretrainedConfig) -> int | None:
    """How far back a layer attends; None if all see everything."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return None
    layers = getattr(config, "layer_types", None)
    return None if layers and "sliding_attention" not in layers else window


def meta_llm(base: str) -> PreTrainedModel:
    """The LLM without its weights (on the meta device): names and shapes, in no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(llm_config(base))


def cast_llm(llm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights (in place); the RoPE frequencies, a buffer, stay or become float32 again.

    `llm.to(dtype)` alone, or DeepSpeed, would round the frequencies too: positions of a few hundred
    are then off by a radian, and logits by three times as much as from rounded weights alone.
    """
    llm.to(dtype)
    compute_rotary_tables(llm)


def compute_rotary_tables(llm: PreTrainedModel) -> None:
    """The RoPE frequencies anew, in float32, whatever was done to the model."""
    rotary = type(llm.model.rotary_emb)
    llm.model.rotary_emb = rotary(config=llm.config).to(llm.device)


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token (unk, else eos) and right padding.

    Raises:
        UserError: the base has no tokenizer that can be read.
    """
    location, extra = _location(base)
    with reading(f"no tokenizer in base {base}", GET_BASE):
        tokenizer = AutoTokenizer.from_pretrained(location, **extra, **SAFE)
        if "gguf_file" in extra and _gguf_adds_bos(Path(base)):
            tokenizer.add_bos_token = True  # some versions of transformers leave it out
        _check_tokenizer(tokenizer, base, llm_config(base))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _gguf_adds_bos(path: Path) -> bool:
    """Whether a GGUF file's texts begin with BOS: as it says, else as LLaMA's tokenizer does."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    said = fields.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said.parts[said.data[0]][0])
    kind = fields.get("tokenizer.ggml.model")
    return kind is not None and bytes(kind.parts[kind.data[0]]) == b"llama"


def _check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, base: str, config: PretrainedConfig
) -> None:
    """Refuse a tokenizer that is not this base's: without its files, transformers makes up one.

    Raises:
        UserError: more tokens than embedding rows, another BOS than the config's, or a plain
            sentence does not come back.
    """
    problems = []
    rows, size = config.vocab_size, len(tokenizer)
    ids = list(tokenizer(KNOWN_SENTENCE)["input_ids"])
    if max([*ids, size - 1]) >= rows:
        problems.append(f"{size} tokens for {rows} embedding rows")
    if None not in (tokenizer.bos_token_id, config.bos_token_id) and (
        tokenizer.bos_token_id != config.bos_token_id
    ):
        problems.append(
            f"BOS is token {tokenizer.bos_token_id}, the config says {config.bos_token_id}"
        )
    back = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if back.lower() != KNOWN_SENTENCE.lower():
        problems.append(f"{KNOWN_SENTENCE!r} comes back as {back[:40]!r}")
    if problems:
        raise UserError(
            f"base {base} has no fitting tokenizer: {'; '.join(problems)}; are tokenizer.model or"
            " tokenizer.json missing beside config.json?"
        )


def _location(base: str) -> tuple[str, dict[str, Any]]:
    """What to give to `from_pretrained`: a folder, and the file name for GGUF.

    Raises:
        UserError: no base there.
    """
    path = Path(local(base))
    if not path.exists():
        raise UserError(f"base not found: {missing(base)}; {GET_BASE}")
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if not (path / "config.json").is_file():
        raise UserError(f"base not found: {path / 'config.json'}; {GET_BASE}")
    refuse_own_code(path, "bases")
    return str(path), {}


def check_loading(base: str, info: dict[str, Any]) -> None:
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith(IGNORED_SUFFIX)]
    parts = []
    for name, keys in (
        ("missing", info["missing_keys"]),
        ("unexpected", unexpected),
        ("misshapen", info["mismatched_keys"]),
    ):
        if keys:
            listed = ", ".join(sorted(str(key) for key in keys)[:20])
            parts.append(f"{name} ({len(keys)}): {listed}")
    if parts:
        raise UserError(f"base {base} does not fit its config: " + "; ".join(parts))
