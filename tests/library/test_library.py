"""An index of many films: made once, found again by content, searched by frame similarity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from revisionllm.cli import main
from revisionllm.grounder import DEMO_WEIGHTS
from revisionllm.grounding.calibration import IsotonicCalibration, LogisticCalibration
from revisionllm.grounding.frame_spans import Pieces, pieces_of
from revisionllm.library.frames import FramedFilm, find_moments

CLIP = f"clip:{DEMO_WEIGHTS / 'clip'}"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> tuple[Path, list]:
    """A folder with two rendered films, one in a folder below, and what frames of each show."""
    from revisionllm.demo.world.frame_questions import frame_questions
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("films")
    (folder / "below").mkdir()
    questions = []
    for seed, name in ((3, "a.mp4"), (4, "below/b.mp4")):
        plan = plan_film(seed, 200.0, "test")
        write_film(plan, folder / name)
        questions.append(frame_questions(plan, 4, 2))
    return folder, questions


@pytest.fixture
def library(films, tmp_path, capsys) -> Path:
    place = tmp_path / "library"
    assert main(["index", str(films[0]), "--library", str(place), "--model", CLIP]) == 0
    capsys.readouterr()
    return place


def listed(library: Path, capsys) -> list[str]:
    assert main(["library", "list", str(library)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_library_ranks_what_each_film_alone_answers(films, library, tmp_path, capsys) -> None:
    """All films' moments as by `find FILM`, the best first; mostly those of the right film."""
    folder, questions = films
    names = ["a.mp4", "below/b.mp4"]
    sentences = [question.sentence for of in questions for question in of[:4]]
    alone: dict[str, list[dict]] = {sentence: [] for sentence in sentences}
    for name in names:
        words = ["find", str(folder / name), *sentences, "--model", CLIP, "--json"]
        assert main([*words, "--features-dir", str(tmp_path / "features")]) == 0
        for line in capsys.readouterr().out.splitlines():
            record = json.loads(line)
            alone[record["query"]].append({"film": str(folder / name)} | record)
    assert main(["find", str(library), *sentences, "--json", "--threshold", "0"]) == 0
    first = {}
    for line in capsys.readouterr().out.splitlines():
        record = json.loads(line)
        first.setdefault(record["query"], record)
        (same,) = [r for r in alone[record["query"]] if r["film"] == record["film"]]
        assert record["moments"] == same["moments"][: len(record["moments"])]
    for sentence, records in alone.items():
        best = max(records, key=lambda r: r["moments"][0]["score"])
        assert first[sentence]["film"] == best["film"]
    wanted = [str(folder / names[number // 4]) for number in range(8)]
    assert sum(first[s]["film"] == w for s, w in zip(sentences, wanted, strict=True)) >= 6


def test_what_is_indexed_is_not_read_again(films, library, tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(films[0], folder)
    os.rename(folder / "a.mp4", folder / "renamed.mp4")

    def never(*_, **__):
        raise AssertionError("a film was encoded again")

    monkeypatch.setattr("revisionllm.model.clip.ClipFeatures.encode_images", never)
    for place in (films[0], folder):
        assert main(["index", str(place), "--library", str(library)]) == 0
        assert "0 indexed, 2 already there" in capsys.readouterr().out
    assert any("renamed.mp4" in line for line in listed(library, capsys))
    assert len(listed(library, capsys)) == 2  # the same bytes are the same film


def test_a_killed_index_goes_on_and_is_the_same(films, library, tmp_path, capsys, monkeypatch):
    from revisionllm.model.clip import ClipFeatures

    encode, calls = ClipFeatures.encode_images, []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    other = tmp_path / "other"
    words = ["index", str(films[0]), "--library", str(other), "--model", CLIP]
    with monkeypatch.context() as patched:
        patched.setattr(ClipFeatures, "encode_images", dies)
        with suppress(KeyboardInterrupt):
            assert main(words) != 0
    assert main(words) == 0
    for file in (library / "films").glob("*.npy"):
        assert (other / "films" / file.name).read_bytes() == file.read_bytes()
    assert main(["library", "verify", str(other)]) == 0


def test_a_library_is_copied_as_a_folder_and_films_are_taken_out(films, library, tmp_path, capsys):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(library, copy)
    assert len(listed(copy, capsys)) == 2
    path = str(films[0] / "a.mp4")
    assert main(["library", "remove", str(library), path]) == 0
    capsys.readouterr()
    assert len(listed(library, capsys)) == 1 and Path(path).is_file()
    assert len(list((library / "films").iterdir())) == 4
    assert main(["library", "remove", str(library), path]) == 2
    assert "is not in" in capsys.readouterr().err
    assert main(["library", "remove", str(library), str(films[0] / "below" / "b.mp4")]) == 0
    assert main(["find", str(library), "a red ball"]) == 2
    assert "holds no film yet" in capsys.readouterr().err


def test_films_that_were_moved_are_found_at_their_new_place(films, tmp_path, capsys) -> None:
    old, new, library = tmp_path / "old", tmp_path / "new", tmp_path / "library"
    shutil.copytree(films[0], old)
    assert main(["index", str(old), "--library", str(library), "--model", CLIP]) == 0
    old.rename(new)
    assert main(["library", "move", str(library), str(old), str(new)]) == 0
    assert main(["library", "verify", str(library)]) == 0
    assert all(str(new) in line for line in listed(library, capsys)[-2:])
    assert main(["library", "move", str(library), str(old), str(new)]) == 2
    assert "no film of" in capsys.readouterr().err
    (new / "c.mp4").write_bytes(b"another")
    for place, said in ((new / "c.mp4", "another size"), (new / "d.mp4", "where")):
        assert main(["library", "move", str(library), str(new / "a.mp4"), str(place)]) == 2
        assert said in capsys.readouterr().err


def test_damage_and_films_that_have_gone_are_told(films, tmp_path, capsys) -> None:
    folder, library = tmp_path / "films", tmp_path / "library"
    shutil.copytree(films[0], folder)
    (folder / "broken.mp4").write_bytes(b"no film")
    words = ["index", str(folder), "--library", str(library), "--model", CLIP]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "2 indexed, 0 already there, 1 failed" in told.out and "broken.mp4" in told.err
    (folder / "a.mp4").unlink()
    assert main(["library", "verify", str(library)]) == 2
    assert "a.mp4: gone" in capsys.readouterr().out
    assert main(["find", str(library), "a red ball"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "nowhere"], "no film or folder nowhere"),
        (["index", ".", "--model", "ViT-B-32"], "give demo, clip:NAME:TAG"),
        (["library", "list", "nowhere"], "nowhere is no library"),
        (["find", "LIBRARY", "a ball", "--model", CLIP], "by its own encoder: no --model clip:"),
        (["find", "LIBRARY", "a ball", "--checkpoint", "nowhere"], "no checkpoint nowhere"),
        (["find", "x.mp4", "a", "--model", CLIP, "--checkpoint", "y"], "give one of them"),
        (["index", "FILMS", "--library", "LIBRARY", "--fps", "2"], "1 frames per second"),
        (["index", "FILMS", "--library", "FILMS"], "holds something else"),
    ],
)
def test_wrong_input_is_one_line(films, library, capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(films[0])
    (films[0] / "y").mkdir(exist_ok=True)
    places = {"LIBRARY": str(library), "FILMS": str(films[0])}
    assert main([places.get(word, word) for word in words]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "demo's encoder" not in line]
    assert said in told[-1]


def test_one_film_by_an_encoder_alone(films, tmp_path, capsys) -> None:
    folder, questions = films
    words = ["find", str(folder / "a.mp4"), "--model", CLIP, "--features-dir", str(tmp_path)]
    sentences = [q.sentence for q in questions[0]]
    page = tmp_path / "view.html"
    assert main([*words, *sentences, "--json", "--view", str(page), "--exit-code"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["query"] for r in records] == sentences
    assert all(m["level"] == "frames" for r in records for m in r["moments"])
    assert page.stat().st_size > 1000
    assert main([*words, "a white cross in space", "--exit-code"]) in (0, 3)
    assert main([*words, sentences[-1], "--threshold", "1", "--exit-code"]) == 3


def test_spans_follow_the_pictures() -> None:
    """Three pictures with noise; the sentence fits the second, twice."""
    rng = np.random.default_rng(0)
    base = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    order = np.repeat([0, 1, 2, 1, 0], [40, 12, 30, 7, 60])
    rows = base[order] + 0.02 * rng.normal(size=(len(order), 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pieces = pieces_of(rows)
    assert {40, 52, 82, 89} <= set(pieces.ends.tolist())
    film = FramedFilm("", pieces, 2.0, len(order) / 2)
    (found,) = find_moments([film], base[[1]], top_k=2)
    assert sorted((m.start_s, m.end_s) for _, m in found) == [(20.0, 26.0), (41.0, 44.5)]
    for _, moment in found:
        inside = rows[round(2 * moment.start_s) : round(2 * moment.end_s)]
        assert np.isclose(moment.parts["cosine"], (inside @ base[1]).mean(), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_films(count: int) -> None:
    rows = np.eye(4)[:count]
    (found,) = find_moments([FramedFilm("", pieces_of(rows), 1.0, count)], np.ones((1, 4)))
    assert all(0 <= m.start_s < m.end_s <= count for _, m in found)


def test_a_still_picture_is_one_piece() -> None:
    rows = np.repeat(np.eye(4)[:2], (30, 20), axis=0)
    assert pieces_of(rows).ends.tolist() == [0, 30, 50]


@pytest.mark.parametrize("kind", ["none", "rising", "falling", "isotonic"])
def test_the_best_of_many_films_are_those_of_all_films(kind: str) -> None:
    """Against every film searched whole, whatever the confidence depends on."""
    calibration = {
        "none": None,
        "rising": LogisticCalibration(["cosine", "height"], [9.0, 0.3], -2.0),
        "falling": LogisticCalibration(["cosine", "height"], [9.0, -0.5], -2.0),
        "isotonic": IsotonicCalibration("height", [0.0, 2.0, 9.0], [0.0, 0.4, 1.0]),
    }[kind]
    rng = np.random.default_rng(7)
    films = []
    for number in range(25):
        shots = rng.normal(size=(rng.integers(1, 30), 24))
        rows = np.repeat(shots, rng.integers(1, 12, len(shots)), axis=0)
        rows = rows + 0.1 * rng.normal(size=rows.shape)
        films.append(FramedFilm(str(number), pieces_of(rows), 1.0, float(len(rows))))
    sentences = rng.normal(size=(6, 24))
    found = find_moments(films, sentences, calibration=calibration, top_k=12)
    for number, sentence in enumerate(sentences):
        every = []
        for film in films:
            (row,) = find_moments([film], sentence[None], calibration=calibration, top_k=12)
            every += [moment.score for _, moment in row]
        best = np.sort(every)[::-1][:12]
        np.testing.assert_allclose([m.score for _, m in found[number]], best, rtol=1e-4)


def test_a_background_is_taken_over_time_not_over_pieces() -> None:
    """A film that stands still for an hour and then flickers: its background is the still."""
    means = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 2]]
    pieces = Pieces(means, np.array([0, 3600, 3601, 3602, 3603, 3604]))
    (found,) = find_moments([FramedFilm("", pieces, 1.0, 3604.0)], np.eye(3)[[1]])
    assert {m.start_s for _, m in found} == {3600.0, 3602.0}


def test_several_processes_make_the_same_library(films, library, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    words = ["index", str(films[0]), "--library", str(other), "--model", CLIP, "--workers", "2"]
    assert main(words) == 0
    assert "2 indexed, 0 already there, 0 failed" in capsys.readouterr().out
    for file in (library / "films").iterdir():
        if not file.name.endswith(".film.json"):
            assert (other / "films" / file.name).read_bytes() == file.read_bytes()


def test_a_library_keeps_to_its_way_with_what_stands_still(films, tmp_path, capsys) -> None:
    place, words = tmp_path / "library", ["index", str(films[0]), "--model", CLIP]
    assert main([*words, "--library", str(place), "--skip-same"]) == 0
    abouts = [json.loads(p.read_text()) for p in (place / "films").glob("*[0-9a-f].json")]
    assert len(abouts) == 2 and all(about["skip_same"] for about in abouts)
    before = {path: path.read_bytes() for path in (place / "films").glob("*.npy")}
    assert main([*words, "--library", str(place)]) == 0
    assert before == {path: path.read_bytes() for path in (place / "films").glob("*.npy")}
    assert main([*words, "--library", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert main([*words, "--library", str(tmp_path / "other"), "--skip-same"]) == 2
    assert "has every frame encoded" in capsys.readouterr().err


def test_a_library_keeps_to_its_arithmetic(films, tmp_path, capsys) -> None:
    folder, questions = films
    words = ["index", str(folder), "--model", CLIP, "--library"]
    for name, options in (("half", ["--dtype", "bfloat16"]), ("whole", [])):
        assert main([*words, str(tmp_path / name), *options]) == 0
    rows = {name: list((tmp_path / name / "films").glob("*.npy")) for name in ("half", "whole")}
    for half in rows["half"]:
        about = json.loads(half.with_suffix(".json").read_text())
        assert about["arithmetic"] == "bfloat16"
        one, other = np.load(half), np.load(tmp_path / "whole" / "films" / half.name)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines = (one.astype(np.float32) * other).sum(1) / norms
        assert (one != other).any() and cosines.min() > 0.99
    assert main([*words, str(tmp_path / "half")]) == 0  # its own
    capsys.readouterr()
    assert main([*words, str(tmp_path / "half"), "--dtype", "float32"]) == 2
    assert "was made in bfloat16" in capsys.readouterr().err
    assert main(["find", str(tmp_path / "half"), questions[0][0].sentence, "--json"]) == 0


def test_two_indexers_at_once_do_no_harm(films, library, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    words = ["-m", "revisionllm.cli", "index", str(films[0]), "--library", str(other)]
    both = [subprocess.Popen([sys.executable, *words, "--model", CLIP]) for _ in range(2)]
    assert {process.wait() for process in both} <= {0, 2}  # 2: the other one is at that film
    assert main(["index", str(films[0]), "--library", str(other)]) == 0
    assert main(["library", "verify", str(other)]) == 0
    for file in (library / "films").iterdir():
        if not file.name.endswith(".film.json"):
            assert (other / "films" / file.name).read_bytes() == file.read_bytes()


def test_films_of_the_world_are_searched_by_an_installed_encoder(
    films, tmp_path, monkeypatch, capsys
) -> None:
    """The demo's films by the demo's model; others by what is in the cache, if anything is."""
    from huggingface_hub import constants
    from tiny_encoders import save_transformers
    from tiny_films import constant_rate, write_film

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    film = write_film(tmp_path / "world.mp4", constant_rate(20, 5.0))
    words = ["a dog", "--features-dir", str(tmp_path / "features"), "--json"]
    assert main(["find", str(film), *words]) == 0
    assert "these are the demo's weights" in capsys.readouterr().err
    snapshot = cache / "models--somebody--encoder" / "snapshots" / "c0ffee"
    save_transformers(snapshot, "siglip")
    (cache / "models--somebody--encoder" / "refs").mkdir()
    (cache / "models--somebody--encoder" / "refs" / "main").write_text("c0ffee")
    assert main(["find", str(film), *words]) == 0
    told = capsys.readouterr()
    assert "by hf:somebody/encoder" in told.err and '"level": "dense"' not in told.out
    assert main(["index", str(film), "--library", str(tmp_path / "library")]) == 0
    assert "by hf:somebody/encoder" in capsys.readouterr().err
    assert main(["find", str(films[0] / "a.mp4"), *words]) == 0
    assert "somebody" not in capsys.readouterr().err
