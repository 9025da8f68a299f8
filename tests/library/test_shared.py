"""A library as LanceDB tables: the same answers, film by film, kept up to date."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from revisionllm.cli import main
from revisionllm.data.stores.feature_writers import save_npy
from revisionllm.files import write_json
from revisionllm.library import shared
from revisionllm.library.frames import find_moments
from revisionllm.library.shared import SharedLibrary, is_shared, share
from revisionllm.library.store import ABOUT, Library

pytest.importorskip("lancedb")
DIM, FILMS = 16, 30


def made_up(folder: Path, films: int = FILMS) -> Library:
    """Films of a few hundred rows: shots of like frames."""
    rng = np.random.default_rng(0)
    about = {"format": "revisionllm-library", "encoder": "none", "fingerprint": "f" * 16}
    write_json(folder / ABOUT, about | {"feature_fps": 1.0})
    library = Library(folder)
    for number in range(films):
        add(library, number, rng)
    return library


def add(library: Library, number: int, rng) -> None:
    film_id = f"{number:016x}"
    rows = np.repeat(rng.standard_normal((30, DIM)), 10, axis=0)
    rows = (rows + 0.1 * rng.standard_normal(rows.shape)).astype(np.float16)
    save_npy(library.folder / "films" / f"{film_id}.npy", rows)
    told = {"num_frames": len(rows), "duration_s": float(len(rows)), "feature_fps": 1.0}
    write_json(library.folder / "films" / f"{film_id}.json", told | {"dim": DIM})
    library.write_pieces(film_id)
    note = {"path": f"film{number}.mp4", "bytes": 0, "mtime_ns": 0}
    write_json(library.folder / "films" / f"{film_id}.film.json", note)


def best(library, features: np.ndarray, films=None) -> list:
    known = library.films() if films is None else films
    found = find_moments(library.framed_films(known), features, top_k=5)
    return [
        [(known[at].film_id, m.start_s, m.end_s, round(m.score, 5)) for at, m in row]
        for row in found
    ]


@pytest.fixture
def pair(tmp_path) -> tuple[Library, SharedLibrary]:
    """A library and its shared form."""
    library, place = made_up(tmp_path / "library"), str(tmp_path / "shared")
    assert share(library, place) == (FILMS, 0)
    return library, SharedLibrary(place)


def test_the_answers_are_the_librarys(pair) -> None:
    library, there = pair
    assert is_shared(there.place) and not is_shared(library.folder)
    assert (there.encoder, there.fingerprint, there.feature_fps) == ("none", "f" * 16, 1.0)
    assert there.films() == library.films()
    features = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    assert best(there, features) == best(library, features)


def test_only_promising_films_are_read(pair, monkeypatch) -> None:
    monkeypatch.setattr(shared, "MOST_FILMS", 3)
    library, there = pair
    rows = np.load(library.folder / "films" / f"{7:016x}.npy").astype(np.float32)
    likely = there.promising(rows[[15]])
    assert len(likely) == 3 and f"{7:016x}" in likely
    chosen = [film for film in there.films() if film.film_id in likely]
    assert best(there, rows[[15]], chosen) == best(library, rows[[15]], chosen)


def test_it_is_brought_up_to_date(tmp_path, monkeypatch) -> None:
    """Films come and go; a call that was killed is gone on with."""
    library, place = made_up(tmp_path / "library", 5), str(tmp_path / "shared")
    rows_of, calls = shared._rows, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rows_of(*args)

    monkeypatch.setattr(shared, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        share(library, place)
    with pytest.raises(shared.UserError, match="is no shared library"):
        SharedLibrary(place)
    monkeypatch.setattr(shared, "_rows", rows_of)
    assert share(library, place) == (2, 0)
    assert share(library, place) == (0, 0)
    library.remove(library.films()[0])
    add(library, 99, np.random.default_rng(9))
    assert share(library, place) == (1, 1)
    there = SharedLibrary(place)
    assert there.films() == library.films()
    features = np.random.default_rng(1).standard_normal((2, DIM)).astype(np.float32)
    assert best(there, features) == best(library, features)


def test_large_ones_are_searched_through_an_index(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shared, "INDEX_FROM", 500)
    library, place = made_up(tmp_path / "library"), str(tmp_path / "shared")
    share(library, place)
    there = SharedLibrary(place)
    assert there._pieces.list_indices()
    rows = np.load(library.folder / "films" / f"{3:016x}.npy").astype(np.float32)
    assert f"{3:016x}" in there.promising(rows[[5]])


def test_what_is_refused(tmp_path, capsys) -> None:
    library = made_up(tmp_path / "library", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(shared.UserError, match="holds something else"):
        share(library, str(tmp_path / "full"))
    share(library, str(tmp_path / "shared"))
    write_json(
        library.folder / ABOUT,
        json.loads((library.folder / ABOUT).read_text()) | {"fingerprint": "0" * 16},
    )
    with pytest.raises(shared.UserError, match="was made by encoder"):
        share(Library(library.folder), str(tmp_path / "shared"))
    words = ["find", str(tmp_path / "shared"), "a dog", "--model", "demo"]
    assert main(words) == 2
    assert "give the library's own folder" in capsys.readouterr().err


def test_find_in_a_shared_library(tmp_path, capsys) -> None:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    for seed in (3, 4):
        write_film(plan_film(seed, 60.0, "test"), tmp_path / f"{seed}.mp4")
    films = [str(tmp_path / f"{seed}.mp4") for seed in (3, 4)]
    words = ["--library", str(tmp_path / "library"), "--model", "demo"]
    assert main(["index", *films, *words]) == 0
    place = str(tmp_path / "shared")
    assert main(["library", "share", str(tmp_path / "library"), place]) == 0
    assert "2 films, 2 added, 0 removed" in capsys.readouterr().out
    told = []
    for where in (str(tmp_path / "library"), place):
        assert main(["find", where, "a red ball", "a blue box", "--json", "--threshold", "0"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        told.append([(row["film"], row["moments"]) for row in rows])
    assert told[0] == told[1]


def test_without_the_package(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main(["find", "s3://bucket/library", "a dog"]) == 2
    assert "pip install lancedb" in capsys.readouterr().err
