"""Which Pythons and packages this was tested with; newer ones are named once, and used."""

from __future__ import annotations

import sys
from importlib import metadata

# the newest of scripts/test_versions.sh
TESTED_PYTHON = (3, 13)
TESTED = {
    "torch": "2.15",
    "torchvision": "0.29",
    "transformers": "5.24",
    "peft": "0.21",
    "open_clip_torch": "3.3",
    "av": "19.0",
    "numpy": "2.5",
    "deepspeed": "0.19",
}
_told: set[str] = set()


def newer_than_tested() -> str | None:
    """One line that names what is newer than all that was tested; None if nothing is."""
    newer = []
    if sys.version_info[:2] > TESTED_PYTHON:
        newer.append(f"Python {sys.version_info[0]}.{sys.version_info[1]}")
    for name, tested in TESTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(found) > _numbers(tested):
            newer.append(f"{name} {found}")
    if not newer:
        return None
    return f"newer than tested: {', '.join(newer)}; if something fails, the README names versions"


def warn_if_newer() -> None:
    """Print that line on stderr, once per process."""
    line = newer_than_tested()
    if line and line not in _told:
        _told.add(line)
        print(f"revisionllm: {line}", file=sys.stderr)


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    digits = []
    for part in version.split(".")[:2]:
        number = "".join(letter for letter in part if letter.isdigit())
        digits.append(int(number or 0))
    return tuple(digits)
