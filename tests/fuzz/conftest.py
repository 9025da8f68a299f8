"""Files to damage are made once; see `damage.py`."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "data"):
    sys.path.insert(0, str(folder))
