"""The shell scripts: POSIX, from any directory, one clear line when stuck, quick again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").rglob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if not path.endswith("/common.sh")]
POSIX_SHELL = shutil.which("dash") or "sh"

# Stands for the Python of an environment: notes how it is called, installs nothing.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >>"{log}"
case "$1 $2 $3" in
-c*) exec "{python}" "$@" ;;
"-m pip install") [ ! -e "{log}.broken" ] ;;
esac
"""


def run_script(
    script: Path, *args: str, shell: str = POSIX_SHELL, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHON", "DRY_RUN")}
    return subprocess.run(
        [shell, str(script), *args],
        cwd=cwd,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the scripts need of a fresh clone, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An active virtual environment whose pip only writes down what it was asked."""
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(FAKE_PYTHON.format(log=folder / "calls", python=sys.executable))
    command = folder / "bin" / "revisionllm"
    command.write_text('#!/bin/sh\necho "revisionllm $*"\n')
    python.chmod(0o755)
    command.chmod(0o755)
    return folder


def installations(environment: Path) -> list[str]:
    """The `pip install` calls since the last look."""
    calls = (environment / "calls").read_text().splitlines()
    (environment / "calls").write_text("")
    return [call for call in calls if call.startswith("-m pip install")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_posix(script: str) -> None:
    result = subprocess.run([POSIX_SHELL, "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("script", LAUNCHERS)
def test_dry_run_prints_existing_commands(script: str, shell: str, tmp_path: Path) -> None:
    result = run_script(ROOT / script, "--flag", shell=shell, cwd=tmp_path, DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    trainings = [line for line in lines if "train/train.py" in line]
    assert all(line.endswith(" --flag") for line in trainings or lines[-1:]) and lines
    for path in re.findall(r"\S+\.py\b", result.stdout):
        assert (ROOT / path).is_file()
    assert not list(tmp_path.iterdir())


def test_ci_runs_the_test_command() -> None:
    ci = run_script(ROOT / ".ci" / "run", shell="bash", DRY_RUN="1")
    tests = run_script(ROOT / "scripts" / "test.sh", DRY_RUN="1")
    assert ci.returncode == 0, ci.stderr
    assert ci.stdout == tests.stdout


def test_no_python_is_one_clear_line(checkout: Path) -> None:
    old = checkout / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in ("/no/such/python", str(old)):
        result = run_script(checkout / "scripts" / "quickstart.sh", PYTHON=python)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert "no Python 3.10 or newer" in result.stderr
        assert not (checkout / ".venv").exists()


def test_second_run_installs_nothing(checkout: Path, environment: Path) -> None:
    quickstart, active = checkout / "scripts" / "quickstart.sh", {"VIRTUAL_ENV": str(environment)}
    first = run_script(quickstart, "--out", "a b", cwd=checkout.parent, **active)
    assert (first.returncode, first.stdout) == (0, "revisionllm demo --out a b\n")
    assert installations(environment) == [
        f"-m pip install --disable-pip-version-check -e {checkout}"
    ]
    second = run_script(quickstart, **active)
    assert second.stdout == "revisionllm demo\n"
    assert second.stderr == ""
    assert installations(environment) == []
    with (checkout / "requirements.txt").open("a") as file:
        file.write("one-more\n")
    run_script(quickstart, **active)
    assert len(installations(environment)) == 1


def test_installing_for_tests_serves_the_quickstart(checkout: Path, environment: Path) -> None:
    active = {"VIRTUAL_ENV": str(environment)}
    assert run_script(checkout / "scripts" / "test.sh", **active).returncode == 0
    calls = installations(environment)
    assert ["requirements-dev.txt" in call for call in calls] == [True, False]
    run_script(checkout / "scripts" / "quickstart.sh", **active)
    run_script(checkout / "scripts" / "test.sh", **active)
    assert installations(environment) == []


def test_failed_installation_is_tried_again(checkout: Path, environment: Path) -> None:
    quickstart, active = checkout / "scripts" / "quickstart.sh", {"VIRTUAL_ENV": str(environment)}
    (environment / "calls.broken").touch()
    broken = run_script(quickstart, **active)
    assert broken.returncode == 2
    assert "could not install everything" in broken.stderr
    assert broken.stdout == ""
    (environment / "calls.broken").unlink()
    installations(environment)
    assert run_script(quickstart, **active).returncode == 0
    assert len(installations(environment)) == 1
