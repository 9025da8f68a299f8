"""What a view says about one prediction, in words: the page and the PNG must say the same.

Scores are confidences in 0..1 (calibrated). Released logs hold other scales (summed cosines around
10): these are shown as they are, and no confidence of absence is derived from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.metrics.recall import span_iou
from revisionllm.records.clock import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from revisionllm.records.predictions import Prediction


def check_film(duration_s: float, predictions: Sequence[Prediction]) -> None:
    """Refuse what cannot be drawn as one film.

    Raises:
        ValueError: the duration is not a positive number, the predictions are of several films, or
            one says "found" and names no moment.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be a positive number of seconds, not {duration_s}")
    films = sorted({prediction.vid for prediction in predictions})
    if len(films) > 1:
        raise ValueError(f"a view shows one film, but the predictions are of {films}")
    empty = [p.qid for p in predictions if p.status == "ok" and p.found and not p.moments]
    if empty:
        raise ValueError(f"found, but without a moment: queries {empty} of film {films[0]}")


@dataclass(frozen=True)
class Verdict:
    """The answer to one sentence, for a badge and for a line of text.

    Attributes:
        kind: ``found``, ``absent`` or ``failed``; names the CSS class and the colour.
        text: a few words, with the confidence where there is one.
        short: the same for a narrow column.
        truth: what the annotation says about the answer; empty when the film is not annotated.
        right: whether it agrees with the annotation (found: IoU of the best moment at least 0.5);
            None when the film is not annotated.
    """

    kind: str
    text: str
    short: str
    truth: str
    right: bool | None


def verdict(prediction: Prediction) -> Verdict:
    """Sum up one prediction: found, not present or failed, and how this compares with the truth."""
    if prediction.status != "ok":
        reason = one_line(prediction.reason or "no reason recorded")
        return Verdict("failed", f"failed: {reason}", "failed", "", None)
    if not prediction.found:
        return Verdict("absent", *_absent_texts(prediction), *_truth_of_absent(prediction))
    best = prediction.moments[0]
    text = f"{span_text(best.start_s, best.end_s)}, score {best.score:.2f}"
    return Verdict("found", text, clock(best.start_s), *_truth_of_found(prediction))


def _absent_texts(prediction: Prediction) -> tuple[str, str]:
    """Long and short; the confidence of absence is what the best candidate's score leaves to 1."""
    if not prediction.moments:
        return "not present, no candidate", "not present"
    best_score = prediction.moments[0].score
    if not 0.0 <= best_score <= 1.0:
        return f"not present, best candidate scores {best_score:.2f}", "not present"
    confidence = 1.0 - best_score
    return f"not present, confidence {confidence:.2f}", f"not present {confidence:.2f}"


def _truth_of_absent(prediction: Prediction) -> tuple[str, bool | None]:
    if prediction.gt is None:
        return "", None
    if prediction.gt:
        return "missed: it happens at " + spans_text(prediction.gt), False
    return "right: it never happens", True


def _truth_of_found(prediction: Prediction) -> tuple[str, bool | None]:
    if prediction.gt is None:
        return "", None
    if not prediction.gt:
        return "false alarm: it never happens", False
    iou = best_iou(prediction)
    return f"true {spans_text(prediction.gt)}, IoU {iou:.2f}", iou >= 0.5


def best_iou(prediction: Prediction) -> float:
    """IoU, 0..1, of the first moment with the true span that it fits best."""
    best = prediction.moments[0]
    return float(span_iou(np.array([best.start_s, best.end_s]), np.array(prediction.gt)).max())


def span_text(start_s: float, end_s: float) -> str:
    """Write a span with tenths of seconds and an en dash between."""
    return f"{clock(start_s, 1)} \N{EN DASH} {clock(end_s, 1)}"


def spans_text(spans: Sequence[Sequence[float]]) -> str:
    """Write several spans, with commas."""
    return ", ".join(span_text(start_s, end_s) for start_s, end_s in spans)


def cost_text(prediction: Prediction, num_windows: int | None) -> str:
    """Write what the answer cost; `num_windows`: how many dense windows the film has, if known."""
    cost = prediction.cost
    of_all = f" of {num_windows}" if num_windows is not None else ""
    parts = [f"{cost.dense_windows}{of_all} windows visited"]
    if cost.segments:
        parts.append(f"{cost.segments} segments scored")
    parts += [f"{cost.llm_tokens:,} LLM tokens", f"{cost.seconds:.1f} s"]
    return ", ".join(parts)


def sentence(prediction: Prediction) -> str:
    """The question on one line; an empty one is named, so that its row has something to click."""
    return one_line(prediction.query) or "(empty sentence)"


def one_line(text: str) -> str:
    """Put a text on one line: runs of white space and control characters become one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shade(score: float, top_score: float) -> float:
    """Strength of a mark, 0..1: the score, or its part of the best one where scores exceed 1."""
    return min(1.0, max(0.0, score / max(1.0, top_score)))


def searched_spans(prediction: Prediction, duration_s: float) -> list[tuple[float, float]]:
    """Merge the windows the search visited into disjoint spans in seconds, in film order.

    Windows that reach past the film's end (a film shorter than a window) are cut there.
    """
    merged: list[tuple[float, float]] = []
    for window in sorted(prediction.windows or (), key=lambda w: (w.start_s, w.end_s)):
        end_s = min(window.end_s, duration_s)
        if merged and window.start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((window.start_s, end_s))
    return merged
