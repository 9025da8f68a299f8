"""Packed questions have the loss and the gradients of separate samples; so have plain batches."""

from __future__ import annotations

import pytest
import torch
from tiny_training import flags

from revisionllm.data.collator import PackedCollator, PlainCollator
from revisionllm.train.arguments import parse
from revisionllm.train.initial import initial_model
from revisionllm.train.losses import QuestionLosses, number_questions
from revisionllm.train.train import training_data

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


def test_questions_are_numbered_over_rows():
    owners = torch.tensor([[0, 0, 1, 2, -1], [0, 1, 1, -1, -1]])
    numbers, count = number_questions(owners)
    assert count == 5
    assert numbers.tolist() == [[0, 0, 1, 2, 0], [3, 4, 4, 0, 0]]
