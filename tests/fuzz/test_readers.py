"""Every reader, fed with damaged files: a right answer, or one line - no traceback, no hang.

What is read although it was damaged must be usable: finite numbers of the right shape.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged_bytes, damaged_json
from safetensors.torch import save_file

from revisionllm.data.stores.feature_store import open_features
from revisionllm.data.stores.feature_writers import write_features, write_lmdb
from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
from revisionllm.errors import UserError
from revisionllm.files import write_json
from revisionllm.formats import registry as formats
from revisionllm.formats.annotations import read_annotations, read_sentences
from revisionllm.grounding.calibration import LogisticCalibration, to_dict
from revisionllm.model.config import RunConfig, read_calibration, read_config, write_config
from revisionllm.model.tensors import read_tensors
from revisionllm.records.predictions import read_predictions
from revisionllm.train import checkpoints

ASSETS = Path(__file__).resolve().parents[1] / "assets"
MAD = {
    f"q{i}": {
        "movie": f"film{i % 2}",
        "sentence": f"A man {i} opens a door.",
        "timestamps": [1.5 * i, 1.5 * i + 4],
        "movie_duration": 100.0,
    }
    for i in range(4)
}
CHAPTERS = [
    {"qid": i, "vid": "v", "duration": 90.0, "query": "Intro", "relevant_windows": [[i, i + 9.0]]}
    for i in range(3)
]
OWN = {
    "schema": 1, "qid": "q", "vid": "v", "query": "a dog", "duration_s": 60.0, "found": True,
    "moments": [{"start_s": 1.0, "end_s": 3.0, "score": 0.9, "parts": {"presence": 0.9},
                 "level": "dense"}],
    "cost": {"dense_windows": 1, "segments": 0, "llm_tokens": 5, "seconds": 0.1},
    "status": "ok", "reason": None, "run": "r", "gt": [[1.0, 3.0]],
    "windows": [{"index": 0, "start_s": 0.0, "end_s": 60.0, "answer": "From 1 to 3.",
                 "presence": 0.9, "entropy": 0.1}],
}  # fmt: skip
FOREIGN = {
    "qv.jsonl": [{"qid": 1, "query": "a", "duration": 9, "vid": "v", "relevant_windows": [[0, 2]]}],
    "md.jsonl": [{"qid": 1, "query": "a", "vid": "v", "pred_relevant_windows": [[0, 2, 0.5]]}],
    "cone.jsonl": [{"query_id": "a", "query": "a", "duration": 9.0, "clip_id": "v",
                    "video_id": "v", "timestamps": [0, 2]}],
    "madp.jsonl": [{"query_id": "a", "predicted_times": [[0, 2]]}],
    "an.json": {"v": {"duration": 9.0, "timestamps": [[0, 2]], "sentences": ["a dog"]}},
    "vue.json": [{"query_id": "1", "video_id": "v", "duration": 9, "query": "a", "gt": [[0, 2]]}],
    "vuep.json": [{"query_id": "1", "video_id": "v", "duration": 9, "answer": [[0, 2]]}],
    "tl.json": {"v>>>a>>>[0.0, 2.0]": {"timestamps": [[0, 2]], "answers": "0 - 2"}},
    "ewb.jsonl": [{"qid": "1", "video_id": "v", "question": "a", "correct_interval": [0, 2],
                   "video_duration_s": 9}],
    "snag.json": {"val": {"v": {"fps": 5, "num_frames": 45, "duration": 9.0,
                                "annotations": [{"sentence": "a", "segment": [0, 2]}]}}},
    "nlq.json": {"videos": [{"clips": [{"clip_uid": "c", "annotations": [{
        "annotation_uid": "u", "language_queries": [{"query": "a", "clip_start_sec": 0,
                                                     "clip_end_sec": 2}]}]}]}]},
}  # fmt: skip


def fed(read: Callable[[], object]) -> str:
    """What a reader does: "read", or the one line of its refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except UserError as error:
        message = " ".join(str(error).split())
        assert message
        return message
    return "read"


def lines(records: list) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def damage(data: bytes, document, rng: np.random.Generator) -> bytes:
    """Half of the time the bytes, else a value of the document (JSON, or a list of JSONL)."""
    if document is None or rng.random() < 0.5:
        return damaged_bytes(data, rng)
    if isinstance(document, tuple):  # lines
        row = int(rng.integers(len(document)))
        parts = [json.dumps(record).encode() for record in document]
        parts[row] = damaged_json(document[row], rng)
        return b"\n".join(parts) + b"\n"
    return damaged_json(document, rng)


# --- one case a reader ---


def check_annotations(folder: Path, rng) -> None:
    name = ["mad.json", "chapters.jsonl"][int(rng.integers(2))]
    document = MAD if name == "mad.json" else tuple(CHAPTERS)
    data = json.dumps(MAD).encode() if name == "mad.json" else lines(CHAPTERS)
    path = folder / name
    path.write_bytes(damage(data, document, rng))

    def read() -> None:
        for annotation in read_annotations(path, absent_ok=bool(rng.integers(2))).annotations:
            assert annotation.duration_s > 0 and annotation.query_id
            for start_s, end_s in annotation.spans_s or ():
                assert 0 <= start_s <= end_s
        read_sentences(path)

    fed(read)


def check_predictions(folder: Path, rng) -> None:
    path = folder / "predictions.jsonl"
    path.write_bytes(damage(lines([OWN, OWN | {"qid": "r"}]), (OWN, OWN | {"qid": "r"}), rng))

    def read() -> None:
        for prediction in read_predictions(path):
            for moment in prediction.moments:
                assert np.isfinite([moment.start_s, moment.end_s, moment.score]).all()
                assert moment.start_s <= moment.end_s

    fed(read)


def check_foreign_formats(folder: Path, rng) -> None:
    name = list(FOREIGN)[int(rng.integers(len(FOREIGN)))]
    document = FOREIGN[name]
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_bytes(damage(lines(document), tuple(document), rng))
    else:
        path.write_bytes(damage(json.dumps(document).encode(), document, rng))

    def read() -> None:
        kind = formats.detect(path).kind
        if kind == formats.ANNOTATIONS:
            found, _ = formats.read_queries(path)
        else:
            found, _ = formats.read_rankings(path, None, [])
        for item in found:
            assert np.isfinite(item.spans).all() and (item.spans[:, 0] <= item.spans[:, 1]).all()

    fed(read)


def check_run_config(folder: Path, rng) -> None:
    path = write_config(RunConfig(base="../base", lora=["lora"]), folder)
    document = json.loads(path.read_text())
    path.write_bytes(damage(path.read_bytes(), document, rng))

    def read() -> None:
        config = read_config(folder)
        assert config.window_s > 0 and config.frames_per_window >= 1
        json.dumps(asdict(config))

    fed(read)


def check_calibration(folder: Path, rng) -> None:
    made = to_dict(LogisticCalibration(["presence", "entropy"], [2.0, -1.0], 0.5))
    path = folder / "calibration.json"
    path.write_bytes(damage(json.dumps(made).encode(), made, rng))

    def read() -> None:
        calibration = read_calibration(folder)
        with np.errstate(all="ignore"):
            known = {"presence": 0.5, "entropy": 0.5}
            if set(calibration.names) <= set(known):
                assert 0 <= float(calibration.confidence(known)) <= 1

    fed(read)


def check_manifest(folder: Path, rng) -> None:
    checkpoint = folder / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights.bin").write_bytes(b"12345")
    checkpoints.complete(checkpoint, total_steps=9)
    path = checkpoint / checkpoints.MANIFEST
    path.write_bytes(damage(path.read_bytes(), json.loads(path.read_text()), rng))
    found = checkpoints.newest_complete(folder / "run")
    assert found is None or isinstance(found.facts, dict)


def check_tensors_file(folder: Path, rng) -> None:
    name = ["a.safetensors", "a.bin"][int(rng.integers(2))]
    tensors = {"x.weight": torch.ones(3, 4), "x.bias": torch.zeros(3)}
    path = folder / name
    save_file(tensors, path) if name.endswith("s") else torch.save(tensors, path)
    path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    fed(lambda: read_tensors(path))


def check_feature_store(folder: Path, rng) -> None:
    # a process of its own looks at the other two first, so they come seldom
    kind = {0: "hdf5", 1: "lmdb"}.get(int(rng.integers(40)), "npy")
    path = folder / f"store.{kind}"
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True) if path.is_file() else None
    rows = rng.standard_normal((20, 6)).astype(np.float32)
    about = {"feature_fps": 2.0, "num_frames": 20, "clip_fingerprint": "abc"}
    write_features(path, [("one", rows, about), ("two", rows, about)], store_format=kind)
    files = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
    victim = files[int(rng.integers(len(files)))]
    document = json.loads(victim.read_text()) if victim.suffix == ".json" else None
    victim.write_bytes(damage(victim.read_bytes(), document, rng))

    def read() -> None:
        store = open_features(path)
        for key in list(store.keys()):
            store.metadata(key)
            bad = store.bad_rows(key)
            if bad is None:
                assert np.isfinite(store.read(key, [0, 1])).all()

    fed(read)


def check_text_features(folder: Path, rng) -> None:
    path = folder / "texts"
    shutil.rmtree(path, ignore_errors=True)
    words = rng.standard_normal((3, 6)).astype(np.float32)
    write_lmdb(path, [("q", {"token_features": words, "cls_features": words[0]})])
    data = path / "data.mdb"
    data.write_bytes(damaged_bytes(data.read_bytes(), rng))

    def read() -> None:
        records = LmdbRecords(path)
        for key in list(records.keys()):
            tokens, sentence = read_query(records, key)
            assert np.isfinite(tokens).all() and np.isfinite(sentence).all()

    fed(read)


# inputs of the default run, 22,000 in all
CASES = {
    check_annotations: 5000,
    check_predictions: 4000,
    check_foreign_formats: 6000,
    check_run_config: 2000,
    check_calibration: 1500,
    check_manifest: 500,
    check_tensors_file: 1500,
    check_feature_store: 1440,
    check_text_features: 60,
}
SLOW_TIMES = 50  # as many in the slow run


@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_damaged_files(check, tmp_path):
    for seed in range(CASES[check]):
        check(tmp_path, np.random.default_rng([1, seed]))


@pytest.mark.slow
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_many_damaged_files(check, tmp_path):
    for seed in range(SLOW_TIMES * CASES[check]):
        check(tmp_path, np.random.default_rng([2, seed]))


MODEL_FILES = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors",
)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bases(tmp_path, seed):
    from revisionllm.model.base import load_base, load_tokenizer

    base = tmp_path / "base"
    shutil.copytree(ASSETS / "model" / "ckpt_base", base)
    if not (base / "model.safetensors").exists():
        _add_weights(base)
    rng = np.random.default_rng([3, seed])
    victim = base / MODEL_FILES[int(rng.integers(len(MODEL_FILES)))]
    document = json.loads(victim.read_text()) if victim.suffix == ".json" else None
    victim.write_bytes(damage(victim.read_bytes(), document, rng))

    def read() -> None:
        load_tokenizer(str(base))
        load_base(str(base), dtype=torch.float32)

    fed(read)


def _add_weights(base: Path) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    LlamaForCausalLM(AutoConfig.from_pretrained(base)).save_pretrained(base)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_loras(tmp_path, seed):
    from revisionllm.model.base import load_base
    from revisionllm.model.lora import load_lora

    base = tmp_path / "base"
    shutil.copytree(ASSETS / "model" / "ckpt_base", base)
    if not (base / "model.safetensors").exists():
        _add_weights(base)
    lora = tmp_path / "lora"
    shutil.copytree(ASSETS / "model" / "ckpt_dense", lora)
    rng = np.random.default_rng([4, seed])
    victim = lora / ("adapter_config.json" if rng.random() < 0.7 else "adapter_model.safetensors")
    document = json.loads(victim.read_text()) if victim.suffix == ".json" else None
    victim.write_bytes(damage(victim.read_bytes(), document, rng))
    llm = load_base(str(base), dtype=torch.float32)
    fed(lambda: load_lora(llm, lora))


@pytest.mark.parametrize("seed", range(25))
def test_damaged_clips(tmp_path, seed):
    from revisionllm.model.clip import load_clip

    clip = tmp_path / "clip"
    shutil.copytree(Path(__file__).resolve().parents[2] / "checkpoints" / "demo" / "clip", clip)
    rng = np.random.default_rng([5, seed])
    names = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
    victim = clip / names[int(rng.integers(len(names)))]
    victim.write_bytes(damage(victim.read_bytes(), json.loads(victim.read_text()), rng))
    fed(lambda: load_clip(str(clip), device="cpu").encode_texts(["a red ball bounces"]))


@pytest.mark.parametrize("seed", range(60))
def test_damaged_films(tmp_path, seed):
    import tiny_films as films

    from revisionllm.data import video

    path = films.write_film(tmp_path / ["a.mp4", "a.mkv", "a.ts", "a.avi"][seed % 4],
                            films.constant_rate(30, 25))  # fmt: skip
    path.write_bytes(damaged_bytes(path.read_bytes(), np.random.default_rng([6, seed])))

    def read() -> None:
        shown = [rgb.shape for _, _, rgb in video.iter_frames(path, 5, size=(16, 12))]
        assert len(shown) == video.probe(path).num_samples(5) and set(shown) <= {(12, 16, 3)}

    fed(read)


def test_the_note_of_an_output_may_be_damaged(tmp_path):
    from revisionllm.files import is_ours

    write_json(tmp_path / "a.txt.made_by.json", {"made_by": 3})
    (tmp_path / "a.txt").write_text("x")
    for seed in range(200):
        (tmp_path / "a.txt.made_by.json").write_bytes(
            damaged_json({"made_by": "revisionllm 1", "sha256": "0"}, np.random.default_rng(seed))
        )
        assert not is_ours(tmp_path / "a.txt")
