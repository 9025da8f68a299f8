"""Item i targets query i, of its own film and time; batches do not depend on workers or ranks."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import (
    FILMS_S,
    FPS,
    FRAMES,
    WINDOW_S,
    events,
    open_world,
    query_arrays,
    spec,
    write_world,
)
from torch.utils.data import DataLoader

from revisionllm.constants import VIDEO_TOKEN_ID
from revisionllm.data.stores.feature_store import open_features
from revisionllm.data.stores.feature_writers import guess_format, write_features, write_lmdb
from revisionllm.errors import UserError
from revisionllm.formats.annotations import read_annotations, training_record
from revisionllm.model.base import load_tokenizer
from revisionllm.model.prompts import training_ids
from revisionllm.train.collator import PackedCollator, PlainCollator
from revisionllm.train.dataset import build_dataset
from revisionllm.train.sampler import QuestionBatchSampler

BASE = Path(__file__).resolve().parents[1] / "assets" / "model" / "ckpt_base"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(BASE))


STAGES = {
    "dense packed": spec(),
    "dense single": spec(questions_per_window=1),
    "sparse": spec("sparse"),
    "sentence": spec("sparse", reads_sentence=True),
    "long": spec("long", segment_repeats=(1, 2)),
    "alternate": spec("long", adapter_output="alternate"),
}


@pytest.mark.parametrize("name", list(STAGES))
def test_item_i_asks_query_i_of_its_own_film_and_time(world, name):
    stage = STAGES[name]
    dataset = open_world(world, stage)
    records = events()
    for output in stage.outputs:
        asked = Counter()
        plans = dataset.plans(0, output)
        for plan in plans:
            sample = dataset[plan]
            assert sample.features.shape == (len(plan.starts_s) * plan.repeat, FRAMES, 4)
            assert sample.features.dtype == np.float32
            for number, (ask, question) in enumerate(
                zip(plan.targets, sample.questions, strict=True)
            ):
                record = records[question.query_id]
                assert record["movie"] == plan.video_id
                assert dataset.annotations[ask.index].query_id == question.query_id
                words = record["sentence"].lower().removesuffix(".")
                assert words in question.text
                asked[question.query_id, ask.span is None] += 1
                if sample.query_features is not None:
                    arrays = query_arrays(question.query_id)
                    wanted = [arrays["token_features"]]
                    wanted += [arrays["cls_features"][None]] if stage.reads_sentence else []
                    wanted = np.concatenate(wanted)
                    np.testing.assert_array_equal(sample.query_features[number], wanted)
            times = sample.features[..., 0] / FPS
            starts = np.repeat(plan.starts_s, plan.repeat)
            middle = starts[:, None] + (np.arange(FRAMES) + 0.5) * plan.window_s / FRAMES
            latest = FILMS_S[plan.video_id] - 1 / FPS
            assert np.abs(times - np.minimum(middle, latest)).max() <= 0.5 / FPS + 1e-4
        assert sum(asked.values()) == dataset.num_questions(output) == plans.sizes.sum()
        assert set(asked.values()) == {1}
    if name == "long":  # item 2i and 2i + 1 belong to annotation i where both can be asked
        order = [dataset[p].questions[0].query_id for p in plans]
        assert list(dict.fromkeys(order)) == [
            a.query_id for a in dataset.annotations if a.query_id in order
        ]
        assert len(set(order)) > 100


def test_what_is_left_out_is_counted(world):
    dataset = open_world(world, spec("long", min_duration_s=500.0))
    assert dataset.skipped["long: film shorter than 500 s"] == 120
    assert any("skipped 120 of 360 questions" in line for line in dataset.report())
    assert dataset.num_questions() + sum(dataset.skipped.values()) == 360
    with pytest.raises(UserError, match="film shorter"):
        open_world(world, spec("long", min_duration_s=5000.0))


def test_all_problems_come_before_training(tmp_path, caplog):
    records = events(per_film=3)
    records["film_0"]["timestamps"] = [9.0, 1.0]
    for number in range(3):
        records[f"short_{number}"]["movie_duration"] = 90.0
    records["gone"] = dict(records["film_1"], movie="missing")
    folder = write_world(tmp_path / "world", records)
    with pytest.raises(UserError, match="4 problems"):
        (folder / "text").rename(folder / "old")
        write_world_text(folder, [q for q in records if q != "long_film_2"])
        open_world(folder, spec("sparse"))
    for text in ("query film_0", "film missing: no features", "film short: 45 s", "long_film_2"):
        assert text in caplog.text
    dataset = open_world(folder, spec("sparse"), skip_bad=True)
    assert {a.query_id for a in dataset.annotations} == {
        "film_1",
        "film_2",
        "long_film_0",
        "long_film_1",
    }
    assert dataset.skipped["bad annotation or features"] == 12


def write_world_text(folder, query_ids):
    write_lmdb(folder / "text", ((key, query_arrays(key)) for key in query_ids))


def test_a_wrong_rate_is_noticed(world):
    with pytest.raises(UserError, match="is the rate right"):
        open_world(world, spec(feature_fps=2.0))


def test_missing_text_features_name_the_command(world):
    stage = spec("sparse")
    with pytest.raises(UserError, match="text_extractor"):
        build_dataset(stage, annotations=world / "annotations.json", features=world / "features")


def test_events_after_the_last_feature_are_left_out(tmp_path):
    records = events(per_film=2)
    records["late"] = dict(records["film_0"], movie_duration=606.0, timestamps=[601.0, 605.0])
    dataset = open_world(write_world(tmp_path / "world", records), spec())
    assert dataset.skipped["dense: event after the film's last feature"] == 2


def test_two_files_with_one_id(world):
    path = world / "annotations.json"
    with pytest.raises(UserError, match="also in another file"):
        build_dataset(spec(), annotations=[path, path], features=world / "features")


# --- batches ---


def collator_for(stage, tokenizer):
    return (
        PackedCollator(tokenizer) if stage == STAGES["dense packed"] else PlainCollator(tokenizer)
    )


def batches(dataset, tokenizer, workers, epoch, **arguments):
    sampler = QuestionBatchSampler(dataset, questions_per_batch=8, **arguments)
    sampler.set_epoch(epoch, max(0, len(sampler) - 4))
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator_for(dataset.spec, tokenizer),
        num_workers=workers,
    )
    return [pickle.dumps(as_bytes(batch)) for batch in loader]


def as_bytes(batch):
    def plain(value):
        if isinstance(value, torch.Tensor):
            return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [plain(item) for item in value]
        return value

    return {key: plain(value) for key, value in batch.items()}


@pytest.mark.parametrize("name", list(STAGES))
def test_same_seed_epoch_and_index_give_the_same_bytes(world, tokenizer, name):
    first = batches(open_world(world, STAGES[name], seed=3), tokenizer, 0, epoch=1)
    assert len(first) == 4
    assert first == batches(open_world(world, STAGES[name], seed=3), tokenizer, 4, epoch=1)
    assert first != batches(open_world(world, STAGES[name], seed=3), tokenizer, 0, epoch=2)
    assert first != batches(open_world(world, STAGES[name], seed=4), tokenizer, 0, epoch=1)


@pytest.mark.parametrize("name", ["films.h5", "films.lmdb"])
def test_other_stores_give_the_same_batches_to_workers(world, tokenizer, tmp_path, name):
    npy = open_features(world / "features")
    records = ((key, npy.read(key), {}) for key in npy.keys())  # noqa: SIM118
    write_features(tmp_path / name, records, store_format=guess_format(name))
    stage, arguments = spec("long"), {"annotations": world / "annotations.json", "seed": 3}
    dataset = build_dataset(
        stage, features=tmp_path / name, text_features=world / "text", **arguments
    )
    wanted = batches(open_world(world, stage, seed=3), tokenizer, 0, epoch=1)
    assert batches(dataset, tokenizer, 2, epoch=1) == wanted
    assert batches(dataset, tokenizer, 0, epoch=1) == wanted


def asked(plans):
    return [(ask.index, ask.span) for plan in plans for ask in plan.targets]


@pytest.mark.parametrize("name", list(STAGES))
def test_steps_hold_the_same_questions_however_they_are_divided(world, name):
    dataset = open_world(world, STAGES[name])
    shapes = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)]
    epochs = []
    for size, world_size, parts in shapes:
        samplers = [
            QuestionBatchSampler(
                dataset,
                questions_per_batch=size,
                rank=rank,
                world_size=world_size,
                batches_per_step=parts,
            )
            for rank in range(world_size)
        ]
        ranks = [list(sampler) for sampler in samplers]
        assert all(len(rank) == len(samplers[0]) for rank in ranks)
        assert all(len(asked(batch)) == size for rank in ranks for batch in rank)
        steps = []
        for step in range(samplers[0].steps_per_epoch):
            step_plans = [
                plan
                for part in range(parts)
                for rank in ranks
                for plan in rank[step * parts + part]
            ]
            assert len({plan.adapter_output for plan in step_plans}) == 1
            steps.append(asked(step_plans))
        epochs.append(steps)
    assert all(steps == epochs[0] for steps in epochs)
    if name != "alternate":
        every = [ask for step in epochs[0] for ask in step]
        total = dataset.num_questions()
        assert Counter(every[:total]) == Counter(asked(dataset.plans(0)))
        assert every[total:] == every[: len(every) - total]


def test_alternate_steps_take_turns(world, tokenizer):
    dataset = open_world(world, STAGES["alternate"])
    sampler = QuestionBatchSampler(dataset, questions_per_batch=4, batches_per_step=2)
    outputs = [batch[0].adapter_output for batch in sampler]
    assert outputs[:6] == ["segment", "segment", "frames", "frames", "segment", "segment"]
    collate = PlainCollator(tokenizer)
    batches_ = list(itertools.islice(sampler, 3))
    for batch, wanted in zip(batches_, outputs[:3], strict=True):
        assert collate([dataset[plan] for plan in batch])["adapter_output"] == wanted
    mixed = [dataset[plan] for plan in (batches_[0] + batches_[2])]
    with pytest.raises(ValueError, match="one adapter output"):
        collate(mixed)


def test_a_started_epoch_goes_on_where_it_was(world):
    dataset = open_world(world, spec())
    sampler = QuestionBatchSampler(dataset, questions_per_batch=16)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, 5)
    assert list(sampler) == whole[5:]


def test_plain_batch(world, tokenizer):
    dataset = open_world(world, spec("long"))
    every = dataset.plans(0)
    plans = [every[i] for i in (0, 1, len(every) - 2, len(every) - 1)]
    batch = PlainCollator(tokenizer)([dataset[plan] for plan in plans])
    assert isinstance(batch["images"], list)  # the last film is short: fewer segments
    assert [len(image) for image in batch["images"]] == [len(p.starts_s) for p in plans]
    for row, plan in enumerate(plans):
        question = dataset[plan].questions[0]
        ids, labels = training_ids(tokenizer, question.text, question.answer)
        real = batch["attention_mask"][row]
        assert batch["input_ids"][row][real].tolist() == ids
        assert batch["labels"][row][real].tolist() == labels
        assert (batch["labels"][row][~real] == -100).all()
        words = query_arrays(question.query_id)["token_features"]
        mask = batch["query_mask"][row]
        assert torch.equal(batch["query_features"][row][mask], torch.from_numpy(words))
        assert not batch["query_features"][row][~mask].any()
    assert batch["adapter_output"] == "segment" and batch["num_questions"] == 4


def test_packed_rows_are_the_separate_samples(world, tokenizer):
    """Prefix, shared words and a question's own tokens together are the sample asked alone."""
    dataset = open_world(world, spec())
    samples = [dataset[dataset.plans(0)[i]] for i in range(3)]
    packed = PackedCollator(tokenizer)(samples)
    plain = PlainCollator(tokenizer)(samples)
    before, shared = packed["before_ids"].tolist(), packed["shared_ids"].tolist()
    prefix = len(before) + FRAMES + len(shared)
    row_of = 0
    for window, sample in enumerate(samples):
        for owner in range(len(sample.questions)):
            mine = packed["owners"][window] == owner
            ids = packed["ids"][window][mine].tolist()
            real = plain["attention_mask"][row_of]
            assert [*before, VIDEO_TOKEN_ID, *shared, *ids] == plain["input_ids"][row_of][
                real
            ].tolist()
            # labels of the plain row stand on the token itself, packed ones a position earlier
            labels = plain["labels"][row_of][real].tolist()[-len(ids) :]
            assert packed["labels"][window][mine].tolist() == [*labels[1:], -100]
            positions = packed["positions"][window][mine].tolist()
            assert positions == list(range(prefix, prefix + len(ids)))
            assert set(packed["visible"][window][mine].tolist()) == {prefix}
            assert torch.equal(packed["images"][window], plain["images"][row_of])
            row_of += 1
        assert (packed["labels"][window][packed["owners"][window] < 0] == -100).all()
    assert row_of == packed["num_questions"] == plain["num_questions"]
    assert samples[0].plan.window_s == WINDOW_S


def test_annotations_of_the_training_json_make_the_same_questions(world, tmp_path):
    found = read_annotations(world / "annotations.json").annotations
    path = tmp_path / "training.json"
    path.write_text(json.dumps([training_record(a, "mad") for a in found]))
    dataset = build_dataset(spec(), annotations=path, features=world / "features")
    texts = {q.text for plan in dataset.plans(0) for q in dataset[plan].questions}
    direct = open_world(world, spec())
    assert texts == {q.text for plan in direct.plans(0) for q in direct[plan].questions}
