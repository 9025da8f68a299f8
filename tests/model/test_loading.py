"""The loader: run folders bit for bit, every published layout, and what stops it."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from model_assets import (
    ASSETS,
    BASE,
    PROJECTOR,
    dense_images,
    manifest,
    query,
    released,
    save_base,
    tiny_llm,
)
from safetensors.torch import load_file, save_file

from revisionllm.constants import VIDEO_TOKEN_ID
from revisionllm.errors import UserError
from revisionllm.model.config import AdapterConfig
from revisionllm.model.loading import describe, load_model, save_run
from revisionllm.model.lora import new_lora

IDS = torch.tensor([[1, 5, VIDEO_TOKEN_ID, 6, 7]])
IMAGES = torch.randn(1, 6, 768, generator=torch.Generator().manual_seed(0))
CPU = {"device": "cpu", "dtype": "float32"}


@torch.no_grad()
def logits(model):
    return model(IDS, IMAGES).logits


def trained(**settings):
    """The dense checkpoint with adapter and LoRA moved a little."""
    model = released("ckpt_dense", lora_mode="train", **settings)
    model.set_trainable(adapter=True, lora=True)
    model(IDS, IMAGES, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    return model


# ---- run folders


def test_save_and_load_give_equal_logits_bit_for_bit(tmp_path):
    model = trained()
    save_run(model, tmp_path / "run")
    again = load_model(tmp_path / "run", lora_mode="frozen", **CPU)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(released("ckpt_dense")), logits(model))


def test_saving_twice_and_loading_merged_are_stable(tmp_path):
    save_run(trained(), tmp_path / "a")
    first = load_model(tmp_path / "a", **CPU)
    save_run(first, tmp_path / "b")  # LoRA is merged: the config names the one of the first run
    again = load_model(tmp_path / "b", **CPU)
    assert torch.equal(logits(again), logits(first))
    assert again.config.lora == [str(tmp_path / "a" / "lora")]
    assert not (tmp_path / "b" / "lora").exists()


def test_run_folder_says_what_wrote_it(tmp_path):
    save_run(trained(), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert set(stored["versions"]) >= {"torch", "transformers", "peft"}
    assert stored["parent"].endswith("ckpt_dense")
    assert (stored["lora"], stored["adapter_file"]) == (["lora"], "adapter.safetensors")


def test_train_mode_trains_the_last_lora_and_set_trainable_decides():
    model = released("ckpt_dense", lora_mode="train")
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving and all(".lora_" in name for name in moving)
    model.set_trainable(adapter=True, lora=False)
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {"projector.linear.weight", "projector.linear.bias"}


def test_new_lora_on_a_merged_one(tmp_path):
    model = released("ckpt_dense")  # merge_then_new
    model.attach_lora(new_lora(model.llm, rank=2))
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_run(model, tmp_path)
    again = load_model(tmp_path, lora_mode="frozen", **CPU)
    assert again.merged_lora == [str(ASSETS / "ckpt_dense")]
    assert torch.equal(logits(again), logits(model))


def test_new_adapter_on_a_dense_run(tmp_path, capsys):
    save_run(trained(), tmp_path)
    sparse = AdapterConfig("clip", 768, output="segment")
    model = load_model(tmp_path, adapter=sparse, stage="sparse", lora_mode="frozen", **CPU)
    assert model.embed_frames(dense_images(), *query(3).values()).shape == (3, 1, 64)
    assert "new clip adapter" in capsys.readouterr().err


def test_sparse_adapter_of_another_run_on_a_dense_run(tmp_path):
    save_run(trained(), tmp_path / "dense")
    sparse = released("ckpt_sparse", stage="sparse")
    save_run(sparse, tmp_path / "sparse")
    for source in (tmp_path / "sparse", ASSETS / "ckpt_sparse"):
        model = load_model(tmp_path / "dense", adapter_file=source, stage="long", **CPU)
        wanted = sparse.projector.state_dict()
        found = model.projector.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_base_with_new_adapter_and_overrides(tmp_path):
    model = load_model(
        save_base(tiny_llm(), tmp_path), adapter=AdapterConfig("linear", 768), window_s=60.0, **CPU
    )
    assert model.config.window_s == 60.0
    assert logits(model).shape == (1, 4 + 6, 512)


# ---- published layouts that have no files here: made from the manifest's keys and shapes


def write_from_manifest(name, folder):
    """Files with the manifest's keys, shapes and dtypes, and random values."""
    shutil.copytree(ASSETS / "ckpt_dense", folder)
    (folder / "adapter_model.safetensors").unlink()
    generator = torch.Generator().manual_seed(1)
    written = {}
    for file, entries in manifest(name).items():
        tensors = {
            key: (torch.randn(entry["shape"], generator=generator) * 0.1).to(
                getattr(torch, entry["dtype"].removeprefix("torch."))
            )
            for key, entry in entries.items()
        }
        save = save_file if file.endswith(".safetensors") else torch.save
        save(tensors, folder / file)
        written |= tensors
    return written


def adapter_tensors(prefix, tensors):
    """What follows the prefix."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def test_projector_inside_non_lora_trainables(tmp_path):
    tensors = write_from_manifest("ckpt_dense_with_projector", tmp_path / "x")
    found = load_model(tmp_path / "x", base=str(BASE), **CPU).projector
    wanted = adapter_tensors("base_model.model.model.mm_projector.", tensors)
    assert torch.equal(found.linear.weight, wanted["weight"])
    assert torch.equal(found.linear.bias, wanted["bias"])


def test_projector_beside_is_overruled_by_the_trained_one(tmp_path):
    tensors = write_from_manifest("ckpt_dense_with_projector", tmp_path / "x")
    model = load_model(tmp_path / "x", base=str(BASE), adapter_file=PROJECTOR, **CPU)
    wanted = tensors["base_model.model.model.mm_projector.weight"]
    assert torch.equal(model.projector.linear.weight, wanted)


def test_second_lora_as_bin_on_top_of_the_first(tmp_path):
    tensors = write_from_manifest("ckpt_dense_bin", tmp_path / "x")
    model = released("ckpt_dense", lora=[ASSETS / "ckpt_dense", tmp_path / "x"])
    once = released("ckpt_dense").llm.model.layers[0].self_attn.q_proj.weight
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = tensors[key.format("A")], tensors[key.format("B")]
    twice = (once.half() + (b @ a * 2).half()).float()
    assert torch.equal(model.llm.model.layers[0].self_attn.q_proj.weight, twice)


@torch.no_grad()
def test_alternate_output_has_its_layer_norm(tmp_path):
    tensors = write_from_manifest("ckpt_stage2_alternate", tmp_path / "x")
    model = load_model(tmp_path / "x", base=str(BASE), stage="long", **CPU)
    assert model.config.adapter.output == "alternate"
    projector = model.projector
    norm = adapter_tensors("base_model.model.model.alternate_layer_norm.", tensors)
    for kind, images in (("segment", IMAGES[None]), ("frames", IMAGES)):
        found = model.embed_frames(images, *query(1).values(), output=kind)
        with_norm, projector.alternate_layer_norm = (
            projector.alternate_layer_norm,
            torch.nn.Identity(),
        )
        plain = model.embed_frames(images, *query(1).values(), output=kind)
        projector.alternate_layer_norm = with_norm
        wanted = torch.nn.functional.layer_norm(plain, (64,), norm["weight"], norm["bias"])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["ckpt_chapters_cls", "ckpt_chapters_alternate"])
def test_chapters_take_the_sparse_adapter_beside_them(tmp_path, name):
    write_from_manifest(name, tmp_path / "x")
    settings = {"base": str(BASE), "stage": "long", **CPU}
    with pytest.raises(UserError, match="needs the sparse CLIP adapter"):
        load_model(tmp_path / "x", **settings)
    model = load_model(tmp_path / "x", adapter_file=ASSETS / "ckpt_sparse", **settings)
    wanted = released("ckpt_sparse", stage="sparse").projector.state_dict()
    found = model.projector.state_dict()
    extra = {"alternate_layer_norm.weight", "alternate_layer_norm.bias"}
    assert set(found) - set(wanted) == (extra if "alternate" in name else set())
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_adapter_as_a_separate_module_before_the_llm(tmp_path, capsys):
    """Chapters keep the adapter under `cross_attn.`; the stage-1 projector is then not applied."""
    original = ASSETS / "ckpt_sparse" / "non_lora_trainables.bin"
    tensors = torch.load(original, weights_only=True)
    tensors = {k.replace("mm_projector.", "cross_attn.", 1): t for k, t in tensors.items()}
    tensors |= torch.load(PROJECTOR, weights_only=True)
    shutil.copytree(ASSETS / "ckpt_sparse", tmp_path / "x")
    torch.save(tensors, tmp_path / "x" / "non_lora_trainables.bin")
    model = load_model(tmp_path / "x", base=str(BASE), stage="sparse", **CPU)
    wanted = released("ckpt_sparse", stage="sparse").projector.state_dict()
    assert all(torch.equal(t, wanted[key]) for key, t in model.projector.state_dict().items())
    assert "model.mm_projector.weight is not used" in capsys.readouterr().err


def test_own_sparse_adapter_under_a_published_layer_norm(tmp_path):
    save_run(released("ckpt_sparse", stage="sparse"), tmp_path / "sparse")
    tensors = write_from_manifest("ckpt_chapters_alternate", tmp_path / "x")
    settings = {"adapter_file": tmp_path / "sparse", "base": str(BASE), "stage": "long"}
    model = load_model(tmp_path / "x", **settings, **CPU)
    wanted = tensors["base_model.model.model.alternate_layer_norm.bias"]
    assert torch.equal(model.projector.alternate_layer_norm.bias, wanted)


def test_published_adapter_without_its_lora():
    model = released("ckpt_sparse", stage="sparse", lora=[])
    base = released("ckpt_base").llm.state_dict()
    assert model.config.lora == []
    assert all(torch.equal(t, base[name]) for name, t in model.llm.state_dict().items())


def test_published_defaults():
    config, _ = describe(ASSETS / "ckpt_stage2_cls", stage="long")
    assert (config.question, config.answer_end) == ("video", "exclusive")
    assert (config.time_mapping, config.merge_dtype) == ("released", "float16")
    assert config.base == str(BASE)  # found beside the checkpoint by the name it gives
    config, _ = describe(ASSETS / "ckpt_dense", adapter_file=PROJECTOR)
    assert (config.stage, config.question, config.answer_end) == ("dense", "frames", "inclusive")


# ---- what stops the loader


def broken_sparse(tmp_path, change):
    shutil.copytree(ASSETS / "ckpt_sparse", tmp_path / "x")
    file = tmp_path / "x" / "non_lora_trainables.bin"
    tensors = {k: t.contiguous() for k, t in torch.load(file, weights_only=True).items()}
    change(tensors)
    torch.save(tensors, file)
    return tmp_path / "x"


KEY = "base_model.model.model.mm_projector.encoder.layers.0."


def test_all_differences_in_one_message(tmp_path):
    def change(tensors):
        del tensors[KEY + "linear1.bias"]
        tensors[KEY + "linear9.bias"] = torch.zeros(3)
        tensors[KEY + "linear2.bias"] = torch.zeros(5)

    with pytest.raises(UserError) as error:
        load_model(broken_sparse(tmp_path, change), base=str(BASE), stage="sparse", **CPU)
    for part in (
        "missing (1): encoder.layers.0.linear1.bias",
        "unexpected (1): encoder.layers.0.linear9.bias",
        "misshapen (1): encoder.layers.0.linear2.bias [5] for [768]",
    ):
        assert part in str(error.value)
    assert "ZeRO-3" not in str(error.value)


@pytest.mark.parametrize("shape", [(0,), (2048 * 768,)])
def test_tensors_that_zero3_emptied_or_flattened(tmp_path, shape):
    def change(tensors):
        tensors[KEY + "linear1.weight"] = torch.zeros(shape)

    with pytest.raises(UserError, match=r"misshapen \(1\).*linear1.weight.*zero_to_fp32"):
        load_model(broken_sparse(tmp_path, change), base=str(BASE), stage="sparse", **CPU)


def test_empty_lora_tensors(tmp_path):
    shutil.copytree(ASSETS / "ckpt_dense", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: torch.zeros(0) for name in load_file(file)}, file)
    with pytest.raises(UserError, match=r"misshapen \(28\).* and 8 more.*ZeRO-3"):
        load_model(tmp_path, base=str(BASE), adapter_file=PROJECTOR, **CPU)


def test_pickles_that_could_run_code_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("the trap went off",)

    file = tmp_path / "mm_projector.bin"
    file.write_bytes(pickle.dumps({"weight": Trap()}))
    with pytest.raises(UserError, match="not a plain file of tensors"):
        load_model(file, base=str(BASE), **CPU)
    torch.save({"weight": "text"}, file)
    with pytest.raises(UserError, match="other things than named tensors"):
        load_model(file, base=str(BASE), **CPU)


def test_torn_files_are_named(tmp_path):
    save_run(trained(), tmp_path)
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter\.safetensors: torn"):
        load_model(tmp_path, **CPU)
    file.unlink()
    with pytest.raises(UserError, match="weights not found"):
        load_model(tmp_path, **CPU)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ckpt_dense", {}, "holds no projector; give adapter_file"),
        ("ckpt_sparse", {}, "does not say its stage"),
        ("ckpt_dense", {"adapter_file": PROJECTOR, "base": "/absent"}, "base not found"),
        ("ckpt_dense", {"adapter_file": PROJECTOR, "lora_mode": "no"}, "lora_mode 'no'"),
        ("ckpt_mm_projector/mm_projector.bin", {}, "a projector only; give base"),
        ("absent", {}, "no model at"),
    ],
)
def test_what_is_missing_is_asked_for_by_name(name, settings, message):
    with pytest.raises(UserError, match=message):
        load_model(ASSETS / name, **settings, **CPU)


def test_base_that_is_not_here(tmp_path):
    shutil.copytree(ASSETS / "ckpt_dense", tmp_path / "x")
    with pytest.raises(UserError, match="trained on 'ckpt_base', which is not here; give base"):
        load_model(tmp_path / "x", adapter_file=PROJECTOR, **CPU)


def test_adapter_of_another_base(tmp_path):
    with pytest.raises(UserError, match=r"width 64.*wants 32"):
        load_model(PROJECTOR, base=str(save_base(tiny_llm(), tmp_path)), **CPU)


def test_legacy_tensors_are_named(tmp_path):
    write_from_manifest("ckpt_cross_attn_full", tmp_path / "x")
    with pytest.raises(UserError, match="legacy cross attention"):
        load_model(tmp_path / "x", base=str(BASE), stage="sparse", **CPU)


def test_half_gathered_parameters_are_not_saved(tmp_path):
    model = released("ckpt_dense")
    model.projector.linear.weight.data = torch.zeros(0)  # as ZeRO-3 leaves it between steps
    with pytest.raises(ValueError, match="gather ZeRO-3 parameters"):
        save_run(model, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_an_adapter_given_with_its_file_is_read(tmp_path):
    """`adapter` beside `adapter_file` says how to build it; the weights are the file's, not new."""
    source = ASSETS / "ckpt_stage2_cls"
    wanted = load_model(source, base=str(ASSETS / "ckpt_base"), stage="long", device="cpu")
    given = load_model(
        source,
        base=str(ASSETS / "ckpt_base"),
        stage="long",
        device="cpu",
        adapter=wanted.config.adapter,
        adapter_file=source,
    )
    for name, tensor in wanted.projector.state_dict().items():
        assert torch.equal(given.projector.state_dict()[name], tensor), name
