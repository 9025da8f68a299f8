"""What a run is made of, as short fingerprints: two runs with equal ones answer alike.

Evaluation keeps them with its predictions, training with its checkpoints, so that neither goes on
with what another model made.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from revisionllm.files import json_digest, sha256_of, stamp_of
from revisionllm.model.config import CALIBRATION_NAME, read_calibration
from revisionllm.model.loading import describe

# says where things lie and who wrote them, not what they are
PLACES = ("base", "clip", "adapter_file", "lora", "parent", "versions", "git_commit")
LORA_FILES = ("adapter_config.json", "adapter_model.*", "non_lora_trainables.bin")


def run_fingerprint(source: str | Path, **overrides: Any) -> dict[str, str]:
    """Part of a run -> fingerprint of its contents: config, adapter, LoRA, calibration, base.

    Adapter and LoRA are read whole. The base, gigabytes of it, is told by names, sizes, times of
    change and first bytes of its files (`base_stamp`).

    Args:
        source: as for `load_model`, and so are the overrides.

    Raises:
        UserError: it is no run.
    """
    config, weights = describe(source, **overrides)
    values = {name: value for name, value in asdict(config).items() if name not in PLACES}
    if config.adapter.text_width is None:  # runs are older than this field
        del values["adapter"]["text_width"]
    found = {"config": json_digest(values)}
    if weights is not None:
        files = sorted({Path(file) for file, _ in weights.origin.values()})
        found["adapter"] = json_digest([sha256_of(file) for file in files])
    for number, folder in enumerate(config.lora, start=1):
        found[f"LoRA {number}"] = weights_digest(folder)
    found["base"] = base_stamp(config.base)
    calibration = read_calibration(source) if Path(source).is_dir() else None
    if calibration is not None:
        found["calibration"] = json_digest(sha256_of(Path(source) / CALIBRATION_NAME))
    return found


def weights_digest(source: str | Path) -> str:
    """Fingerprint of a published file, or of the LoRA and projector in a published folder."""
    path = Path(source)
    patterns = (*LORA_FILES, "mm_projector.bin")
    files = {f for pattern in patterns for f in path.glob(pattern)} if path.is_dir() else {path}
    return json_digest([[file.name, sha256_of(file)] for file in sorted(files)])


def base_stamp(base: str) -> str:
    """Fingerprint of a base LLM without reading it whole; of a name that is not here, the name."""
    return stamp_of(base) if Path(base).exists() else base


def changes(before: dict[str, Any], now: dict[str, Any], *, most: int = 5) -> str:
    """What differs between two flat records, for a message; empty if nothing does."""
    names = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
    shown = [f"{n} was {_short(before.get(n))}, is {_short(now.get(n))}" for n in names[:most]]
    return "; ".join(shown + (["..."] if len(names) > most else []))


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
