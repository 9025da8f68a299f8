"""Packed questions have the loss and the gradients of separate samples; so have plain batches."""

from __future__ import annotations

import pytest
import torch
from tiny_training import flags, metrics

from revisionllm.model.loading import load_model
from revisionllm.train.arguments import parse
from revisionllm.train.collator import PackedCollator, PlainCollator
from revisionllm.train.initial import initial_model
from revisionllm.train.losses import QuestionLosses, number_questions
from revisionllm.train.train import main, training_data

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def batch(world):
    """A model with a LoRA that does something, and samples of several windows."""
    sizes = {"global_batch_size": 24, "per_device_batch_size": 24, "window_s": 80}
    argv = flags(world, "dense", lora_dropout=0, **sizes)
    args = parse(argv)
    model = initial_model(args, dtype="float32")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.projector.requires_grad_(True)  # gradients must reach the frames as well
    dataset, sampler = training_data(args)
    samples = [dataset[plan] for plan in next(iter(sampler))]
    assert max(len(sample.questions) for sample in samples) > 3
    return QuestionLosses(model), samples


def gradients(model, losses):
    model.zero_grad()
    losses.mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_packed_equals_separate_samples(batch):
    model, samples = batch
    tokenizer = model.model.tokenizer
    packed = model(**PackedCollator(tokenizer)(samples))
    plain = PlainCollator(tokenizer)(samples)
    separate = []
    for row, mask in enumerate(plain["attention_mask"]):
        length = int(mask.sum())
        alone = {name: plain[name][row : row + 1, :length] for name in ("input_ids", "labels")}
        separate.append(model.model(images=plain["images"][row : row + 1], **alone).loss)
    separate = torch.stack(separate)
    torch.testing.assert_close(packed, separate, **TOLERANCE)
    ours, theirs = gradients(model, packed), gradients(model, separate)
    assert ours.keys() == theirs.keys() and any("projector" in name for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name, **TOLERANCE)


def test_plain_batch_equals_packed(batch):
    model, samples = batch
    tokenizer = model.model.tokenizer
    packed = model(**PackedCollator(tokenizer)(samples))
    torch.testing.assert_close(model(**PlainCollator(tokenizer)(samples)), packed, **TOLERANCE)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_run_logs_the_loss_of_either_kind_of_question(world, tmp_path, accumulated):
    """Over all micro-batches of a step; the answers themselves say which kind a question is."""
    sizes = {"global_batch_size": 24, "per_device_batch_size": 24 // accumulated}
    settings = sizes | {"lora_dropout": 0, "max_steps": 1, "output_dir": tmp_path / "run"}
    argv = flags(world, "dense", **settings)
    assert main(argv) == 0
    args = parse(argv)
    dataset, sampler = training_data(args)
    torch.manual_seed(args.seed)  # a new LoRA's first matrix; it does nothing yet
    model = QuestionLosses(initial_model(args, dtype="float32"))
    by_answer = {True: [], False: []}
    for _, plans in zip(range(accumulated), sampler, strict=False):
        samples = [dataset[plan] for plan in plans]
        found = model(**PackedCollator(model.model.tokenizer)(samples)).tolist()
        answers = [question.answer for sample in samples for question in sample.questions]
        for loss, answer in zip(found, answers, strict=True):
            by_answer["Not Present" not in answer].append(loss)
    assert len(by_answer[True]) > 3 and len(by_answer[False]) > 3
    (record,) = metrics(tmp_path / "run")
    for kind, name in ((True, "loss_present"), (False, "loss_not_present")):
        assert record[name] == pytest.approx(sum(by_answer[kind]) / len(by_answer[kind]), abs=1e-4)
    line = f"(present {record['loss_present']:.4f}, not present {record['loss_not_present']:.4f})"
    assert line in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("stage", ["sparse", "long"])
def test_collated_questions_know_whether_they_are_present(trained, stage):
    args = parse(flags(trained, stage, num_segments=4))
    dataset, sampler = training_data(args)
    samples = [dataset[plan] for plan in next(iter(sampler))]
    batch = PlainCollator(initial_model(args, dtype="float32").tokenizer)(samples)
    answers = [question.answer for sample in samples for question in sample.questions]
    absent = [answer.startswith(("No", "no")) for answer in answers]
    assert (~batch["present"]).tolist() == absent and 0 < sum(absent) < len(absent)


def test_questions_are_numbered_over_rows():
    owners = torch.tensor([[0, 0, 1, 2, -1], [0, 1, 1, -1, -1]])
    numbers, count = number_questions(owners)
    assert count == 5
    assert numbers.tolist() == [[0, 0, 1, 2, 0], [3, 4, 4, 0, 0]]


@pytest.mark.parametrize("output", ["segment", "alternate"])
@pytest.mark.parametrize("trains_adapter", [True, False])
def test_frozen_parts_are_in_evaluation_mode_at_every_depth(output, trains_adapter):
    """A trained layer norm behind a frozen adapter does not wake the adapter's dropout."""
    from torch import nn

    from revisionllm.model.config import AdapterConfig
    from revisionllm.model.llama import build_adapter
    from revisionllm.train.losses import is_trained, train_trained

    options = {"num_heads": 2, "ffn_dim": 16}
    if output == "alternate":
        options["output_norm"] = True
    adapter = build_adapter(AdapterConfig("clip", 16, 32, output, options))
    adapter.requires_grad_(trains_adapter)
    if output == "alternate":
        adapter.alternate_layer_norm.requires_grad_(True)
    train_trained(adapter.train(), True)
    dropouts = [m for m in adapter.modules() if isinstance(m, nn.Dropout | nn.MultiheadAttention)]
    assert dropouts and all(module.training == trains_adapter for module in dropouts)
    for module in adapter.modules():
        if next(module.parameters(recurse=False), None) is not None:
            own = [p.requires_grad for p in module.parameters(recurse=False)]
            assert module.training == any(own) or is_trained(module)
    train_trained(adapter, False)
    assert not any(module.training for module in adapter.modules())


def test_rotary_tables_that_an_engine_has_cast_are_restored_before_the_first_step(world):
    """DeepSpeed 0.15 to 0.18 call `module.bfloat16()`, which rounds the frequencies, too."""
    from types import SimpleNamespace

    from revisionllm.train.trainer import Resume

    model = load_model(world / "start", device="cpu", dtype="float32")
    wanted = model.llm.model.rotary_emb.inv_freq.clone()
    model.llm.bfloat16()
    trainer = SimpleNamespace(model=SimpleNamespace(model=model))
    Resume(trainer, None).on_train_begin(SimpleNamespace(seed=0, process_index=0), None, None)
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, wanted)
    assert model.llm.model.rotary_emb.inv_freq.dtype == torch.float32
