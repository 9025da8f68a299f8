"""The released metric scripts' arithmetic (`--convention released`), quirks included.

What they do with released logs (`formats/released_log.py`) is kept here and nowhere else: IoU as
logged (two decimals), `IoU > threshold`, the last window never kept, sums in log order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revisionllm.constants import NOT_PRESENT
from revisionllm.errors import UserError
from revisionllm.formats.released_log import LogRow, is_logged_answer
from revisionllm.grounding.answers import parse_released_span
from revisionllm.metrics.recall import IOU_THRESHOLDS, RECALL_RANKS

LAST_FRAME_ANSWER = "From 249 to 249."  # the released way of saying nothing, beside "Not Present"
SEGMENTS_TO_WINDOWS = 0.4  # 25 s segment stride / 62.5 s window stride


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


def is_answer(text: str) -> bool:
    """How the released metric scripts tell a span from none (not by parsing it)."""
    return text not in (NOT_PRESENT, LAST_FRAME_ANSWER)


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
