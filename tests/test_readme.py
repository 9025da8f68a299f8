"""What the README says is there is there, what it calls planned is not; no file names a machine."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from revisionllm.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "data/README.md", "checkpoints/README.md", "checkpoints/demo/README.md"]

# The commands of the released repository that this project promises, by folder.
MISSION = [
    "python revisionllm/data/mad/mad_to_activitynet.py",
    "python revisionllm/data/feature_extraction/mad_clip_text_extractor.py",
    "python revisionllm/data/feature_extraction/chapters_clip_text_extractor.py",
    "python revisionllm/data/vidchap7m/chapters_clip_extractor.py",
    "python revisionllm/data/vidchap7m/chapters_test_to_activitynet.py",
    "python revisionllm/data/vidchap7m/chapters_to_activitynet.py",
    "sh scripts/mad/stage1_dense.sh",
    "sh scripts/mad/stage1_sparse.sh",
    "sh scripts/mad/stage2_long_33.sh",
    "sh scripts/mad/stage2_long_100.sh",
    "bash scripts/mad/eval_loop_stage1_dense.sh",
    "bash scripts/mad/eval_stage2_33.sh",
    "bash scripts/mad/eval_stage2_100.sh",
    "python revisionllm/eval/metric_retrieval_forward.py",
    "sh scripts/chapters/stage1_dense.sh",
    "sh scripts/chapters/stage1_sparse.sh",
    "sh scripts/chapters/stage2_long_100.sh",
    "bash scripts/chapters/eval_loop_stage1_dense.sh",
    "bash scripts/chapters/eval_stage2_100.sh",
    "python revisionllm/eval/metric_retrieval_forward_chapters.py",
]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every Markdown table row, without head lines' dashes."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set(row[0]) <= set("-|: ")]


def shell_commands(text: str) -> list[str]:
    """Every line of the fenced sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def section(title: str) -> str:
    """The README's text under a heading, up to the next one."""
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", README, re.S | re.M).group(1)


@pytest.mark.parametrize("command", sorted(set(shell_commands(README))))
def test_command_works_as_written(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program in ("sh", "bash", "python"):
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program == "revisionllm"
        args = build_parser(only_verb=arguments[0]).parse_args(arguments)
        assert callable(args.run)


def test_mission_table_is_complete_and_true() -> None:
    rows = table_rows(section("The paper's experiments"))[1:]
    assert [row[0].strip("`") for row in rows] == MISSION
    there = {row[0].strip("`"): row[2] == "works" for row in rows}
    assert there == {command: (ROOT / command.split()[1]).is_file() for command in MISSION}
    assert {row[2] for row in rows} <= {"works", "planned"}


def test_every_verb_has_its_row() -> None:
    from revisionllm.cli import VERBS

    rows = table_rows(section("What `revisionllm` does"))[1:]
    assert [row[0] for row in rows] == [f"`revisionllm {verb}`" for verb in VERBS]


def test_demo_launchers_have_their_rows() -> None:
    rows = table_rows(section("Making the demo's weights again"))[1:]
    listed = {row[0].strip("`").split()[1] for row in rows}
    assert listed == {f"scripts/demo/{path.name}" for path in (ROOT / "scripts/demo").glob("*.sh")}


def test_map_names_every_room() -> None:
    text = section("Map")
    places = re.findall(r"`([\w./-]+)`", text)
    assert all((ROOT / place).exists() for place in places if "/" in place)
    rooms = {
        f"revisionllm/{path.parent.name}/" for path in (ROOT / "revisionllm").glob("*/__init__.py")
    }
    assert rooms <= set(places)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    missing = [link for link in local if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", README, re.S | re.M))
def test_python_example_uses_existing_names(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)


def test_no_file_names_a_machine() -> None:
    machine_path = re.compile(r"(?<![\w.~$}])/(?:work|tmp|root|home|mnt|scratch)/\w")
    rooms = ["revisionllm", "scripts", "tests", "benchmarks", "docs", "checkpoints/demo", ".ci"]
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".txt", ".toml", ".py")]
    files += [ROOT / page for page in PAGES]
    suffixes = {".py", ".sh", ".md", ".json", ".txt", ".toml", ".html", ".css", ".js", ".svg", ""}
    named = []
    for path in files:
        if path.suffix in suffixes and "__pycache__" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            named += [f"{path}: {line[:80]}" for line in lines if machine_path.search(line)]
    assert not named
