"""Figures of the reports, as PNG bytes (matplotlib, drawn without a display).

Recall curves, reliability diagrams (the paper's supplement, table S1) and the paper's qualitative
figure: frames around the moment, true and predicted bars with their seconds.
https://arxiv.org/abs/2411.14901
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from revisionllm.files import MADE_BY
from revisionllm.metrics.recall import hit_table

TRUTH_COLOUR = "#2f7d4f"
RUN_COLOURS = ("#1f5fa8", "#c8553d", "#7a4fa3", "#b8860b", "#4d7c8a")
CURVE_THRESHOLDS = np.linspace(0.05, 0.95, 19)
INK, GRID = "#333333", "#dddddd"


def run_colour(index: int) -> str:
    """The colour of the `index`-th run, the same in every figure and table."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def recall_curves(tables: Mapping[str, np.ndarray], ranks: Sequence[int] = (1, 5)) -> bytes:
    """Recall over the IoU threshold, one panel per rank.

    Args:
        tables: run name -> IoU [Q, K].
    """
    figure, axes = _axes(len(ranks), width=3.6, height=2.9)
    for axis, rank in zip(axes, ranks, strict=True):
        for index, (name, ious) in enumerate(tables.items()):
            hits = hit_table(ious, ranks=(rank,), thresholds=CURVE_THRESHOLDS.tolist())
            recall = 100 * hits[:, :, 0].mean(axis=0)
            axis.plot(CURVE_THRESHOLDS, recall, color=run_colour(index), label=name, linewidth=1.8)
        axis.set(xlabel="IoU threshold", ylabel=f"R@{rank} (%)", xlim=(0, 1), ylim=(0, 100))
    _legend(axes[0])
    return _png(figure)


def reliability(calibrations: Mapping[str, Mapping[str, Any]], threshold: str) -> bytes:
    """Share of correct answers over stated confidence, one line per run.

    Args:
        calibrations: run name -> `report["calibration"]`.
        threshold: the IoU from which an answer is correct, as in the report's keys.
    """
    figure, (axis, counts) = _axes(2, width=3.6, height=2.9)
    axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
    width = 0.08 / max(1, len(calibrations))
    for index, (name, by_threshold) in enumerate(calibrations.items()):
        bins = by_threshold[threshold]
        filled = [i for i, count in enumerate(bins["bin_counts"]) if count]
        confidence = [bins["bin_confidence"][i] for i in filled]
        accuracy = [bins["bin_accuracy"][i] for i in filled]
        label = f"{name} (ECE {bins['ece']:.3f})"
        axis.plot(confidence, accuracy, "o-", color=run_colour(index), label=label, markersize=4)
        edges = np.linspace(0, 1, len(bins["bin_counts"]), endpoint=False)
        counts.bar(
            edges + 0.05 + (index - (len(calibrations) - 1) / 2) * width,
            bins["bin_counts"],
            width=width,
            color=run_colour(index),
        )
    axis.set(xlabel="confidence", ylabel=f"share with IoU >= {threshold}", xlim=(0, 1), ylim=(0, 1))
    _legend(axis, loc="upper left")
    counts.set(xlabel="confidence", ylabel="queries", xlim=(0, 1))
    counts.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def qualitative(
    title: str,
    duration_s: float | None,
    bars: Sequence[tuple[str, str, np.ndarray]],
    frames: Sequence[tuple[float, np.ndarray]] = (),
) -> bytes:
    """The paper's qualitative figure for one query.

    Args:
        title: the query.
        duration_s: the film's length; None leaves the whole-film axis at the last bar.
        bars: (label, colour, spans [n, 2]), the truth first.
        frames: (seconds, uint8 [H, W, 3]) from left to right; none where the film is not at hand.
    """
    from matplotlib.figure import Figure

    rows = [1.15] * bool(frames) + [0.34 * len(bars) + 0.35, 0.16 * len(bars) + 0.25]
    figure = Figure(figsize=(9.5, sum(rows) + 0.75), layout="constrained")
    grid = figure.add_gridspec(len(rows), 1, height_ratios=rows)
    if frames:
        _draw_frames(figure, grid[0], frames)
    _draw_near(figure.add_subplot(grid[-2]), bars, near_range(bars, duration_s))
    _draw_film(figure.add_subplot(grid[-1]), bars, duration_s)
    title = textwrap.fill(textwrap.shorten(title, 200, placeholder=" ..."), 100)
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    return _png(figure)


def near_range(
    bars: Sequence[tuple[str, str, np.ndarray]], duration_s: float | None
) -> tuple[float, float]:
    """The seconds around the first true span (the first bar) that the close-up shows."""
    truth = next(spans for _, _, spans in bars if len(spans))
    start_s, end_s = float(truth[0, 0]), float(truth[0, 1])
    margin_s = max(10.0, 2 * (end_s - start_s))
    high_s = end_s + margin_s if duration_s is None else min(end_s + margin_s, duration_s)
    return max(0.0, start_s - margin_s), max(high_s, end_s)


def _draw_frames(figure: Any, place: Any, frames: Sequence[tuple[float, np.ndarray]]) -> None:
    strip = place.subgridspec(1, len(frames), wspace=0.03)
    for column, (time_s, rgb) in enumerate(frames):
        axis = figure.add_subplot(strip[column])
        axis.imshow(rgb)
        axis.set_title(f"{time_s:.1f} s", fontsize=7, color=INK, pad=2)
        axis.axis("off")


def _draw_near(
    axis: Any, bars: Sequence[tuple[str, str, np.ndarray]], range_s: tuple[float, float]
) -> None:
    """Close-up: one row per run, each bar with its seconds."""
    low_s, high_s = range_s
    for row, (_, colour, spans) in enumerate(bars):
        shown = spans[(spans[:, 1] >= low_s) & (spans[:, 0] <= high_s)] if len(spans) else spans
        for span in shown.tolist():
            _draw_bar(axis, row, colour, span, (low_s, high_s))
        if not len(shown):
            away = f"{seconds_text(spans[0])}, outside" if len(spans) else "no moment"
            axis.text(low_s, row, f"  {away}", va="center", fontsize=7, color=colour)
    axis.set(xlim=(low_s, high_s), ylim=(len(bars) - 0.4, -0.6))
    labels = [label for label, _, _ in bars]
    axis.set_yticks(range(len(bars)), labels, fontsize=8, parse_math=False)
    axis.set_xlabel("seconds", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    _quiet(axis)


def _draw_bar(
    axis: Any, row: int, colour: str, span: Sequence[float], range_s: tuple[float, float]
) -> None:
    low_s, high_s = range_s
    left, right = max(span[0], low_s), min(span[1], high_s)
    width = max(right - left, (high_s - low_s) / 400)  # an event of no length is still seen
    axis.barh(row, width, left=left, color=colour, height=0.6)
    text = seconds_text(span)
    if width > 0.13 * (high_s - low_s):  # wide enough to be written on
        middle = (left + right) / 2
        axis.text(middle, row, text, ha="center", va="center", fontsize=7, color="white")
    else:
        axis.text(right, row, f"  {text}", va="center", fontsize=7, color=colour)


def seconds_text(span: Sequence[float]) -> str:
    """A span as the figures write it."""
    return f"{span[0]:.1f} - {span[1]:.1f} s"


def _draw_film(
    axis: Any, bars: Sequence[tuple[str, str, np.ndarray]], duration_s: float | None
) -> None:
    """The whole film in one strip, a tick where each bar lies."""
    ends = [float(spans[:, 1].max()) for _, _, spans in bars if len(spans)]
    length_s = max([duration_s or 0.0, *ends])
    for row, (_, colour, spans) in enumerate(bars):
        for start_s, end_s in spans:
            width = max(end_s - start_s, length_s / 300)
            axis.barh(row, width, left=start_s, color=colour, height=0.8)
    axis.set(xlim=(0, length_s), ylim=(len(bars) - 0.5, -0.5))
    axis.set_yticks([(len(bars) - 1) / 2], ["whole film"], fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    _quiet(axis)


def _axes(count: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
        _quiet(axis)
    return figure, axes


def _legend(axis: Any, **place: Any) -> None:
    for text in axis.legend(frameon=False, fontsize=8, **place).get_texts():
        text.set_parse_math(False)  # a "$" in a run's name is a dollar


def _quiet(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": MADE_BY})
    return buffer.getvalue()
