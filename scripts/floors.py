"""The oldest packages that an installation accepts, as pip constraints: `name==version` lines.

    python scripts/floors.py               # for test_versions.sh
    python scripts/floors.py --versions    # what is installed, for its table

Reads requirements.txt and setup.py's `train` extra, for the running Python.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("torch", "transformers", "peft", "open_clip_torch", "av", "numpy", "deepspeed")
MARKER = re.compile(r"python_version *(<|>=) *\"3\.(\d+)\"")


def requirements() -> list[str]:
    """Requirement lines that hold for the running Python."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    lines += re.findall(r'"([^"]+)"', re.search(r'"train": \[(.*?)\]', setup, re.DOTALL)[1])
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        match = MARKER.search(marker)
        minor = sys.version_info.minor
        holds = match is None or (minor < int(match[2])) == (match[1] == "<")
        if requirement.strip() and not requirement.startswith("#") and holds:
            found.append(requirement.strip())
    return found


def main() -> int:
    """Print constraints, or with --versions what is installed."""
    if "--versions" in sys.argv:
        installed = {item.metadata["Name"]: item.version for item in metadata.distributions()}
        print(", ".join(f"{name} {installed.get(name, '-')}" for name in SHOWN))
        return 0
    for requirement in requirements():
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement)
        if match:
            print(f"{match[1]}=={match[2]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
