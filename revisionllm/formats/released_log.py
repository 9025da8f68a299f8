"""Released prediction logs: `predictions_streaming_<shard>.txt`, one JSON object per line.

A line is `{"video_id", "task": "grounding", "query_id", "answer": [one text per window],
"info": {"iou", "scores"}}` (dense) or with `info.frames {"i": [from, to]}` (retrieval, in 25 s
segments). They hold no seconds: who reads them says how long their windows are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.formats.log_windows import RELEASED_FRAMES
from revisionllm.grounding.answers import parse_released_span
from revisionllm.grounding.released import released_film_span
from revisionllm.records.jsonl import BadRecord, Problem, iter_json_lines, number_rows, text_field
from revisionllm.records.rankings import LabelledQuery, Ranking

SHARD_NAMES = (
    "predictions_streaming_{}.txt",
    "predictions_stream_{}.txt",
    "predictions_negative_{}.txt",
)
SINGLE_NAME = "predictions.txt"


@dataclass(slots=True)
class LogRow:
    """One line of a released log. `frames` [n, 2]: retrieved segment ranges (retrieval logs)."""

    video_id: str
    query_id: str
    answers: list[str]
    ious: np.ndarray
    scores: np.ndarray
    frames: np.ndarray


def shard_paths(folder: Path, num_shards: int | None) -> tuple[list[Path], list[Problem]]:
    """The log files of a folder in the order in which they are read.

    Args:
        num_shards: None: as many as there are; 0: the single file `predictions.txt`.

    Returns:
        the files, and a `Problem` for each shard that should be there and is not.
    """
    if num_shards == 0:
        single = folder / SINGLE_NAME
        return ([single], []) if single.is_file() else ([], [Problem(str(single), 0, "missing")])
    numbers = [
        int(n) for p in folder.glob("predictions_*_*.txt") if (n := _shard_number(p)) is not None
    ]
    if num_shards is None:
        num_shards = max(numbers, default=-1) + 1
    paths: list[Path] = []
    problems: list[Problem] = []
    for shard in range(num_shards):
        here = [path for name in SHARD_NAMES if (path := folder / name.format(shard)).is_file()]
        paths += here
        if not here:
            problems.append(Problem(str(folder / SHARD_NAMES[0].format(shard)), 0, "missing shard"))
    left_out = sorted({number for number in numbers if number >= num_shards})
    if left_out:
        what = f"shards {', '.join(map(str, left_out))} are there but were not asked for"
        problems.append(Problem(str(folder), 0, what))
    return paths, problems


def _shard_number(path: Path) -> str | None:
    match = re.fullmatch(r"predictions_(?:streaming|stream|negative)_(\d{1,6})\.txt", path.name)
    return match.group(1) if match else None


def is_released_folder(folder: Path) -> bool:
    """Whether a folder holds released logs."""
    if (folder / SINGLE_NAME).is_file():
        return True
    return any(_shard_number(path) is not None for path in folder.glob("predictions_*_*.txt"))


def read_logs(paths: Sequence[Path]) -> tuple[list[LogRow], list[Problem]]:
    """Read log files in order; each line that cannot be used is a `Problem`."""
    rows: list[LogRow] = []
    problems: list[Problem] = []
    for path in paths:
        for line, record in iter_json_lines(path):
            if isinstance(record, Problem):
                problems.append(record)
                continue
            try:
                rows.append(_row(record))
            except BadRecord as error:
                problems.append(Problem(str(path), line, str(error)))
    return rows, problems


def _row(record: Any) -> LogRow:
    query_id = text_field(record, "query_id")
    answers, info = record.get("answer"), record.get("info")
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
        raise BadRecord("field 'answer' must be a list of texts")
    if not isinstance(info, dict):
        raise BadRecord("field 'info' must be an object")
    frames = info.get("frames", {})
    if not isinstance(frames, dict):
        raise BadRecord("field 'frames' must be an object")
    ious, scores = info.get("iou", []), info.get("scores", [])
    if not isinstance(ious, list):  # one answer for the whole film, as in VTimeLLM's logs
        ious, scores = [ious], [0.0]
    return LogRow(
        video_id=text_field(record, "video_id"),
        query_id=query_id,
        answers=answers,
        ious=_numbers(ious, "iou"),
        scores=_numbers(scores, "scores"),
        frames=number_rows(list(frames.values()), 2, "frames"),
    )


def _numbers(values: Any, what: str) -> np.ndarray:
    if not isinstance(values, list):
        raise BadRecord(f"{what} must be a list")
    return number_rows([[value] for value in values], 1, what)[:, 0]


def is_logged_answer(text: str, frames_per_window: int = RELEASED_FRAMES) -> bool:
    """Which answers have an IoU and a score in the log: those that parse, last frame excepted."""
    span = parse_released_span(text)
    return span is not None and not (span.first == span.last == frames_per_window - 1)


def log_ranking(
    row: LogRow, query: LabelledQuery, *, window_s: float, frames_per_window: int
) -> tuple[Ranking, int]:
    """A dense log row as spans in seconds, best first, and how many answers could not be used.

    Raises:
        BadRecord: the film's length is not known, or scores and answers do not fit together.
    """
    if query.duration_s is None:
        raise BadRecord(f"query {query.qid}: the film's length is not known")
    windows = [i for i, text in enumerate(row.answers) if is_logged_answer(text, frames_per_window)]
    if len(windows) != len(row.scores):
        raise BadRecord(f"{len(windows)} answers but {len(row.scores)} scores in the log")
    num_film_frames = int(query.duration_s * frames_per_window / window_s)
    if num_film_frames < 1:
        raise BadRecord(f"query {query.qid}: the film is shorter than a frame")
    spans, scores, used = [], [], []
    for position in np.argsort(-row.scores, kind="stable").tolist():
        window = windows[position]
        first, last = parse_released_span(row.answers[window])
        if last >= first:
            shares = released_film_span(
                first,
                last,
                window,
                frames_per_window=frames_per_window,
                num_film_frames=num_film_frames,
            )
            spans.append([share * query.duration_s for share in shares])
            scores.append(row.scores[position])
            used.append(window)
    ranking = Ranking(
        qid=row.query_id,
        spans=np.array(spans).reshape(-1, 2),
        scores=np.array(scores),
        vid=row.video_id,
        query=query.query,
        duration_s=query.duration_s,
        gt=query.spans,
        extra={"window_indices": np.array(used, int)},
    )
    return ranking, len(windows) - len(spans)
