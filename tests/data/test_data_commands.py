"""The mission's converters and extractors, through their own `main`, on small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from test_annotations import mad
from test_features_cli import MODEL_CFG
from tiny_films import write_film

from revisionllm.data.feature_extraction import (
    chapters_clip_text_extractor,
    mad_clip_text_extractor,
)
from revisionllm.data.mad import mad_to_activitynet
from revisionllm.data.stores.feature_store import open_features
from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
from revisionllm.data.vidchap7m import (
    chapters_clip_extractor,
    chapters_test_to_activitynet,
    chapters_to_activitynet,
)
from revisionllm.formats.annotations import read_annotations
from revisionllm.model.clip import load_clip
from revisionllm.model.clip_open import save_clip

TRAIN_LINES = [
    {
        "vid": "v",
        "duration": 600,
        "query": ["Intro", "The end"],
        "relevant_windows": [[[0, 60.04]], [[500, 600]]],
    },
]
TEST_LINES = [
    {"qid": 3, "query": "Intro", "duration": 90, "vid": "w", "relevant_windows": [[0, 9]]},
    {"qid": 4, "query": "Outro", "duration": 70, "vid": "x", "relevant_windows": [[9, 12]]},
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder to stand in, as the repository's root."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/mad").mkdir(parents=True)
    (tmp_path / "data/chapters").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL_CFG)
    preprocess = {**vars(open_clip.transform.PreprocessCfg()), "size": 32}
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    folder = tmp_path_factory.mktemp("clip")
    save_clip(model, folder, model_cfg=MODEL_CFG)
    return str(folder)


def write_lines(path: Path, lines: list) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_mad_to_training_json(place, capsys):
    source = {"7": mad(), "8": mad(movie="film_2", timestamps=[1.25, 3.0])}
    (place / "data/mad/MAD_train.json").write_text(json.dumps(source))
    assert mad_to_activitynet.main([]) == 0
    assert "2 queries about 2 films" in capsys.readouterr().out
    made = json.loads((place / "data/mad/mad_stage2_fixed_prompt.json").read_text())
    assert [item["source"] for item in made] == ["mad", "mad"]
    assert made[0]["meta"] == {"duration": 120.5, "token": {"<s0>": 12.3, "<e0>": 20.0}}
    file = read_annotations(place / "data/mad/mad_stage2_fixed_prompt.json")
    assert [a.query_id for a in file.annotations] == ["7", "8"] and not file.problems


def test_bad_annotations_stop_a_converter_unless_told(place, capsys):
    (place / "data/mad/MAD_train.json").write_text(
        json.dumps({"7": mad(), "8": mad(timestamps=[3, 1]), "9": mad(sentence="")})
    )
    out = place / "data/mad/mad_stage2_fixed_prompt.json"
    assert mad_to_activitynet.main([]) == 2
    assert "2 problems" in capsys.readouterr().err and not out.exists()
    assert mad_to_activitynet.main(["--skip_bad"]) == 0
    assert len(json.loads(out.read_text())) == 1


def test_a_missing_file_is_named(place, capsys):
    commands = [mad_to_activitynet, chapters_to_activitynet, chapters_test_to_activitynet]
    commands += [mad_clip_text_extractor, chapters_clip_text_extractor, chapters_clip_extractor]
    for command in commands:
        assert command.main([]) == 2
        error = capsys.readouterr().err
        assert "data/" in error.splitlines()[-1]


def test_chapters_to_training_json(place):
    write_lines(place / "data/chapters/chapters_vmr_train.jsonl", TRAIN_LINES)
    assert chapters_to_activitynet.main([]) == 0
    made = json.loads((place / "data/chapters/chapters_train_partial_3.json").read_text())
    assert [item["query_id"] for item in made] == ["v_0", "v_1"]
    assert made[0]["source"] == "vidchapters7m"
    assert made[0]["meta"]["token"] == {"<s0>": 0.0, "<e0>": 60.0}


def test_chapters_to_evaluation_json(place, capsys):
    write_lines(place / "data/chapters/chapters_vmr_test.jsonl", TEST_LINES)
    (place / "data/chapters/test.json").write_text('["w", "never_asked"]')
    assert chapters_test_to_activitynet.main([]) == 0
    made = json.loads((place / "data/chapters/chapters_test.json").read_text())
    assert made == {
        "3": {"movie": "w", "sentence": "Intro", "timestamps": [0.0, 9.0], "movie_duration": 90.0}
    }
    told = capsys.readouterr().err
    assert "left out 1 queries of 1 videos" in told and "1 videos of" in told
    (place / "data/chapters/test.json").write_text('["nobody"]')
    assert chapters_test_to_activitynet.main([]) == 2


def test_mad_text_features(place, clip_folder, capsys):
    (place / "data/mad/MAD_train.json").write_text(json.dumps({"7": mad()}))
    write_lines(place / "data/mad/test.jsonl", [{"query_id": "8", "query": "A dog?"}])
    assert mad_clip_text_extractor.main(["--clip", clip_folder]) == 0
    told = capsys.readouterr()
    assert "2 queries" in told.out and "MAD_val.json" in told.err
    store = LmdbRecords(place / "data/mad/clip_L14_text_features")
    assert store.keys() == ["7", "8"]
    tokens, sentence = load_clip(clip_folder).encode_texts(["A man opens a door."])
    read_tokens, read_sentence = read_query(store, "7")
    np.testing.assert_allclose(read_tokens, tokens[0], atol=1e-5)
    np.testing.assert_allclose(read_sentence, sentence[0], atol=1e-5)
    assert mad_clip_text_extractor.main(["--clip", clip_folder]) == 0
    assert "already there" in capsys.readouterr().out
    write_lines(place / "data/mad/val.jsonl", [{"query_id": "9", "query": "A cat."}])
    assert mad_clip_text_extractor.main(["--clip", clip_folder]) == 2
    assert "lacks 1 of the queries" in capsys.readouterr().err


def test_sentences_too_long_for_the_clip_are_all_listed(place, clip_folder, caplog):
    lines = [{"query_id": "ok", "query": "A dog."}]
    lines += [{"query_id": q, "query": "a dog " * 100} for q in ("long_1", "long_2")]
    write_lines(place / "data/mad/train.jsonl", lines)
    assert mad_clip_text_extractor.main(["--clip", clip_folder]) == 2
    assert "long_1" in caplog.text and "long_2" in caplog.text
    assert mad_clip_text_extractor.main(["--clip", clip_folder, "--skip_bad"]) == 0
    assert LmdbRecords(place / "data/mad/clip_L14_text_features").keys() == ["ok"]


def test_chapters_text_features(place, clip_folder):
    write_lines(place / "data/chapters/chapters_vmr_train.jsonl", TRAIN_LINES)
    write_lines(place / "data/chapters/chapters_vmr_test.jsonl", TEST_LINES)
    assert chapters_clip_text_extractor.main(["--clip", clip_folder]) == 0
    train = place / "data/chapters/chapters_clip_L14_text_features_train"
    assert LmdbRecords(train).keys() == ["v_0", "v_1"]
    assert LmdbRecords(place / "data/chapters/chapters_clip_L14_text_features").keys() == ["3", "4"]


@pytest.mark.parametrize("num_workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_chapters_frame_features(place, clip_folder, capfd, num_workers):
    videos = place / "data/chapters/videos"
    videos.mkdir()
    for name in ("a", "b"):
        write_film(videos / f"{name}.mp4", list(range(0, 2000, 100)), size=(32, 32))
    (videos / "broken.mp4").write_bytes(b"no film")
    before = {path: path.read_bytes() for path in videos.iterdir()}
    arguments = ["--clip", clip_folder, "--num_workers", num_workers]
    assert chapters_clip_extractor.main(arguments) == 2
    told = capfd.readouterr()
    assert "1 of 3 videos failed" in told.err and "broken.mp4" in told.err.splitlines()[-1]
    assert "frame/s" in told.err
    store = open_features(place / "data/chapters/chapters_clipl14_features")
    assert store.keys() == ["a", "b"] and store.num_frames("a") == 4
    assert store.metadata("a")["feature_fps"] == 2.0
    assert before == {path: path.read_bytes() for path in videos.iterdir()}
    (videos / "broken.mp4").unlink()
    assert chapters_clip_extractor.main(arguments) == 0
    assert capfd.readouterr().out.count("already there") == 2
