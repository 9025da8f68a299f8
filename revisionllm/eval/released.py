"""Released prediction logs, and the released metric scripts' arithmetic (`--convention released`).

A log line is `{"video_id", "task": "grounding", "query_id", "answer": [one text per window],
"info": {"iou", "scores"}}` (dense) or with `info.frames {"i": [from, to]}` (retrieval, in 25 s
segments). What the released scripts do with them, quirks included, is kept here and nowhere else:
IoU as logged (two decimals), `IoU > threshold`, the last window never kept, sums in log order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revisionllm.constants import NOT_PRESENT
from revisionllm.errors import UserError
from revisionllm.eval.jsonl import BadRecord, Problem, iter_json_lines, number_rows, text_field
from revisionllm.eval.metrics import IOU_THRESHOLDS, RECALL_RANKS
from revisionllm.eval.rankings import Query, Ranking
from revisionllm.grounding.answers import parse_released_span
from revisionllm.grounding.windows import released_film_span

SHARD_NAMES = (
    "predictions_streaming_{}.txt",
    "predictions_stream_{}.txt",
    "predictions_negative_{}.txt",
)
SINGLE_NAME = "predictions.txt"
RELEASED_FRAMES = 250  # frames per window
LAST_FRAME_ANSWER = "From 249 to 249."  # the released way of saying nothing, beside "Not Present"
SEGMENTS_TO_WINDOWS = 0.4  # 25 s segment stride / 62.5 s window stride


@dataclass(frozen=True)
class LogArithmetic:
    """What released logs do not say. Dense windows start every half window, segments each fifth."""

    window_s: float = 125.0
    frames_per_window: int = RELEASED_FRAMES


MAD_LOGS = LogArithmetic()


@dataclass(slots=True)
class LogRow:
    """One line of a released log. `frames` [n, 2]: retrieved segment ranges (retrieval logs)."""

    video_id: str
    query_id: str
    answers: list[str]
    ious: np.ndarray
    scores: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class Block:
    """One printed block of the released scripts."""

    buffer: int  # -1: without retrieval, 0: with
    share: float  # answers kept / windows
    num_logs: int
    metrics: dict[str, float]

    def lines(self, grounding_path: str) -> list[str]:
        """The block as the released scripts print it."""
        head = [
            f"buffer:  {self.buffer}",
            grounding_path,
            repr(self.share),
            "====================== Grounding ======================",
            f"Found {self.num_logs} logs",
        ]
        return head + [f"{name}: {value:.2f}" for name, value in self.metrics.items()]


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


def is_answer(text: str) -> bool:
    """How the released metric scripts tell a span from none (not by parsing it)."""
    return text not in (NOT_PRESENT, LAST_FRAME_ANSWER)


def is_logged_answer(text: str, frames_per_window: int = RELEASED_FRAMES) -> bool:
    """Which answers have an IoU and a score in the log: those that parse, last frame excepted."""
    span = parse_released_span(text)
    return span is not None and not (span.first == span.last == frames_per_window - 1)


def is_malformed(text: str) -> bool:
    """Whether an answer is neither a span nor "Not Present" (cut short, or something else)."""
    return text != NOT_PRESENT and parse_released_span(text) is None


def kept_windows(frames: np.ndarray, num_windows: int) -> set[int]:
    """Windows that the released scripts keep for retrieved segment ranges [n, 2]."""
    kept: set[int] = set()
    for first, last in frames.tolist():
        stop = min(int(SEGMENTS_TO_WINDOWS * last), num_windows - 1)
        kept.update(range(max(0, int(SEGMENTS_TO_WINDOWS * first)), stop))
    return kept


def combine(
    dense: Sequence[LogRow],
    long_100: Sequence[LogRow],
    long_33: Sequence[LogRow] | None,
    *,
    with_retrieval: bool,
) -> tuple[Block, list[str]]:
    """Filter the dense answers by retrieval, rank them and score them as the released scripts do.

    Args:
        long_33: None if there is no second retrieval.
        with_retrieval: False gives the chapters script's first block.

    Returns:
        the block, and one line for each thing on which the released scripts would have stopped.

    Raises:
        UserError: no query is in both logs.
    """
    retrieved = {row.query_id: row for row in long_100}
    retrieved_too = None if long_33 is None else {row.query_id: row for row in long_33}
    both = [row for row in dense if row.query_id in retrieved]
    num_windows = sum(len(row.answers) for row in both)
    if not num_windows:
        raise UserError("no query is in both the dense and the retrieval logs: nothing to score")
    notes = []
    if with_retrieval and retrieved_too is not None:
        lacking = [row.query_id for row in both if row.query_id not in retrieved_too]
        if lacking:
            notes.append(
                f"{len(lacking)} queries have no second retrieval: {', '.join(lacking[:5])}"
            )
    keep = _Keep(retrieved, retrieved_too, with_retrieval)
    chosen = [keep.positions(row, is_answer) for row in both]
    if any(_overruns(row, picked) for row, picked in zip(both, chosen, strict=True)):
        notes.append(
            "some answers are cut short and have no IoU in the log (the released script stops with "
            "an IndexError); they are left out"
        )
        chosen = [keep.positions(row, is_logged_answer) for row in both]
    num_kept = sum(
        len(r.answers) if p is None else len(p) for r, p in zip(both, chosen, strict=True)
    )
    ranked = [_ranked_ious(row, picked) for row, picked in zip(both, chosen, strict=True)]
    buffer = 0 if with_retrieval else -1
    return Block(buffer, num_kept / num_windows, len(both), released_metrics(ranked)), notes


@dataclass(frozen=True)
class _Keep:
    """The released filter: which of a query's logged answers are scored."""

    long_100: dict[str, LogRow]
    long_33: dict[str, LogRow] | None
    with_retrieval: bool

    def positions(self, dense: LogRow, counts_as_answer: Any) -> list[int] | None:
        """Positions in `dense.ious`; None: the whole unfiltered list."""
        if not self.with_retrieval:
            return None
        windows = [i for i, text in enumerate(dense.answers) if counts_as_answer(text)]
        first = self.long_100[dense.query_id]
        kept = kept_windows(first.frames, len(dense.answers)) if first.answers else set()
        if not kept.intersection(windows):
            return None
        second = (self.long_33 or {}).get(dense.query_id)
        if second is not None:
            kept |= kept_windows(second.frames, len(dense.answers))
        return [position for position, window in enumerate(windows) if window in kept]


def _overruns(row: LogRow, picked: list[int] | None) -> bool:
    return bool(picked) and picked[-1] >= min(len(row.ious), len(row.scores))


def _ranked_ious(row: LogRow, picked: list[int] | None) -> np.ndarray:
    """IoU of the kept answers, best score first; equal scores stay in film order."""
    count = min(len(row.ious), len(row.scores))
    ious, scores = row.ious[:count], row.scores[:count]
    if picked is not None:
        if count and scores.min() != scores.max():  # as released: it can round two scores to one
            scores = (scores - scores.min()) / (scores.max() - scores.min())
        picked = [position for position in picked if position < count]
        ious, scores = ious[picked], scores[picked]
    return ious[np.argsort(-scores, kind="stable")]


def released_metrics(ranked_ious: Sequence[np.ndarray]) -> dict[str, float]:
    """mIoU and recall with the released rounding: one addition per query, in log order."""
    count = len(ranked_ious)
    tops = [ious[0] for ious in ranked_ious if len(ious)]
    metrics = {"mIoU": _sum_in_order(tops) / count * 100}
    for threshold in IOU_THRESHOLDS:
        for rank in RECALL_RANKS:
            hits = np.array([(ious[:rank] > threshold).any() for ious in ranked_ious])
            metrics[f"R{rank}@{threshold}"] = _sum_in_order(hits / count * 100)
    return metrics


def _sum_in_order(values: Sequence[float] | np.ndarray) -> float:
    return float(np.cumsum(values)[-1]) if len(values) else 0.0  # np.sum adds in pairs


def log_ranking(
    row: LogRow, query: Query, *, window_s: float, frames_per_window: int
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
