"""`revisionllm doctor`: a page for bug reports."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from revisionllm import doctor
from revisionllm.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of features below a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    folder = tmp_path / "home" / "cache" / "revisionllm" / "features"
    folder.mkdir(parents=True)
    return folder


def test_the_page_is_whole_and_names_no_folder(cache, capsys) -> None:
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    for title in ("this machine", "packages", "accelerators", "video", "disk", "models"):
        assert f"\n{title}" in f"\n{page}"
    assert "torch " in page and "h264" in page and "rendered" in page
    assert page.endswith("problems\n  none\n")
    assert "/home" not in page and str(cache) not in page


def test_what_is_wrong_is_a_problem_and_an_exit_code(capsys, monkeypatch) -> None:
    version = doctor._version
    changed = {"tqdm": None, "numpy": "1.20.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: changed.get(name, version(name)))
    monkeypatch.setattr("revisionllm.demo.world.render.write_film", lambda *_: 1 / 0, raising=True)
    assert main(["doctor"]) == 1
    problems = capsys.readouterr().out.split("problems\n")[1]
    assert "tqdm is missing: `pip install 'tqdm" in problems
    assert "numpy 1.20.0 is not" in problems
    assert "the self-test failed: ZeroDivisionError" in problems


def test_clean_takes_what_find_keeps_alone(cache, capsys) -> None:
    mine = [cache / "notes.json", cache / "rows.npy", cache / "film.mp4"]
    for path in mine:
        path.write_text("{}")
    ours = [
        cache / "a.json",
        cache / "a.npy",
        cache / "b.npy.partial",
        cache / "b.npy.partial.json",
        cache / "words.sqlite",
        cache / "grounder_answers.sqlite-wal",
    ]
    for path in ours:
        path.write_text('{"made_by": "revisionllm"}')
    assert main(["doctor", "--no-test"]) == 0
    assert "in 6 files" in capsys.readouterr().out
    with (cache / "b.npy.partial").open("rb") as rows:
        fcntl.flock(rows, fcntl.LOCK_EX)
        assert main(["doctor", "--no-test", "--clean"]) == 0
        assert sorted(cache.iterdir()) == sorted([*mine, *ours[2:4]])
    assert main(["doctor", "--no-test", "--clean"]) == 0
    assert sorted(cache.iterdir()) == sorted(mine)


def test_every_optional_package_is_on_the_page() -> None:
    import ast

    setup = ast.parse((Path(__file__).parents[1] / "setup.py").read_text())
    extras = next(
        ast.literal_eval(keyword.value)
        for node in ast.walk(setup)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "extras_require"
    )
    names = {name.split(">=")[0] for packages in extras.values() for name in packages}
    assert names <= doctor.OPTIONAL.keys()
