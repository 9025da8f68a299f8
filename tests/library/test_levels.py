"""Levels above the encoder in a library's best films; model.json; rows that are read on demand."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from revisionllm.cli import main
from revisionllm.data.feature_extraction.frames import extract_features
from revisionllm.data.feature_extraction.on_demand import BLOCK, RowsOnDemand
from revisionllm.errors import UserError
from revisionllm.grounder import DEMO_WEIGHTS
from revisionllm.library.model_file import read_model

FPS = 5.0


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> tuple[Path, list]:
    """Three rendered films and sentences about the events of each."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("films")
    sentences = []
    for seed in (11, 12, 13):
        plan = plan_film(seed, 420.0, "test")
        write_film(plan, folder / f"film{seed}.mp4")
        sentences.append(film_sentences(plan, 3, 1))
    return folder, sentences


@pytest.fixture(scope="module")
def clip():
    from revisionllm.model.clip import load_clip

    return load_clip(DEMO_WEIGHTS / "clip", device="cpu")


@pytest.fixture(scope="module")
def library(films, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("library") / "library"
    assert main(["index", str(films[0]), "--library", str(place), "--model", "demo"]) == 0
    return place


def test_the_best_films_are_searched_by_the_runs(films, library, capsys) -> None:
    """The moments are those of the film alone, and the frames that were read are kept."""
    folder, sentences = films
    sentence = sentences[1][0]
    film = folder / "film12.mp4"
    words = ["--json", "--threshold", "0", "--top-k", "1"]
    capsys.readouterr()
    assert main(["find", str(library), sentence.sentence, "--model", "demo", *words]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err.count(": read ") == 3
    read = [
        int(line.split("read ")[1].split()[0]) for line in told.err.splitlines() if "ead " in line
    ]
    assert all(count < 2100 for count in read) and sum(read) > 0
    assert found["film"] == str(film) and found["moments"][0]["level"] == "dense"
    start_s, end_s = sentence.span_s
    moment = found["moments"][0]
    overlap = min(end_s, moment["end_s"]) - max(start_s, moment["start_s"])
    assert overlap > 0.5 * (max(end_s, moment["end_s"]) - min(start_s, moment["start_s"]))
    assert main(["find", str(library), sentence.sentence, "--model", "demo", *words]) == 0
    again = capsys.readouterr()
    assert again.err.count(": read 0 of") == 3
    assert json.loads(again.out)["moments"] == found["moments"]
    alone = ["find", str(film), sentence.sentence, "--model", "demo", *words]
    assert main([*alone, "--features-dir", str(library.parent / "features")]) == 0
    same = json.loads(capsys.readouterr().out)["moments"][0]
    assert (same["start_s"], same["end_s"]) == (moment["start_s"], moment["end_s"])


def test_fewer_films_and_a_film_that_changed(films, library, capsys, tmp_path) -> None:
    sentence = films[1][0][0].sentence
    capsys.readouterr()
    assert main(["find", str(library), sentence, "--model", "demo", "--films", "1"]) == 0
    assert capsys.readouterr().err.count(": read ") == 1
    film = films[0] / "film11.mp4"
    content = film.read_bytes()
    try:
        film.write_bytes(content + b"more")
        assert main(["find", str(library), sentence, "--model", "demo"]) == 2
        assert "has gone or changed since; index it again" in capsys.readouterr().err
    finally:
        film.write_bytes(content)


def test_rows_on_demand_are_those_of_the_whole_film(films, clip, tmp_path) -> None:
    video = films[0] / "film11.mp4"
    whole = extract_features(
        video, clip, feature_fps=FPS, out_path=tmp_path / "whole.npy", progress=False
    )
    wanted = np.load(whole.path)
    rows = RowsOnDemand(video, clip, FPS, tmp_path / "a.rows")
    assert rows.shape == wanted.shape
    some = np.array([700, 3, 64, 65, len(wanted) - 1, 3])
    np.testing.assert_array_equal(rows[some], wanted[some])
    assert rows.num_read == 3 * BLOCK + (len(wanted) - 1) % BLOCK + 1
    again = RowsOnDemand(video, clip, FPS, tmp_path / "a.rows")
    np.testing.assert_array_equal(again[some], wanted[some])
    assert again.num_read == 0
    np.testing.assert_array_equal(np.asarray(again), wanted)
    (tmp_path / "a.rows").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged"):
        RowsOnDemand(video, clip, FPS, tmp_path / "a.rows")


def test_what_a_killed_reading_left_is_gone_on_with(films, clip, tmp_path, monkeypatch) -> None:
    video, encode, calls = films[0] / "film11.mp4", type(clip).encode_images, []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    rows = RowsOnDemand(video, clip, FPS, tmp_path / "a.rows")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(clip), "encode_images", dies)
        rows[np.arange(5 * BLOCK)]
    rows = RowsOnDemand(video, clip, FPS, tmp_path / "a.rows")
    rows[np.arange(5 * BLOCK)]
    assert rows.num_read == 3 * BLOCK


def _read(video: Path, place: Path, numbers: list[int], told) -> None:
    from revisionllm.model.clip import load_clip

    rows = RowsOnDemand(video, load_clip(DEMO_WEIGHTS / "clip", device="cpu"), FPS, place)
    found = rows[np.array(numbers)]
    told.put((float(np.asarray(found, np.float64).sum()), rows.num_read))


def test_two_processes_share_the_reading(films, clip, tmp_path) -> None:
    video, place = films[0] / "film11.mp4", tmp_path / "a.rows"
    spawn = multiprocessing.get_context("spawn")
    told, numbers = spawn.Queue(), list(range(0, 640, 7))
    processes = [spawn.Process(target=_read, args=(video, place, numbers, told)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [told.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
    assert results[0][0] == results[1][0]
    assert sum(count for _, count in results) == 640  # nothing was read twice


def test_model_files(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "enc").mkdir()
    (tmp_path / "run").mkdir()

    def told(about) -> str:
        (tmp_path / "model.json").write_text(json.dumps(about))
        with pytest.raises(UserError) as error:
            read_model(str(tmp_path))
        return str(error.value)

    assert "encoder is demo, clip:NAME:TAG" in told({"encoder": "ViT-B-32"})
    assert "must be texts" in told({"dense": "run"})
    assert "long a list" in told({"encoder": "demo", "long": "run"})
    assert "unknown entry 'sparse'" in told({"encoder": "demo", "sparse": "run"})
    assert "no run" in told({"encoder": "demo", "dense": "nowhere"})
    assert "need a dense one" in told({"encoder": "demo", "long": ["run"]})
    (tmp_path / "model.json").write_text('{"encoder": "clip:enc", "dense": "run"}')
    monkeypatch.chdir("/")
    model = read_model(str(tmp_path))
    assert (model.encoder, model.dense) == (str(tmp_path / "enc"), str(tmp_path / "run"))
    assert read_model("demo").dense == str(DEMO_WEIGHTS / "dense")
    assert read_model("clip:ViT-B-32:laion2b").encoder == "ViT-B-32:laion2b"
    with pytest.raises(UserError, match=r"no model\.json in it"):
        read_model(str(tmp_path / "enc"))
