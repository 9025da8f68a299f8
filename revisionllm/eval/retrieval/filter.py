"""Dense answers filtered by retrieval, by the field convention (docs/evaluation.md).

A dense answer counts if its window shares time with a segment that long-100 or long-33 retrieved;
if long-100 alone keeps nothing of a query, its whole unfiltered list counts (a counted fallback).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError
from revisionllm.eval.made_with import stage_folder
from revisionllm.formats.log_windows import MAD_LOGS, LogArithmetic
from revisionllm.formats.released_log import (
    LogRow,
    is_logged_answer,
    is_released_folder,
    log_ranking,
    read_logs,
    shard_paths,
)
from revisionllm.metrics.recall import EMPTY_RANK, RECALL_RANKS, mean_iou, recall_at_k, span_iou
from revisionllm.metrics.scoring import Accounting
from revisionllm.records.jsonl import BadRecord, Problem
from revisionllm.records.rankings import NO_SPANS, LabelledQuery, Ranking, read_own_rankings


@dataclass
class DenseAnswers:
    """The dense answers to one query, best first."""

    qid: str
    ious: np.ndarray  # [n], with the true span each fits best
    spans: np.ndarray  # [n, 2]; of released logs: the window's
    windows: np.ndarray  # [W, 2]: all windows of the film that were asked
    inside: np.ndarray  # bool [n, W]: which windows an answer may come from
    failed: bool = False


@dataclass
class StageAnswers:
    """What one stage folder holds: our rankings or released log rows, never both."""

    rankings: list[Ranking] = field(default_factory=list)
    rows: list[LogRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folder: Path = Path()
    logs: LogArithmetic = MAD_LOGS


def read_stage(
    path: str | Path,
    stage: str,
    made_by: str,
    *,
    num_shards: int | None,
    logs: LogArithmetic = MAD_LOGS,
    data_path: str | None = None,
) -> StageAnswers:
    """Read a stage's predictions, whichever kind they are.

    Args:
        path: a run folder, a folder of predictions (ours or released), or one of our files.
        stage: dense, long_100 or long_33; where a run folder keeps them.
        made_by: the command that makes them, for the error message.
        num_shards: how many shards there should be; None: as the files say.
        data_path: annotations, to choose among the predictions of a run folder.

    Raises:
        UserError: there are no predictions.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".txt":
        rows, problems = read_logs([path])
        return StageAnswers([], rows, problems, path.parent, logs)
    if path.is_file():
        rankings, problems = read_own_rankings(path)
        return StageAnswers(rankings, [], problems, path.parent)
    for folder in (stage_folder(path, stage, data_path and [data_path]), path):
        files, problems = own_files(folder, num_shards)
        if files:
            found = StageAnswers(problems=problems, folder=folder)
            for file in files:
                rankings, bad_lines = read_own_rankings(file)
                found.rankings += rankings
                found.problems += bad_lines
            return found
        if is_released_folder(folder):
            files, problems = shard_paths(folder, num_shards)
            rows, bad_lines = read_logs(files)
            return StageAnswers([], rows, problems + bad_lines, folder, logs)
    raise UserError(f"no predictions of stage {stage} under {path}; make them with: {made_by}")


def own_files(folder: Path, num_shards: int | None) -> tuple[list[Path], list[Problem]]:
    """Our merged file, or else our shards; a `Problem` for each shard that is missing."""
    merged = folder / "predictions.jsonl"
    if merged.is_file():
        return [merged], []
    shards = sorted(folder.glob("shard-*-of-*.jsonl"))
    totals = {path.stem.rsplit("-", 1)[1] for path in shards}
    if len(totals) > 1:
        raise UserError(f"{folder} mixes shards of several runs (of {', '.join(sorted(totals))})")
    if not shards:
        return [], []
    total = num_shards or (int(next(iter(totals))) if next(iter(totals)).isdigit() else len(shards))
    wanted = [folder / f"shard-{index}-of-{total}.jsonl" for index in range(total)]
    return shards, [Problem(str(p), 0, "missing shard") for p in wanted if p not in shards]


def dense_answers(
    stage: StageAnswers, truth: Mapping[str, LabelledQuery] | None, accounting: Accounting
) -> tuple[dict[str, DenseAnswers], list[str]]:
    """The dense answers of each query whose event is in its film, and the ids of absent events.

    Raises:
        UserError: a query has no ground truth.
    """
    answers: dict[str, DenseAnswers] = {}
    absent: list[str] = []
    items = stage.rankings or stage.rows
    for item in items:
        qid = item.qid if isinstance(item, Ranking) else item.query_id
        if truth is not None and qid not in truth:
            accounting.unknown.append(qid)
        elif qid in answers:
            accounting.duplicates.append(qid)
        else:
            query = None if truth is None else truth[qid]
            if isinstance(item, LogRow):
                made = _from_log(item, query, stage.logs, accounting)
            else:
                made = _from_ranking(item, query, accounting)
            if made is None:
                absent.append(qid)
            else:
                answers[qid] = made
    return answers, absent


def _from_ranking(
    item: Ranking, query: LabelledQuery | None, accounting: Accounting
) -> DenseAnswers | None:
    """Our record, None if its event is absent."""
    gt = item.gt if query is None else query.spans
    if gt is None:
        raise UserError(f"query {item.qid} carries no ground truth; give --data_path ANNOTATIONS")
    if not len(gt):
        return None
    if item.failed:
        accounting.failed.append(item.qid)
    if item.sort():
        accounting.reordered.append(item.qid)
    spans = NO_SPANS if item.failed else item.spans
    windows = item.spans if item.windows is None else item.windows  # else answers stand for them
    starts_in = windows[None, :, 0] <= spans[:, None, 0]
    inside = starts_in & (windows[None, :, 1] >= spans[:, None, 1])
    ious = span_iou(spans[:, None], gt[None]).max(axis=1)
    return DenseAnswers(item.qid, ious, spans, windows, inside, item.failed)


def _from_log(
    row: LogRow, query: LabelledQuery | None, logs: LogArithmetic, accounting: Accounting
) -> DenseAnswers | None:
    """A released row. With annotations: unrounded IoU from the answers; without: IoU as logged."""
    if query is not None and not len(query.spans):
        return None
    starts_s = np.arange(len(row.answers)) * logs.window_s / 2
    windows = np.stack([starts_s, starts_s + logs.window_s], axis=-1)
    frames = logs.frames_per_window
    answered = [index for index, text in enumerate(row.answers) if is_logged_answer(text, frames)]
    if not len(answered) == len(row.ious) == len(row.scores):
        accounting.notes.append(
            f"query {row.query_id}: {len(answered)} answers, {len(row.ious)} IoU and "
            f"{len(row.scores)} scores in the log; counted as failed"
        )
        accounting.failed.append(row.query_id)
        nothing = np.zeros((0, len(windows)), bool)
        return DenseAnswers(row.query_id, np.zeros(0), NO_SPANS, windows, nothing, failed=True)
    order = np.argsort(-row.scores, kind="stable")
    ious, indices = row.ious[order], np.array(answered, int)[order]
    if query is not None:
        ious, indices = _unrounded(row, query, logs, accounting)
    inside = indices[:, None] == np.arange(len(windows))
    return DenseAnswers(row.query_id, ious, windows[indices], windows, inside)


def _unrounded(
    row: LogRow, query: LabelledQuery, logs: LogArithmetic, accounting: Accounting
) -> tuple[np.ndarray, np.ndarray]:
    try:
        ranking, num_reversed = log_ranking(
            row, query, window_s=logs.window_s, frames_per_window=logs.frames_per_window
        )
    except BadRecord as error:
        raise UserError(f"cannot place the answers in the film: {error}") from error
    if num_reversed:
        accounting.notes.append(
            f"query {row.query_id}: {num_reversed} answers end before they start; left out"
        )
    ious = span_iou(ranking.spans[:, None], query.spans[None]).max(axis=1, initial=0.0)
    return ious, ranking.extra["window_indices"]


def retrieved_ranges(stage: StageAnswers, accounting: Accounting) -> dict[str, np.ndarray | None]:
    """Seconds [n, 2] that a retrieval stage kept, per query id; None: the query failed."""
    ranges: dict[str, np.ndarray | None] = {}
    for ranking in stage.rankings:
        if ranking.qid in ranges:
            accounting.duplicates.append(ranking.qid)
        else:
            ranges[ranking.qid] = None if ranking.failed else ranking.spans
    for row in stage.rows:
        if row.query_id in ranges:
            accounting.duplicates.append(row.query_id)
        else:
            first_s = row.frames * stage.logs.window_s / 5
            ranges[row.query_id] = first_s + np.array([0.0, stage.logs.window_s])
    return ranges


def overlaps_any(windows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Whether each window [W, 2] shares time with one of the ranges [n, 2]; bool [W]."""
    starts = np.maximum(windows[:, None, 0], ranges[None, :, 0])
    ends = np.minimum(windows[:, None, 1], ranges[None, :, 1])
    return (ends > starts).any(axis=1)


@dataclass
class FieldResult:
    """One block of the field convention."""

    metrics: dict[str, float]
    share: float  # windows kept / windows
    num_queries: int
    num_fallbacks: int  # queries whose unfiltered list was scored


def filter_and_score(
    answers: Mapping[str, DenseAnswers],
    qids: Sequence[str],
    retrieved: Sequence[Mapping[str, np.ndarray | None]],
) -> FieldResult:
    """Filter each query's dense answers by the retrieved ranges, rank, score.

    Args:
        qids: every query that counts; one without answers is a miss.
        retrieved: long-100 first, then long-33 if there is one; empty: no filter.
    """
    table = np.full((len(qids), max(RECALL_RANKS)), EMPTY_RANK)
    kept_count = window_count = fallbacks = 0
    for row, qid in enumerate(qids):
        answer = answers.get(qid)
        not_retrieved = bool(retrieved) and retrieved[0].get(qid) is None  # missing or failed
        if answer is None or answer.failed or not_retrieved:
            continue
        ranges = [spans for r in retrieved if (spans := r.get(qid)) is not None]
        kept, windows_kept, fell_back = _filter(answer, ranges)
        ious = answer.ious[kept][: table.shape[1]]
        table[row, : len(ious)] = ious
        kept_count += windows_kept
        window_count += len(answer.windows)
        fallbacks += fell_back
    metrics = {"mIoU": mean_iou(table)} | recall_at_k(table)
    share = kept_count / window_count if window_count else 0.0
    return FieldResult(metrics, share, len(qids), fallbacks)


def _filter(answer: DenseAnswers, ranges: list[np.ndarray]) -> tuple[np.ndarray, int, bool]:
    """Mask of the answers kept, number of windows kept, whether the filter fell back."""
    everything = np.ones(len(answer.ious), bool)
    if not ranges:
        return everything, len(answer.windows), False
    by_first, _ = _kept(answer, ranges[0])
    if not by_first.any():
        return everything, len(answer.windows), True
    by_any, windows_kept = _kept(answer, np.concatenate(ranges))
    return by_any, windows_kept, False


def _kept(answer: DenseAnswers, ranges: np.ndarray) -> tuple[np.ndarray, int]:
    """Mask of the answers whose window is retrieved (their own seconds, where none is known)."""
    windows_kept = overlaps_any(answer.windows, ranges)
    by_window = (answer.inside & windows_kept).any(axis=1)
    homeless = ~answer.inside.any(axis=1)
    return by_window | (homeless & overlaps_any(answer.spans, ranges)), int(windows_kept.sum())
