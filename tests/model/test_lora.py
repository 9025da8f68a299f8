"""LoRA: where it goes, how many parameters, and that merging does what the formula says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from model_assets import ASSETS, BASE, tiny_llm
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from revisionllm.errors import UserError
from revisionllm.model.base import load_base
from revisionllm.model.clip_adapter import ClipAdapter
from revisionllm.model.lora import load_lora, merge_lora, new_lora, save_lora
from revisionllm.model.projector import FrameProjector

DENSE = ASSETS / "ckpt_dense"
IDS = torch.tensor([[1, 5, 6, 7, 8]])


def count(module, part=""):
    return sum(p.numel() for name, p in module.named_parameters() if part in name)


def test_parameter_counts_at_the_size_of_vicuna_7b():
    shape = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        llm = LlamaForCausalLM(shape)
        adapters = FrameProjector(768, 4096), ClipAdapter(768, 4096)
    assert count(llm) == 6_738_415_616
    assert [count(adapter) for adapter in adapters] == [3_149_824, 25_207_296]

    new_lora(llm)
    assert count(llm, ".lora_") == 159_907_840
    assert {p.requires_grad for n, p in llm.named_parameters() if ".lora_" in n} == {True}
    assert {p.requires_grad for n, p in llm.named_parameters() if ".lora_" not in n} == {False}


def test_all_linear_layers_of_the_blocks_and_nothing_else():
    llm = tiny_llm()
    linear = {n for n, m in llm.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    new_lora(llm, rank=2)
    touched = {n.split(".lora_A")[0] for n, _ in llm.named_parameters() if ".lora_A" in n}
    assert touched == linear
    assert isinstance(llm, LlamaForCausalLM)


@torch.no_grad()
def test_new_lora_changes_nothing_until_trained():
    llm = tiny_llm()
    before = llm(IDS).logits
    new_lora(llm, rank=2)
    assert torch.equal(llm.eval()(IDS).logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_merge_equals_the_formula(dtype):
    """B A in float32, times alpha / r, rounded to the base's dtype, added there."""
    base = load_file(BASE / "model.safetensors")
    lora = load_file(DENSE / "adapter_model.safetensors")
    merged = merge_lora(load_lora(load_base(str(BASE), dtype=dtype), DENSE))
    checked = 0
    for name, weight in merged.named_parameters():
        wanted = base[name].to(dtype)
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in lora:
            product = lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"] * (16 / 8)
            wanted = wanted + product.to(dtype)
            checked += 1
        assert torch.equal(weight, wanted), name
    assert checked == 14


@torch.no_grad()
def test_merged_equals_unmerged():
    apart = load_lora(load_base(str(BASE), dtype=torch.float32), DENSE)
    unmerged = apart.get_base_model().eval()(IDS).logits
    merged = merge_lora(apart)(IDS).logits
    torch.testing.assert_close(merged, unmerged, atol=2e-5, rtol=0)


@torch.no_grad()
def test_bin_and_safetensors_are_the_same(tmp_path):
    shutil.copytree(DENSE, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(DENSE / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    logits = [
        merge_lora(load_lora(load_base(str(BASE), dtype=torch.float32), folder))(IDS).logits
        for folder in (DENSE, tmp_path)
    ]
    assert torch.equal(*logits)


@torch.no_grad()
def test_stacked_loras_add_up_in_order():
    llm = load_base(str(BASE), dtype=torch.float16)
    for folder in (DENSE, ASSETS / "ckpt_stage2_cls"):
        llm = merge_lora(load_lora(llm, folder))
    name = "model.layers.1.mlp.up_proj"
    wanted = load_file(BASE / "model.safetensors")[f"{name}.weight"]
    for folder in (DENSE, ASSETS / "ckpt_stage2_cls"):
        lora = load_file(folder / "adapter_model.safetensors")
        a, b = (lora[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        wanted = wanted + (b @ a * 2).half()
    assert torch.equal(llm.get_submodule(name).weight, wanted)


def test_save_and_load_keep_every_bit(tmp_path):
    llm = tiny_llm()
    peft_model = new_lora(llm, rank=2)
    for name, parameter in llm.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    save_lora(peft_model, tmp_path / "lora")
    save_lora(peft_model, tmp_path / "lora")  # again, over the first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora"]

    again = tiny_llm()
    load_lora(again, tmp_path / "lora")
    wanted = dict(llm.named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


def test_the_saved_config_has_one_order_of_modules(tmp_path):
    """peft keeps their names in a set, in another order in every process."""
    modules = json.loads((DENSE / "adapter_config.json").read_text())["target_modules"]
    llm = load_base(str(BASE), dtype=torch.float32)
    save_lora(load_lora(llm, DENSE), tmp_path / "lora")
    saved = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(modules)


def test_modules_named_by_a_pattern_are_the_same_modules(tmp_path):
    shutil.copytree(DENSE, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    pattern = ".*(" + "|".join(config["target_modules"]) + ")"
    path.write_text(json.dumps(config | {"target_modules": pattern}))
    loaded = [load_base(str(BASE), dtype=torch.float32) for _ in range(2)]
    for llm, folder in zip(loaded, (DENSE, tmp_path), strict=True):
        load_lora(llm, folder)
    one, other = (dict(llm.named_parameters()) for llm in loaded)
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "only plain LoRA"), ({"r": 4}, r"misshapen \(28\)")],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    shutil.copytree(DENSE, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_lora(load_base(str(BASE), dtype=torch.float32), tmp_path)


def test_folder_without_lora_is_named(tmp_path):
    with pytest.raises(UserError, match=r"not a LoRA folder.*adapter_config\.json"):
        load_lora(tiny_llm(), tmp_path)


def test_configs_of_a_newer_peft_are_read_if_they_use_nothing_new(tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(DENSE, folder)
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text())
    harmless = {"peft_version": "9.9", "of_tomorrow_size": 16, "use_tomorrow": False, "other": None}
    path.write_text(json.dumps(document | harmless))
    load_lora(load_base(str(BASE), dtype=torch.float32), folder)
    path.write_text(json.dumps(document | {"use_tomorrow": True}))
    with pytest.raises(UserError, match="does not know use_tomorrow"):
        load_lora(load_base(str(BASE), dtype=torch.float32), folder)
