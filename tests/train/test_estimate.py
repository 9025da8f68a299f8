"""`--estimate`: its bytes and FLOPs against a real step of the same shapes, and what it prints."""

from __future__ import annotations

import json
import re
import subprocess
import weakref
from pathlib import Path

import pytest
import torch
from tiny_training import flags
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from revisionllm.constants import IGNORE_INDEX, VIDEO_TOKEN_ID
from revisionllm.model.config import AdapterConfig, RunConfig
from revisionllm.model.llama import GroundingModel, build_adapter
from revisionllm.model.lora import new_lora
from revisionllm.train import estimate as counted
from revisionllm.train.arguments import parse
from revisionllm.train.losses import QuestionLosses
from revisionllm.train.train import main

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
LLAMA = (LlamaForCausalLM, LlamaConfig(**SIZES))
QWEN3 = (Qwen3ForCausalLM, Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32))
LINEAR = AdapterConfig("linear", 64)
CLIP = AdapterConfig("clip", 64, output="segment", options={"ffn_dim": 128})


class Alive(TorchDispatchMode):
    """The most bytes alive at once of all tensors that operations returned, and of some before."""

    def __init__(self, *before):
        super().__init__()
        self.storages, self.peak = {}, 0
        for tensor in before:
            self.see(tensor)

    def see(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        alive = [storage for ref in self.storages.values() if (storage := ref()) is not None]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive))
        return result


def stage(name, **changes):
    values = {"--stage": name, "--per_device_batch_size": 6, "--global_batch_size": 12}
    values |= {"--frames_per_window": 40, "--lora_rank": 8, "--num_segments": 20}
    values |= {f"--{key}": value for key, value in changes.items()}
    words = [str(word) for pair in values.items() for word in pair]
    return parse([*words, "--deepspeed", "none", "--dtype", "float32", "--device", "cpu"])


def real_model(args, kind, config, adapter):
    torch.manual_seed(0)
    llm = kind(config)
    adapter = AdapterConfig(adapter.kind, 64, 128, adapter.output, adapter.options)
    model = GroundingModel(llm, build_adapter(adapter), None, RunConfig(adapter=adapter))
    if args.row.trains == "lora":
        model.attach_lora(new_lora(llm, rank=args.lora_rank, dropout=0.05))
    model.set_trainable(adapter=args.row.trains == "adapter", lora=args.row.trains == "lora")
    return model


def real_batch(shape):
    """Random prompts of the same shape, a question per row."""
    ids = torch.randint(3, 300, (shape.rows, shape.text + 1))
    ids[:, counted.BEFORE] = VIDEO_TOKEN_ID
    labels = ids.clone()
    labels[:, : -(shape.answers // shape.rows)] = IGNORE_INDEX
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids).bool()}
    if not shape.segments:
        return batch | {"images": torch.randn(shape.rows, shape.frames, 64)}
    words = {"query_features": torch.randn(shape.rows, counted.WORDS, 64)}
    images = torch.randn(shape.rows, shape.segments, shape.window_frames, 64)
    return batch | words | {"images": images, "adapter_output": "segment"}


def packed_batch(shape):
    """The same for packed rows of equally many questions."""
    asked = counted.OWN + counted.ANSWER
    per_row = (shape.text - counted.BEFORE - counted.SHARED) // asked
    ids = torch.randint(3, 300, (shape.rows, per_row * asked))
    labels = torch.full_like(ids, IGNORE_INDEX).unflatten(1, (per_row, asked))
    labels[:, :, -counted.ANSWER :] = 5
    places = torch.arange(shape.prefix, shape.prefix + asked).repeat(per_row)
    return {
        "images": torch.randn(shape.rows, shape.frames, 64),
        "before_ids": torch.randint(3, 300, (counted.BEFORE,)),
        "shared_ids": torch.randint(3, 300, (counted.SHARED,)),
        "ids": ids,
        "labels": labels.flatten(1),
        "owners": torch.arange(per_row).repeat_interleave(asked).expand_as(ids).clone(),
        "positions": places.expand_as(ids).clone(),
        "visible": torch.full_like(ids, shape.prefix),
    }


@pytest.mark.parametrize("family", [LLAMA, QWEN3], ids=["llama", "qwen3"])
@pytest.mark.parametrize(
    ("args", "adapter", "recompute"),
    [
        (stage("dense"), LINEAR, True),
        (stage("sparse"), CLIP, True),
        (stage("sparse"), CLIP, False),
        (stage("long"), CLIP, False),
        (stage("long"), CLIP, True),
    ],
)
def test_bytes_and_flops_of_a_real_step(family, args, adapter, recompute):
    kind, config = family
    shape = counted.shape_of(args)
    made = counted.build_model(args, config, adapter, torch.float32)
    count = counted.one_pass(made, shape, recompute=recompute)
    model = QuestionLosses(real_model(args, kind, config, adapter)).train()
    if recompute:
        model.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    batch = (packed_batch if shape.prefix else real_batch)(shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    with Alive(*model.parameters()) as alive:
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch).mean().backward()
            optimizer.step()
    wanted = counted.memory(count, "none", 1, half=False)
    assert wanted == pytest.approx(alive.peak, rel=0.15)
    # the CPU's fused attention is not counted; products of its plain one are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        model(**batch).mean().backward()
    assert count.flops == pytest.approx(flops.get_total_flops(), rel=0.1)
    assert sum(p.numel() for p in trained) == count.trained


def test_spreading():
    count = counted.Pass(14 * 10**9, 160 * 10**6, 10**9, 1, 1)
    for zero in ("zero2", "zero3", "offload"):
        sizes = [counted.memory(count, zero, devices, half=True) for devices in counted.DEVICES]
        assert sizes == sorted(sizes, reverse=True)
    eight = {z: counted.memory(count, z, 8, half=True) for z in ("none", "zero2", "zero3")}
    assert eight["none"] > eight["zero2"] > eight["zero3"]
    # weights in 16 bits, two buckets, a copy in float32 and AdamW's two numbers over 8 devices
    trained = count.trained
    by_hand = 14e9 + 2 * trained + 2 * 1e8 + 12 * trained / 8 + 1e9
    assert eight["zero2"] == pytest.approx(by_hand, rel=1e-6)


def test_the_shipped_configs_have_these_buckets():
    for name in ("zero2", "zero3", "zero3_offload"):
        zero = json.loads((ROOT / "scripts" / f"{name}.json").read_text())["zero_optimization"]
        assert zero["reduce_bucket_size"] == counted.BUCKET
        if zero["stage"] == 3:
            assert zero["stage3_prefetch_bucket_size"] == counted.BUCKET
            assert zero["stage3_max_live_parameters"] == counted.LIVE_PARAMETERS


def test_the_page(world, capsys, tmp_path):
    words = flags(world, "dense", output_dir=tmp_path / "run", max_steps=0, epochs=3)
    assert main([*words, "--estimate"]) == 0
    page = capsys.readouterr().out
    assert "24 annotations, 3 epochs, 18 steps" in page and not (tmp_path / "run").exists()
    rows = re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+", page, re.MULTILINE)
    assert [int(row) for row in rows] == [*counted.DEVICES, *counted.DEVICES]
    assert main([*words, "--estimate", "--num_segments", "0"]) == 2
    capsys.readouterr()
    assert main(["--recipe", "demo", "--estimate", "--init_lora", str(tmp_path / "no")]) == 2
    assert "--base FOLDER says where" in capsys.readouterr().err


def test_launchers_estimate_without_anything_there(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "scripts/mad/stage1_dense.sh"), "--estimate"],
        env={"PATH": "/usr/bin:/bin", "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "--estimate" in done.stdout and "launch.py" not in done.stdout
