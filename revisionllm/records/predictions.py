"""The one prediction schema: append-only JSONL, one query per line.

    {"schema": 1, "qid": str, "vid": str, "query": str, "duration_s": float, "found": bool,
     "moments": [{"start_s", "end_s", "score", "parts": {...}, "level", "said" (of words alone)}],
     "cost": {"dense_windows", "segments", "llm_tokens", "seconds"},
     "status": "ok" | "failed", "reason": str | null, "run": str, "gt": [[s, e]] | null}

Stage files carry `"windows": [{"index", "start_s", "end_s", "answer", "presence", "entropy"}]` too.
`gt` null: unknown; `gt` []: known to be absent from the film.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import is_ours, lock_file
from revisionllm.grounding.levels import Cost, Moment, WindowAnswer
from revisionllm.records.jsonl import (
    BadRecord,
    Problem,
    iter_json_lines,
    number_field,
    optional_text,
    span_rows,
    text_field,
    write_json_lines,
)

SCHEMA_VERSION = 1
STATUSES = ("ok", "failed")
# what of each record is written
MOMENT_FIELDS = ("start_s", "end_s", "score", "parts", "level")
COST_FIELDS = ("dense_windows", "segments", "llm_tokens", "seconds")
WINDOW_FIELDS = ("index", "start_s", "end_s", "answer", "presence", "entropy")


@dataclass(slots=True)
class Prediction:
    """The answer to one query on one film; `moments` are sorted by falling score."""

    qid: str
    vid: str
    query: str
    duration_s: float
    found: bool
    moments: list[Moment] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    status: str = "ok"
    reason: str | None = None
    run: str = ""
    gt: list[tuple[float, float]] | None = None
    windows: list[WindowAnswer] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object (dict), keys in the order of the contract."""
        record: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "qid": self.qid,
            "vid": self.vid,
            "query": self.query,
            "duration_s": self.duration_s,
            "found": self.found,
            "moments": [_moment_fields(moment) for moment in self.moments],
            "cost": _fields(self.cost, COST_FIELDS),
            "status": self.status,
            "reason": self.reason,
            "run": self.run,
            "gt": None if self.gt is None else [list(span) for span in self.gt],
        }
        if self.windows is not None:
            record["windows"] = [_fields(window, WINDOW_FIELDS) for window in self.windows]
        return record

    @classmethod
    def from_json(cls, record: Any) -> Prediction:
        """Build from a parsed JSON object.

        Raises:
            BadRecord: a field is missing, of the wrong type, NaN, or a span is reversed.
        """
        check_schema(record)
        gt, windows = record.get("gt"), record.get("windows")
        return cls(
            qid=text_field(record, "qid"),
            vid=text_field(record, "vid"),
            query=_typed(record, "query", str),
            duration_s=number_field(record, "duration_s"),
            found=_typed(record, "found", bool),
            moments=[_moment(row) for row in _typed(record, "moments", list)],
            cost=_cost(record.get("cost") or {}),
            status=record.get("status", "ok"),
            reason=optional_text(record, "reason"),
            run=optional_text(record, "run") or "",
            gt=None if gt is None else [tuple(row) for row in span_rows(gt, "gt").tolist()],
            windows=None
            if windows is None
            else list(map(_window, _typed(record, "windows", list))),
        )


def check_schema(record: Any) -> None:
    """Refuse what is not a prediction record of this schema version (raises BadRecord)."""
    if not isinstance(record, dict):
        raise BadRecord("expected a JSON object")
    if record.get("schema") != SCHEMA_VERSION:
        raise BadRecord(f"schema is {record.get('schema')!r}, this reader knows {SCHEMA_VERSION}")
    if record.get("status", "ok") not in STATUSES:
        raise BadRecord(f"status {record.get('status')!r} is not one of {', '.join(STATUSES)}")


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read one file; a torn last line (what a kill leaves) is left out, other bad lines raise.

    Raises:
        UserError: names file and line.
    """
    predictions, problems = scan_predictions(path)
    wrong = [problem for problem in problems if "last line is torn" not in problem.what]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")
    return predictions


def scan_predictions(path: str | Path) -> tuple[list[Prediction], list[Problem]]:
    """Read what can be read; each line that cannot is returned as a `Problem`."""
    predictions: list[Prediction] = []
    problems: list[Problem] = []
    for line, record in iter_json_lines(path):
        if isinstance(record, Problem):
            problems.append(record)
            continue
        try:
            predictions.append(Prediction.from_json(record))
        except BadRecord as error:
            problems.append(Problem(str(path), line, str(error)))
    return predictions, problems


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write a whole file atomically, in the given order."""
    write_json_lines(path, (prediction.to_json() for prediction in predictions))


def merge_shards(paths: Sequence[str | Path], out_path: str | Path) -> list[Prediction]:
    """Merge shard files into one file sorted by (vid, qid).

    Raises:
        UserError: a shard cannot be read, or two lines answer the same query.
    """
    merged = [prediction for path in paths for prediction in read_predictions(path)]
    merged.sort(key=lambda prediction: (prediction.vid, prediction.qid))
    for first, second in itertools.pairwise(merged):
        if (first.vid, first.qid) == (second.vid, second.qid):
            raise UserError(f"query {first.qid} is answered twice in the shards of {out_path}")
    if Path(out_path).is_file() and not is_ours(out_path) and not _is_merged(out_path):
        raise UserError(f"{out_path} holds something else than predictions; move it away")
    write_predictions(out_path, merged)
    return merged


def _is_merged(path: str | Path) -> bool:
    """Whether a file begins like one of ours."""
    _, first = next(iter_json_lines(path), (0, None))
    return isinstance(first, dict) and {"schema", "moments"} <= first.keys()


def cut_torn_line(path: Path) -> bool:
    """Cut off what a kill left behind the last line end of a file; whether there was something."""
    with path.open("rb+") as file:
        data = file.read()
        whole_bytes = data.rfind(b"\n") + 1
        if whole_bytes < len(data):
            file.truncate(whole_bytes)
        return whole_bytes < len(data)


class PredictionWriter:
    """Append-only writer that resumes: `done` holds the query ids that the file already answers.

    A torn last line is cut off on opening (`dropped_torn_line` is then true) and its query is not
    in `done`. Each line is flushed, so that a kill loses at most the line being written. The file
    is locked while it is open.

    Raises:
        UserError: the file holds something else than predictions, cannot be written, or another
            process writes it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.dropped_torn_line = False
        self.done: set[str] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            lock_file(self._file, f"writes {self.path}")
            self.dropped_torn_line = cut_torn_line(self.path)
            self.done = {prediction.qid for prediction in read_predictions(self.path)}
        except UserError:
            self._file.close()
            raise

    def forget_failed(self) -> None:
        """Take the failed predictions out of the file; their queries are not `done`."""
        found = read_predictions(self.path)
        kept = [p for p in found if p.status == "ok"]
        if len(kept) == len(found):
            return
        write_predictions(self.path, kept)
        old, self._file = self._file, self.path.open("a", encoding="utf-8")
        lock_file(self._file, f"writes {self.path}")
        old.close()
        self.done = {prediction.qid for prediction in kept}

    def write(self, prediction: Prediction) -> None:
        """Append one prediction."""
        line = json.dumps(prediction.to_json(), ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        self.done.add(prediction.qid)

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _fields(item: Moment | Cost | WindowAnswer, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def _moment_fields(moment: Moment) -> dict[str, Any]:
    said = {} if moment.said is None else {"said": moment.said}
    return _fields(moment, MOMENT_FIELDS) | said


def _typed(record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise BadRecord(f"field {name!r} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _moment(row: Any) -> Moment:
    if not isinstance(row, dict):
        raise BadRecord("a moment must be an object")
    names = ("start_s", "end_s", "score")
    span = span_rows([[row.get(name) for name in names]], "moment", width=3)[0]
    parts = row.get("parts") or {}
    if not isinstance(parts, dict):
        raise BadRecord("parts of a moment must be an object")
    parts = {name: number_field(parts, name) for name in parts if parts[name] is not None}
    level, said = optional_text(row, "level") or "", optional_text(row, "said")
    return Moment(*span.tolist(), parts=parts, level=level, said=said)


def _cost(row: Any) -> Cost:
    if not isinstance(row, dict):
        raise BadRecord("cost must be an object")
    values = {name: number_field(row, name) for name in COST_FIELDS if name in row}
    seconds = values.pop("seconds", 0.0)
    return Cost(**{name: int(value) for name, value in values.items()}, seconds=seconds)


def _window(row: Any) -> WindowAnswer:
    if not isinstance(row, dict):
        raise BadRecord("a window must be an object")
    return WindowAnswer(
        index=int(number_field(row, "index")),
        start_s=number_field(row, "start_s"),
        end_s=number_field(row, "end_s"),
        answer=_typed(row, "answer", str),
        presence=None if row.get("presence") is None else number_field(row, "presence"),
        entropy=None if row.get("entropy") is None else number_field(row, "entropy"),
    )
