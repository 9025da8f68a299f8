"""The rooms of the package: which may import which, and how long a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "revisionllm"
# a room imports only from rooms on lines above its own; CONTRIBUTING.md shows the same table
ORDER = (
    ("errors", "constants", "versions", "options"),
    ("files",),
    ("grounding",),
    ("records",),
    ("metrics",),
    ("formats",),
    ("model",),
    ("data",),
    ("engine",),
    ("search",),
    ("train",),
    ("grounder",),
    ("library",),
    ("eval", "interop"),
    ("viewer",),
    ("app", "service"),
    ("find", "demo"),
    ("doctor",),
    ("cli",),
)
LINE = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
MOST_LINES = 80
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of ours, deferred ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "revisionllm" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_lead_to_rooms_above(path: Path) -> None:
    own = room_of(path)
    wrong = [
        f"line {line}: {own} imports {room}"
        for line, room in imported_rooms(path)
        if room != own and LINE[room] >= LINE[own]
    ]
    assert not wrong


def test_every_room_has_its_line() -> None:
    assert {room_of(path) for path in FILES} == set(LINE)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_fit_on_a_page(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}
