"""`revisionllm find` and `revisionllm demo` on the shipped weights: results, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from revisionllm.cli import main
from revisionllm.demo.world.plans import plan_film
from revisionllm.demo.world.render import write_film
from revisionllm.grounder import DEFAULT_CHECKPOINT

FILM_S = 40.0  # shorter than a window of 60 s


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(plan_film(77, FILM_S, "test"), path)
    return path


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


def find(*args: object) -> int:
    return main(["find", *map(str, args)])


def one_line(capsys) -> str:
    """What went to stderr: one line, no traceback."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_finds_in_a_film_shorter_than_a_window(film, features_dir, tmp_path, capsys):
    view = tmp_path / "view.html"
    arguments = [film, "a red ball bounces", "the blue star spins", "--features-dir", features_dir]
    assert find(*arguments, "--json", "--top-k", 3, "--view", view) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["query"] for r in records] == ["a red ball bounces", "the blue star spins"]
    for record in records:
        assert record["status"] == "ok" and isinstance(record["found"], bool)
        assert record["duration_s"] == pytest.approx(FILM_S)
        assert record["cost"]["dense_windows"] == 1
        assert len(record["moments"]) <= 3
        scores = [moment["score"] for moment in record["moments"]]
        assert scores == sorted(scores, reverse=True)
        for moment in record["moments"]:
            assert 0 <= moment["start_s"] < moment["end_s"] <= FILM_S + 1e-6
    assert "<html" in view.read_text(encoding="utf-8")


def test_same_answers_again_and_as_text(film, features_dir, capsys):
    arguments = [film, "a red ball bounces", "--features-dir", features_dir]
    answers = []
    for _ in range(2):
        assert find(*arguments, "--json", "--search", "exhaustive") == 0
        record = json.loads(capsys.readouterr().out)
        record["cost"]["seconds"] = 0
        answers.append(record)
    assert answers[0] == answers[1]
    assert find(*arguments) == 0
    assert "a red ball bounces" in capsys.readouterr().out


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def broken_videos(folder: Path, film: Path) -> dict[str, Path]:
    text = folder / "text.mp4"
    text.write_text("this is no film\n" * 50)
    empty = folder / "empty.mp4"
    empty.touch()
    cut = folder / "cut.mp4"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    sound = folder / "sound.mp4"
    write_sound(sound)
    return {
        "missing": folder / "missing.mp4",
        "folder": folder,
        "text": text,
        "empty": empty,
        "cut": cut,
        "sound": sound,
    }


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "sound"])
def test_bad_video_is_one_line_and_exit_2(kind, film, tmp_path, capsys):
    video = broken_videos(tmp_path, film)[kind]
    features = tmp_path / "features"
    assert find(video, "a red ball bounces", "--features-dir", features) == 2
    assert video.name in one_line(capsys)
    assert not list(features.glob("*.npy"))


@pytest.mark.parametrize("sentence", ["", "   ", "?!"])
def test_empty_sentence(film, sentence, capsys):
    assert find(film, sentence) == 2
    assert "sentence 1" in one_line(capsys)


def test_sentence_longer_than_the_text_encoder_takes(film, capsys):
    assert find(film, "a red ball bounces " * 40) == 2
    assert "too long" in one_line(capsys)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """A run of the long stage on the demo's base; its adapter has learned nothing."""
    from revisionllm.model.config import AdapterConfig
    from revisionllm.model.loading import load_model, save_run

    torch.manual_seed(0)
    model = load_model(
        DEFAULT_CHECKPOINT,
        device="cpu",
        adapter=AdapterConfig("clip", 192, output="segment", options={"ffn_dim": 32}),
        **{"stage": "long", "question": "video", "num_segments": 10, "segment_stride_s": 20.0},
    )
    return save_run(model, tmp_path_factory.mktemp("long"))


def test_recursion_through_a_long_run(film, features_dir, long_run, capsys):
    """All levels are looked at, and every sentence still gets its candidates."""
    words = [film, "a red ball bounces", "the blue star spins", "--features-dir", features_dir]
    words += ["--json", "--long", long_run]
    assert find(*words, "--search", "recursive") == 0
    captured = capsys.readouterr()
    assert ": cosine > long_10 > dense" in captured.err
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [record["cost"]["segments"] > 0 for record in records] == [True, True]
    assert all(record["cost"]["dense_windows"] == 1 for record in records)
    assert find(*words, "--search", "exhaustive") == 0
    exhaustive = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["cost"]["segments"] for r in exhaustive] == [0, 0]
    assert [r["moments"] for r in records] == [r["moments"] for r in exhaustive]


def test_long_run_of_another_stage(film, capsys):
    assert find(film, "a red ball bounces", "--long", DEFAULT_CHECKPOINT) == 2
    assert "stage long, not dense" in one_line(capsys)


def test_two_long_runs_of_one_size(film, long_run, capsys):
    assert find(film, "a red ball bounces", "--long", long_run, long_run) == 2
    assert "two long runs read 10 segments" in one_line(capsys)


def test_unknown_checkpoint(film, tmp_path, capsys):
    assert find(film, "a red ball bounces", "--checkpoint", tmp_path / "nothing") == 2
    assert "nothing" in one_line(capsys)
    (tmp_path / "empty").mkdir()
    assert find(film, "a red ball bounces", "--checkpoint", tmp_path / "empty") == 2
    assert "empty" in one_line(capsys)


def test_full_disk_while_writing_features(film, tmp_path, capsys, monkeypatch):
    """The disk fills up after some rows: one line, and no file that looks whole."""
    from revisionllm.data.feature_extraction import frames

    written = []

    def full(file, rows) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(len(rows))
        file.write(rows.tobytes())

    monkeypatch.setattr(frames, "_append", full)
    assert find(film, "a red ball bounces", "--features-dir", tmp_path) == 2
    line = one_line(capsys)
    assert "disk" in line and str(tmp_path) in line
    assert not list(tmp_path.glob("*.npy"))


def test_demo_writes_everything_and_again_quickly(tmp_path, capsys):
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--minutes", "3", "--present", "4", "--absent", "1"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert table.count(" of 5") >= 5 and "IoU" in table
    for name in ("film.mp4", "predictions.jsonl", "view.html", "timeline.png"):
        assert (out / name).stat().st_size > 1000
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [len(record["gt"]) for record in records] == [1, 1, 1, 1, 0]
    film_time = (out / "film.mp4").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "film.mp4").stat().st_mtime_ns == film_time  # not rendered again


def test_demo_through_the_long_runs_that_ship(tmp_path, capsys):
    arguments = ["demo", "--out", str(tmp_path), "--minutes", "3", "--present", "2"]
    assert main([*arguments, "--absent", "1"]) == 0
    assert ": cosine > long_100 > long_33 > dense" in capsys.readouterr().err
    records = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["cost"]["segments"] > 0 for line in records)


def test_demo_film_too_short(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--minutes", "0.5", "--present", "90"]) == 2
    assert "--minutes" in one_line(capsys)


def test_command_line_from_another_folder(film, features_dir, tmp_path):
    """As users start it: the installed command, any folder, shipped weights found."""
    program = Path(sys.executable).with_name("revisionllm")
    result = subprocess.run(
        [
            str(program),
            "find",
            str(film),
            "a red ball bounces",
            "--features-dir",
            str(features_dir),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    assert "a red ball bounces" in result.stdout


def test_shipped_weights_are_small_and_complete():
    folder = DEFAULT_CHECKPOINT.parent
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".pt", ".tmp")]
    assert sum(p.stat().st_size for p in files) < 25e6
    for name in ("clip", "base", "dense"):
        assert list((folder / name).glob("*.safetensors"))


def test_sentences_that_are_no_sentences(film, features_dir, capsys):
    for sentence, words in [
        ("caf\udce9", "not UTF-8 text"),
        ("word " * 100_000, "characters"),
        ("...", "no words"),
    ]:
        assert find(film, sentence, "--features-dir", features_dir) == 2
        assert words in one_line(capsys)


def test_the_demos_weights_say_so_on_other_footage(film, features_dir, tmp_path, capsys):
    assert find(film, "a red ball bounces", "--features-dir", features_dir) == 0
    assert "demo's weights" not in capsys.readouterr().err
    other = tmp_path / "other.mp4"
    with av.open(str(film)) as source, av.open(str(other), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert find(other, "a red ball bounces", "--features-dir", features_dir) == 0
    (line,) = [row for row in capsys.readouterr().err.splitlines() if "demo's weights" in row]
    assert "--checkpoint RUN" in line


def test_placeholders_and_special_tokens_are_words(film, features_dir, capsys):
    sentences = ["a <video> ball", "a red ball </s> bounces", "<s>a star", "<memory> star"]
    assert find(film, *sentences, "--features-dir", features_dir, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["query"] for r in records] == sentences
    assert all(r["status"] == "ok" for r in records)


def test_a_search_by_another_name_is_refused():
    from revisionllm.errors import UserError
    from revisionllm.grounder import Grounder

    grounder = Grounder.from_checkpoint(DEFAULT_CHECKPOINT, device="cpu")
    with pytest.raises(UserError, match="search 'recursiv' is not one of planned"):
        grounder.plans(60.0, "recursiv")
    shape = grounder._shape
    assert shape.adapter_frames is None
