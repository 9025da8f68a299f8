"""`revisionllm features` through the real command, with a tiny CLIP."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tiny_films as films
import torch

from revisionllm.cli import main
from revisionllm.data.stores.feature_store import open_features
from revisionllm.model.clip import load_clip
from revisionllm.model.clip_open import save_clip

EXAMPLE = Path(__file__).parents[1] / "assets" / "data" / "lmdb_example"
MODEL_CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL_CFG)
    preprocess = {**vars(open_clip.transform.PreprocessCfg()), "size": 32}
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    folder = tmp_path_factory.mktemp("clip")
    save_clip(model, folder, model_cfg=MODEL_CFG)
    return folder


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    films.write_film(folder / "one.mp4", films.constant_rate(50, 25), size=(96, 64))
    films.write_film(folder / "two.mkv", films.constant_rate(25, 25), size=(64, 96))
    return folder


def features(*words) -> int:
    return main(["features", *map(str, words)])


def test_extract_gives_clip_features_of_the_frames(videos, clip_folder, tmp_path, capsys):
    out = tmp_path / "features"
    options = ("--out", out, "--clip", clip_folder, "--feature_fps", 5, "--device", "cpu")
    assert features("extract", videos, *options) == 0
    assert "extracted" in capsys.readouterr().out
    store = open_features(out)
    assert store.keys() == ["one", "two"]
    assert [store.shape(key) for key in store.keys()] == [(10, 16), (5, 16)]  # noqa: SIM118
    clip = load_clip(clip_folder, device="cpu")
    from revisionllm.data.video import iter_frames

    frames = np.stack([rgb for _, _, rgb in iter_frames(videos / "one.mp4", 5)])
    want = clip.encode_images(frames).numpy()
    got = store.read("one")
    cosines = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosines.min() > 0.99  # resized by the decoder instead of PIL's algorithm
    assert features("extract", videos, *options) == 0
    assert capsys.readouterr().out.count("already there") == 2


def test_a_failing_video_is_listed_and_the_rest_goes_on(videos, clip_folder, tmp_path, capsys):
    (videos / "broken.mp4").write_text("not a film")
    out = tmp_path / "features"
    code = features("extract", videos, "absent.mp4", "--out", out, "--clip", clip_folder)
    said = capsys.readouterr()
    assert code == 2
    assert said.out.count("extracted") == 2
    assert "2 of 4 videos failed" in said.err
    assert "broken.mp4" in said.err and "absent.mp4" in said.err and "Traceback" not in said.err
    assert open_features(out).keys() == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["extract", "{videos}", "{videos}/sub/one.mp4"], "would both become"),
        (["extract", "{videos}/one.mp4", "--feature_fps", "0"], "--feature_fps"),
        (["extract", "{videos}/empty_folder"], "no video files"),
        (["extract", "{videos}/one.mp4", "--clip", "nowhere/ViT-L-14.pt"], "not found"),
        (["info", "{videos}/nothing"], "not found"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(videos, tmp_path, capsys, words, reason):
    (videos / "empty_folder").mkdir()
    words = [word.format(videos=videos) for word in words]
    extra = ["--out", str(tmp_path / "out")] if words[0] == "extract" else []
    assert features(*words, *extra) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


def test_convert_there_and_back(tmp_path, capsys):
    rng = np.random.default_rng(0)
    source = tmp_path / "npy"
    source.mkdir()
    for name in ("a", "b"):
        np.save(source / f"{name}.npy", rng.normal(size=(20, 4)).astype(np.float16))
        (source / f"{name}.json").write_text('{"feature_fps": 2.0, "num_frames": 20}')
    stores = [source, tmp_path / "c.h5", tmp_path / "c.lmdb", tmp_path / "back"]
    for src, dst in itertools.pairwise(stores):
        assert features("convert", src, dst, "--dtype", "float16") == 0
        assert features("verify", dst) == 0
        capsys.readouterr()
        assert features("info", dst) == 0
        said = capsys.readouterr().out
        assert "films:        2" in said and "feature_fps:  2.0" in said
    for name in ("a", "b"):
        assert (stores[-1] / f"{name}.npy").read_bytes() == (source / f"{name}.npy").read_bytes()
    assert features("convert", source, tmp_path / "c.h5") == 2  # never over an existing store


def test_verify_lists_every_problem(tmp_path, capsys):
    good = np.ones((9, 4), np.float32)
    bad = good.copy()
    bad[5, 2] = np.nan
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "none.npy", good[:0])
    np.save(tmp_path / "short.npy", good)
    (tmp_path / "short.json").write_text('{"num_frames": 10}')
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-9])
    (tmp_path / "late.npy.partial").write_bytes(b"")
    assert features("verify", tmp_path) == 2
    said = capsys.readouterr().out
    for words in (
        "nan: row 5 is not finite",
        "none: no rows",
        "short: 9 rows, its description says 10",
        "cut: features of 'cut'",
        "late.npy.partial: unfinished",
        "5 records in",
        "5 problems",
    ):
        assert words in said


def test_text_features_can_be_checked_too(capsys):
    assert features("verify", EXAMPLE / "q") == 0
    assert features("info", EXAMPLE / "q") == 0
    assert "queries:      1" in capsys.readouterr().out
    assert features("info", EXAMPLE / "feat") == 0
    assert "rows:         64" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom revisionllm.cli import main\n"
        "try:\n    main(['features', 'extract', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'av', 'h5py', 'lmdb', 'open_clip', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


KILL_ME = """
import os, signal, sys
from revisionllm.model import clip as clip_module
encode, calls = clip_module.ClipFeatures.encode_images, []
def encode_and_die(self, frames, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, frames, **options)
clip_module.ClipFeatures.encode_images = encode_and_die
from revisionllm.cli import main
main(sys.argv[1:])
"""


def test_a_killed_extraction_continues_to_the_same_bytes(videos, clip_folder, tmp_path):
    video = videos / "one.mp4"
    options = ["--clip", clip_folder, "--feature_fps", 20, "--batch_size", 8, "--device", "cpu"]
    assert features("extract", video, "--out", tmp_path / "whole", *options) == 0
    words = ["features", "extract", video, "--out", tmp_path / "killed", *options]
    killed = subprocess.run([sys.executable, "-c", KILL_ME, *map(str, words)], capture_output=True)
    assert killed.returncode == -9
    partial = tmp_path / "killed" / "one.npy.partial"
    assert partial.stat().st_size == 128 + 16 * 16 * 2  # header and two batches
    assert main([str(word) for word in words]) == 0
    whole, resumed = (tmp_path / name / "one.npy" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_convert_does_not_turn_numbers_into_infinity(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    rows = np.ones((9, 4), np.float32)
    rows[3, 1] = 1e6
    np.save(source / "film.npy", rows)
    assert features("convert", source, tmp_path / "a.h5", "--dtype", "float16") == 2
    assert "row 3 of 'film' does not fit float16" in capsys.readouterr().err
    assert not (tmp_path / "a.h5").exists()
    assert features("convert", source, tmp_path / "b.h5") == 0


def test_a_killed_conversion_to_npy_goes_on(tmp_path, capsys, monkeypatch):
    from revisionllm.data.stores import feature_writers

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(6):
        np.save(source / f"film{number}.npy", np.full((9, 4), number, np.float32))
    save, written = feature_writers.save_npy, []

    def dies(path, array):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.stem)
        save(path, array)

    monkeypatch.setattr(feature_writers, "save_npy", dies)
    assert features("convert", source, out) == 130
    monkeypatch.setattr(feature_writers, "save_npy", save)
    assert features("convert", source, out, "--dtype", "float16") == 2  # another one's beginning
    kept = (out / "film0.npy").stat().st_mtime_ns
    assert features("convert", source, out) == 0
    assert "6 films" in capsys.readouterr().out
    assert (out / "film0.npy").stat().st_mtime_ns == kept
    assert [path.name for path in sorted(out.iterdir())] == [f"film{i}.npy" for i in range(6)]
    assert features("convert", source, out) == 2  # finished: never over an existing store
    assert features("convert", source, source) == 2


def test_two_conversions_into_one_place(tmp_path, capsys):
    from revisionllm.files import locked

    source = tmp_path / "source"
    source.mkdir()
    np.save(source / "film.npy", np.ones((9, 4), np.float32))
    for name in ("a.lmdb", "a.h5", "npy"):
        with locked(tmp_path / f".{name}.lock", "writes"):
            assert features("convert", source, tmp_path / name) == 2
            assert "another process writes" in capsys.readouterr().err
        assert features("convert", source, tmp_path / name) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.lmdb", "npy", "source"]


def test_a_folder_gives_all_its_videos(tmp_path, capsys):
    from revisionllm.data.feature_extraction.videos import videos_in

    for name in ("a.3gp", "b.MTS", "c.mpeg", "no_suffix", "d.txt.mkv"):
        form = {"a.3gp": "mp4", "b.MTS": "mpegts", "c.mpeg": "mpegts"}.get(name, "matroska")
        films.write_film(tmp_path / name, films.constant_rate(10, 25), container_format=form)
    (tmp_path / "notes.txt").write_text("hello\n" * 30)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.ts\n")
    (tmp_path / "words.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    (tmp_path / "broken.mp4").write_bytes(b"not really")
    found = [path.name for path in videos_in(tmp_path)]
    assert found == ["a.3gp", "b.MTS", "broken.mp4", "c.mpeg", "d.txt.mkv", "no_suffix"]
    told = capsys.readouterr().err
    assert all(name in told for name in ("notes.txt", "list.m3u8", "words.srt"))
