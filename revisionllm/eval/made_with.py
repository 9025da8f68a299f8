"""What predictions were made with, kept beside them, so that no run goes on with another's.

`<folder>/made_with.json` names the run's contents, the flags that matter and the annotation files.
Another model, config or flag is refused; another annotation file gets a folder of its own,
`predictions/dense-<file stem>`, which `stage_folder` finds again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, json_digest, read_json, write_json
from revisionllm.search.cost import SPEEDS_FILE

if TYPE_CHECKING:
    from revisionllm.formats.annotations import Annotation
    from revisionllm.records.predictions import Prediction

NAME = "made_with.json"
# Flags that change no answer (queries, batches and devices: none but their last digits), or that
# are told by contents instead.
FREE = (
    *("output", "num_shards", "shard", "limit", "retry_failed", "skip_bad", "device", "budget_mb"),
    *("queries_per_batch", "checkpoint", "base", "adapter_file", "stage", "data_path", "long"),
    *("grounding_path", "verb", "command", "run", "overwrite"),
)


def source_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of a published --checkpoint, as overrides of `load_model`."""
    given = {name: getattr(args, name) for name in ("base", "adapter_file", "stage")}
    return {name: value for name, value in given.items() if value is not None}


def made_with(args: argparse.Namespace) -> dict[str, str]:
    """What the answers of a predicting command depend on, besides the queries: name -> value.

    Raises:
        UserError: a run is missing.
    """
    from revisionllm.model.fingerprints import run_fingerprint

    runs = {"--checkpoint": run_fingerprint(args.checkpoint, **source_flags(args))}
    for number, path in enumerate(getattr(args, "long", None) or [], start=1):
        runs[f"--long {number}"] = run_fingerprint(path)
    found = {
        f"{part} of {run}": value for run, parts in runs.items() for part, value in parts.items()
    }
    for name, value in sorted(vars(args).items()):
        if name in FREE or callable(value) or value is None:
            continue
        is_path = name in ("features", "text_features") and Path(str(value)).exists()
        value = "field" if (name, value) == ("convention", "ours") else value  # its older name
        found[f"--{name}"] = str(Path(value).resolve()) if is_path else str(value)
    if getattr(args, "plan", None) == "auto":  # the table decides which plan is taken
        found["speeds of plans"] = json_digest(read_json(SPEEDS_FILE))
    if getattr(args, "grounding_path", None):
        found["--grounding_path"] = json_digest(_dense_record(args.grounding_path, args.data_path))
    return found


def _dense_record(path: str, data_path: Sequence[str]) -> Any:
    """What dense predictions were made with; their contents where nothing says it."""
    place = Path(path)
    if not place.exists():
        return None
    folder = place.parent if place.is_file() else stage_folder(place, "dense", data_path)
    if (folder / NAME).is_file():
        return read_json(folder / NAME, kind=dict)
    files = [place] if place.is_file() else sorted(folder.glob("*.jsonl"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def data_names(paths: Iterable[str | Path]) -> list[str]:
    """How annotation files are told apart: by name."""
    return sorted(Path(path).name for path in paths)


def own_folder(folder: Path, data_path: Sequence[str]) -> Path:
    """Where predictions for these annotation files go: `folder`, if it holds none of others."""
    held = _held_data(folder)
    if held is None or held == data_names(data_path):
        return folder
    return folder.with_name(f"{folder.name}-{'+'.join(sorted(Path(p).stem for p in data_path))}")


def _held_data(folder: Path) -> list[str] | None:
    """The annotation files that a folder's predictions are for; None: it does not say."""
    if not (folder / NAME).is_file():
        return None
    data = read_json(folder / NAME, kind=dict).get("data")
    return data if isinstance(data, list) else None


def stage_folder(run: Path, stage: str, data_path: Sequence[str | Path] | None = None) -> Path:
    """The folder of a run's predictions for these annotation files; unset: the first one.

    Where there are several and none was asked for, stderr says which is taken.
    """
    folder = run / "predictions" / stage
    others = [f for f in sorted(folder.parent.glob(f"{stage}-*")) if _held_data(f) is not None]
    if data_path:
        wanted = data_names(data_path)
        return next((f for f in [folder, *others] if _held_data(f) == wanted), folder)
    if others and folder.is_dir():
        held = ", ".join(_held_data(folder) or ["?"])
        names = ", ".join(str(other) for other in others)
        print(f"{folder} ({held}) is taken; there are also {names}", file=sys.stderr)
    return folder


def check_same(folder: Path, made: Mapping[str, str], *, has_answers: bool) -> None:
    """Refuse to go on with answers that something else made.

    Raises:
        UserError: says what differs, and the command that starts anew.
    """
    from revisionllm.model.fingerprints import changes

    if not has_answers:
        return
    if not (folder / NAME).is_file():
        print(f"{folder} does not say what made it; its answers are kept", file=sys.stderr)
        return
    before = read_json(folder / NAME, kind=dict).get("made_with")
    differ = changes(before if isinstance(before, dict) else {}, dict(made))
    if differ:
        raise UserError(
            f"the answers in {folder} were made with something else: {differ};"
            f" {_start_anew(folder)}"
        )


def check_queries(
    path: Path, answered: Sequence[Prediction], wanted: Mapping[str, Annotation]
) -> None:
    """Refuse answers to queries that the annotations do not have, or have otherwise now.

    Raises:
        UserError: names one, and the command that starts anew.
    """
    for prediction in answered:
        asked = wanted.get(prediction.qid)
        if prediction.status != "ok":
            continue
        if asked is None:
            what = "is not in the annotations"
        elif (asked.video_id, asked.sentence, asked.duration_s) != (
            prediction.vid,
            prediction.query,
            prediction.duration_s,
        ):
            what = "had another film, sentence or duration"
        elif prediction.gt is not None and prediction.gt != asked.spans_s:
            what = "had other true spans"
        else:
            continue
        raise UserError(
            f"{path} answers other queries: {prediction.qid!r} {what};"
            f" {_start_anew(path.parent)}, or give --output ANOTHER"
        )


def _start_anew(folder: Path) -> str:
    free = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    to = folder.with_name(f"{folder.name}.{free}")
    return f"start anew after: mv {shlex.quote(str(folder))} {shlex.quote(str(to))}"


def write_made_with(folder: Path, made: Mapping[str, str], data_path: Sequence[str]) -> None:
    """Write `made_with.json`, unless it says the same already."""
    from revisionllm.model.loading import provenance

    same = {"data": data_names(data_path), "made_with": dict(made)}
    path = folder / NAME
    if path.is_file():
        before = read_json(path, kind=dict)
        if {name: before.get(name) for name in same} == same:
            return
    write_json(path, {"made_by": MADE_BY} | same | provenance(), indent=1)
