"""Every command answers `--help` without heavy imports, from anywhere, before any installation."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revisionllm.cli import VERBS, build_parser

ROOT = Path(__file__).resolve().parents[1]
ENTRY_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "revisionllm").rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
# Starts a file as `python FILE ARGS` would where the project is not installed; every heavy import
# fails.
RUN_BARE = """
import runpy, sys
root, path, *args = sys.argv[1:]
for name in ("torch", "torchvision", "transformers", "peft", "open_clip", "av", "matplotlib"):
    sys.modules[name] = None
installed = [f for f in sys.meta_path if getattr(f, "__module__", "").startswith("__editable__")]
sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in installed]
sys.path[:] = [path.rpartition("/")[0]] + [p for p in sys.path[1:] if p != root]
sys.argv[:] = [path, *args]
runpy.run_path(path, run_name="__main__")
"""


def run_bare(cwd: Path, entry_file: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", RUN_BARE, str(ROOT), str(ROOT / entry_file), *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "entry_file", [path for path in ENTRY_FILES if path != "revisionllm/cli.py"]
)
def test_entry_file_answers_help(entry_file: str, tmp_path: Path) -> None:
    result = run_bare(tmp_path, entry_file, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")
    assert not list(tmp_path.iterdir())


def commands_below(verb: str | None) -> list[list[str]]:
    """The verb and its sub-commands, as words of a command line."""
    if verb is None:
        return [[]]
    verbs = next(
        a for a in build_parser(verb)._actions if isinstance(a, argparse._SubParsersAction)
    )
    actions = verbs.choices[verb]._actions
    nested = [a.choices for a in actions if isinstance(a, argparse._SubParsersAction)]
    return [[verb], *([verb, name] for choices in nested for name in choices)]


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_verb_answers_help(verb: str | None, tmp_path: Path) -> None:
    for command in commands_below(verb):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from revisionllm.cli import main; "
        heavy = "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'av', 'matplotlib'))); "
        arguments = [*command, "--help"]
        result = subprocess.run(
            [sys.executable, "-c", code + heavy + f"main({arguments!r})"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(" ".join(["usage: revisionllm", *command]))


def test_top_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    from revisionllm.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert set(VERBS) <= listed


@pytest.mark.parametrize("argv", [[], ["no-such-verb"], ["find"]])
def test_bad_command_line_exits_2(argv: list[str]) -> None:
    from revisionllm.cli import main

    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import revisionllm; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["revisionllm"]


BAD_WORDS = {
    "find": ["find", "nowhere.mp4", "a dog"],
    "find a text": ["find", __file__, "a dog", "--model", "clip:ViT-B-32:x"],
    "find by nothing": ["find", "FILM", "a dog", "--model", "clip:./nowhere"],
    "find without a run": ["find", "FILM", "a dog", "--checkpoint", "nowhere"],
    "find without words": ["find", "FILM", ""],
    "index": ["index", "nowhere"],
    "index by nothing": ["index", "FILM", "--model", "clip:./nowhere"],
    "library": ["library", "list", "nowhere"],
    "cut": ["cut", "nowhere", "--clips", "x"],
    "convert-checkpoint": ["convert-checkpoint", "nowhere", "elsewhere"],
    "convert-data": ["convert-data", "nowhere.jsonl", "--to", "mad"],
    "train": ["train", "--recipe", "nowhere.toml"],
    "data": ["data", "check", "nowhere.toml"],
    "eval": ["eval", "score", "nowhere"],
    "features": ["features", "extract", "nowhere.mp4"],
    "run": ["run", "export", "nowhere", "--to", "x"],
    "run of a checkpoint": ["run", "from-checkpoint", "nowhere", "--to", "x"],
    "models": ["models", "get", "nowhere"],
}


@pytest.mark.parametrize("words", BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_input_is_told_before_torch_is_imported(tmp_path, words) -> None:
    from tiny_films import constant_rate, write_film

    film = write_film(tmp_path / "film.mp4", constant_rate(5, 5.0))
    words = [str(film) if word == "FILM" else word for word in words]
    code = (
        "import sys; from revisionllm.cli import main\n"
        f"try: code = main({words!r})\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.split() == ["2", "False"], ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
