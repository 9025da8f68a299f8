"""Bases: local folders, GGUF files, what is refused; and the choices made for the machine."""

from __future__ import annotations

import json
import shutil

import gguf
import pytest
import torch
from model_assets import BASE, save_base, tiny_llm
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

from revisionllm.errors import UserError
from revisionllm.model import base

IDS = torch.tensor([[1, 5, 6, 7, 8]])
PROMPT = "USER: \nDuring which frames can we see a man 12?"


def load(path, dtype=torch.float32):
    return base.load_base(str(path), dtype=dtype)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_local_folder(tmp_path, tied):
    llm = tiny_llm(tie_word_embeddings=tied)
    found = load(save_base(llm, tmp_path))
    assert torch.equal(found(IDS).logits, llm(IDS).logits)


def permuted(weight, num_heads):
    """llama.cpp's order of the rows of q and k."""
    rows = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(llm, path):
    config = llm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    pieces = SentencePieceProcessor(str(BASE / "tokenizer.model"))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.IdToPiece(i) for i in range(len(pieces))])
    writer.add_token_scores([pieces.GetScore(i) for i in range(len(pieces))])
    writer.add_token_types(
        [6 if pieces.IsByte(i) else 3 if pieces.IsControl(i) else 1 for i in range(len(pieces))]
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in llm.state_dict().items():
        part = name.split(".")[-2]
        array = permuted(tensor, heads[part]) if part in heads else tensor
        writer.add_tensor(
            names.get_name(name.removesuffix(".weight")) + ".weight", array.contiguous().numpy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def test_gguf_file(tmp_path):
    llm = tiny_llm(num_key_value_heads=4)
    write_gguf(llm, tmp_path / "tiny.gguf")
    found = load(tmp_path / "tiny.gguf")
    torch.testing.assert_close(found(IDS).logits, llm(IDS).logits, atol=1e-5, rtol=0)
    tokenizer = base.load_tokenizer(str(tmp_path / "tiny.gguf"))
    assert tokenizer(PROMPT)["input_ids"] == base.load_tokenizer(str(BASE))(PROMPT)["input_ids"]
    shapes = base.meta_llm(str(tmp_path / "tiny.gguf")).state_dict()
    assert {n: t.shape for n, t in shapes.items()} == {
        n: t.shape for n, t in llm.state_dict().items()
    }


def test_old_rotary_tables_are_ignored_and_computed_in_float32():
    assert any("inv_freq" in name for name in load_file(BASE / "model.safetensors"))
    rotary = load(BASE, torch.float16).model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    wanted = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(rotary.inv_freq, wanted, atol=1e-7, rtol=1e-6)


def test_casting_keeps_the_rotary_tables_in_float32():
    llm = load(BASE)
    wanted = llm.model.rotary_emb.inv_freq.clone()
    llm.bfloat16()  # what DeepSpeed does to a model
    assert not torch.equal(llm.model.rotary_emb.inv_freq.float(), wanted)
    base.cast_llm(llm, torch.bfloat16)
    assert torch.equal(llm.model.rotary_emb.inv_freq, wanted)
    assert {p.dtype for p in llm.parameters()} == {torch.bfloat16}


def test_sampling_settings_of_the_file_play_no_part():
    settings = load(BASE).generation_config  # the file says temperature 0.9, top_p 0.6
    assert not settings.do_sample and settings.temperature in (None, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"missing \(1\): model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), r"unexpected \(1\): extra"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(3, 64)}), r"misshapen \(1\): .*lm_head"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(0)}), r"misshapen \(1\): .*lm_head"),
    ],
)
def test_weights_that_do_not_fit_stop(tmp_path, change, message):
    shutil.copytree(BASE, tmp_path, dirs_exist_ok=True)
    tensors = load_file(BASE / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_torn_base_is_named(tmp_path):
    shutil.copytree(BASE, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load base"):
        load(tmp_path)


def test_other_architectures_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="base not found"):
        load(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="llama, qwen2"):
        load(tmp_path)
    with pytest.raises(UserError, match="base not found"):
        load(tmp_path / "absent.gguf")


def test_tokenizer_gets_a_padding_token(tmp_path):
    tokenizer = base.load_tokenizer(str(BASE))
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (0, "right")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="no tokenizer in base"):
        base.load_tokenizer(str(tmp_path))
