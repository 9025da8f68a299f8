"""A PNG of one film's predictions: a row per sentence, over the whole film and zoomed in.

An event of 4 s is a thousandth of an hour, thinner than a pixel: on the left, where the whole film
is shown, moments are markers, not bars; on the right each row is drawn to scale around its answer.

    write_timeline("out/timeline.png", duration_s=3600.0, predictions=found)
"""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from revisionllm.files import MADE_BY, write_bytes
from revisionllm.records.clock import clock
from revisionllm.viewer import facts
from revisionllm.viewer.axis import ticks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from revisionllm.records.predictions import Prediction

FOUND, TRUTH, SEARCHED, LANE = "#1f62d6", "#c2570c", "#d3dce5", "#f2f4f7"
INK, SOFT, GOOD, BAD = "#17202b", "#5a6675", "#157347", "#b42318"
VERDICT_COLOURS = {"found": INK, "absent": SOFT, "failed": BAD}
LABEL_CHARACTERS = 40  # a line of the sentence; two lines are shown
ROW_INCHES = 0.62
DOTS_PER_INCH = 150
MAX_ROWS = 200  # a taller picture takes minutes and gigabytes, and no viewer shows it
_FAINTEST = 0.35  # opacity of a marker with score 0


def write_timeline(
    path: str | Path,
    *,
    duration_s: float,
    predictions: Sequence[Prediction],
    title: str = "",
    num_windows: int | None = None,
) -> None:
    """Draw the predictions of one film; the same input and matplotlib give the same bytes.

    Left: markers of all moments (darker: higher score; hollow: sentence judged not present), true
    spans below them, visited windows shaded where a prediction carries them. Right: the best moment
    and the true span in seconds, with the verdict in words.

    Args:
        path: the PNG file.
        duration_s: length of the film in seconds, > 0.
        predictions: at least one, drawn top to bottom; of more than `MAX_ROWS` the first, which the
            heading says.
        title: heading; empty for none.
        num_windows: how many dense windows cover the film, for "n of N windows".

    Raises:
        ValueError: no predictions, or see `facts.check_film`.
        UserError: the file cannot be written.
    """
    if not predictions:
        raise ValueError("a timeline needs at least one prediction")
    facts.check_film(duration_s, predictions)
    if len(predictions) > MAX_ROWS:
        title = f"{title} (the first {MAX_ROWS} of {len(predictions)} sentences)".strip()
        predictions = predictions[:MAX_ROWS]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, film_axes, zoom_axes = _layout(len(predictions), title)
    half_width_s = _zoom_half_width_s(predictions)
    for row, prediction in enumerate(predictions):
        _draw_film_row(film_axes, row, prediction, duration_s)
        _draw_zoom_row(zoom_axes, row, prediction, half_width_s, num_windows)
    _finish_film_axes(film_axes, predictions, duration_s)
    _finish_zoom_axes(zoom_axes, half_width_s)
    _add_legend(figure, predictions)
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": MADE_BY})
    write_bytes(path, png.getvalue())


def _layout(num_rows: int, title: str) -> tuple[Figure, Axes, Axes]:
    """A figure as tall as its rows: sentences and film on the left, zoom on the right."""
    from matplotlib.figure import Figure

    top_inches, bottom_inches = 0.5, 0.65
    height = top_inches + num_rows * ROW_INCHES + bottom_inches
    figure = Figure(figsize=(14, height), facecolor="white")
    bottom, tall = bottom_inches / height, num_rows * ROW_INCHES / height
    film_axes = figure.add_axes((0.225, bottom, 0.45, tall))
    zoom_axes = figure.add_axes((0.695, bottom, 0.285, tall))
    for axes in (film_axes, zoom_axes):
        axes.set_ylim(num_rows - 0.5, -0.5)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=SOFT, labelsize=8.5, length=3)
    if title:
        _text(figure, 0.012, 1 - 0.22 / height, facts.one_line(title), fontsize=12, weight="bold")
    return figure, film_axes, zoom_axes


def _text(target: Figure | Axes, x: float, y: float, text: str, **style: object) -> None:
    """Write text as it is: `$` in a sentence is money, not mathematics."""
    target.text(x, y, text, parse_math=False, **{"color": INK, "va": "center", **style})


def _zoom_half_width_s(predictions: Sequence[Prediction]) -> float:
    """Seconds to each side of a row's middle: the same for all rows, so that lengths compare."""
    lengths_s = [p.moments[0].end_s - p.moments[0].start_s for p in predictions if p.moments]
    lengths_s += [end_s - start_s for p in predictions for start_s, end_s in p.gt or ()]
    return max(10.0, 0.75 * max(lengths_s, default=0.0))


def _draw_film_row(axes: Axes, row: int, prediction: Prediction, duration_s: float) -> None:
    axes.barh(row, duration_s, height=0.84, color=LANE, zorder=0)
    for start_s, end_s in facts.searched_spans(prediction, duration_s):
        axes.barh(row, end_s - start_s, left=start_s, height=0.84, color=SEARCHED, zorder=1)
    top_score = max((moment.score for moment in prediction.moments), default=1.0)
    for rank, moment in enumerate(prediction.moments):
        strength = _FAINTEST + (1 - _FAINTEST) * facts.shade(moment.score, top_score)
        axes.plot(
            (moment.start_s + moment.end_s) / 2,
            row - 0.1,
            marker="v",
            markersize=6 if rank else 9.5,
            color=FOUND,
            alpha=strength,
            fillstyle="full" if prediction.found else "none",
            markeredgewidth=0 if prediction.found else 1.2,
            zorder=3 + (not rank),
            clip_on=False,
        )
    for start_s, end_s in prediction.gt or ():
        axes.plot((start_s + end_s) / 2, row + 0.27, "^", color=TRUTH, markersize=6.5,
                  markeredgewidth=0, zorder=3, clip_on=False)  # fmt: skip


def _draw_zoom_row(
    axes: Axes, row: int, prediction: Prediction, half_width_s: float, num_windows: int | None
) -> None:
    """Best moment and true spans to scale, relative to the row's middle second."""
    axes.barh(row, 2 * half_width_s, left=-half_width_s, height=0.84, color=LANE, zorder=0)
    _write_verdict(axes, row, prediction, half_width_s, num_windows)
    middle_s = _zoom_middle_s(prediction)
    if middle_s is None:
        return
    if prediction.moments:
        best = prediction.moments[0]
        fill = {"color": FOUND} if prediction.found else {"fill": False, "ec": FOUND, "ls": "--"}
        length_s = best.end_s - best.start_s
        axes.barh(row + 0.1, length_s, left=best.start_s - middle_s, height=0.18, zorder=3, **fill)
    for start_s, end_s in prediction.gt or ():
        _draw_truth(axes, row, start_s - middle_s, end_s - middle_s, half_width_s)


def _zoom_middle_s(prediction: Prediction) -> float | None:
    """Second of the film in the middle of the zoomed row; None where there is nothing to draw."""
    if prediction.moments:
        return (prediction.moments[0].start_s + prediction.moments[0].end_s) / 2
    if prediction.gt:
        return sum(prediction.gt[0]) / 2
    return None


def _draw_truth(axes: Axes, row: int, start_s: float, end_s: float, half_width_s: float) -> None:
    """A true span; one outside of the zoomed part becomes an arrow that says how far away it is."""
    if end_s > -half_width_s and start_s < half_width_s:
        axes.barh(row + 0.29, end_s - start_s, left=start_s, height=0.12, color=TRUTH, zorder=3)
        return
    later = start_s > 0
    text = f"true span {clock(abs(start_s))} {'later' if later else 'earlier'}"
    arrow = f"{text} \N{RIGHTWARDS ARROW}" if later else f"\N{LEFTWARDS ARROW} {text}"
    place = 0.98 * half_width_s * (1 if later else -1)
    _text(
        axes, place, row + 0.31, arrow, fontsize=7.5, color=TRUTH, ha="right" if later else "left"
    )


def _write_verdict(
    axes: Axes, row: int, prediction: Prediction, half_width_s: float, num_windows: int | None
) -> None:
    verdict = facts.verdict(prediction)
    left, high = -0.98 * half_width_s, row - 0.25
    colour = VERDICT_COLOURS[verdict.kind]
    _text(axes, left, high, _cut(verdict.text, 44), fontsize=8.5, color=colour, weight="bold")
    if verdict.kind == "failed":
        return
    if prediction.gt is not None:
        right, truth = _truth_words(prediction, verdict)
        _text(axes, -left, high, truth, fontsize=8.5, color=GOOD if right else BAD, ha="right")
    elif num_windows is not None:
        cost = f"{prediction.cost.dense_windows} of {num_windows} windows"
        _text(axes, -left, high, cost, fontsize=8.5, color=SOFT, ha="right")


def _truth_words(prediction: Prediction, verdict: facts.Verdict) -> tuple[bool, str]:
    if prediction.found and prediction.gt:
        return bool(verdict.right), f"IoU {facts.best_iou(prediction):.2f}"
    return bool(verdict.right), verdict.truth.partition(":")[0]


def _finish_film_axes(axes: Axes, predictions: Sequence[Prediction], duration_s: float) -> None:
    """Clock labels, faint grid lines and the sentences."""
    marks = ticks(duration_s, max_ticks=9)
    axes.set_xlim(0, duration_s)
    axes.set_xticks(marks, [clock(mark) for mark in marks])
    axes.vlines(marks, -0.5, len(predictions) - 0.5, color="white", linewidth=1, zorder=0.5)
    axes.set_xlabel("time in the film", color=SOFT, fontsize=8.5)
    for row, prediction in enumerate(predictions):
        axes.text(
            -0.02, row, _wrapped(prediction), transform=axes.get_yaxis_transform(),
            ha="right", va="center", fontsize=9.5, color=INK, parse_math=False, linespacing=1.15,
        )  # fmt: skip


def _wrapped(prediction: Prediction) -> str:
    text = facts.sentence(prediction)
    return "\n".join(textwrap.wrap(text, LABEL_CHARACTERS, max_lines=2, placeholder=" ..."))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _finish_zoom_axes(axes: Axes, half_width_s: float) -> None:
    marks = [mark for mark in ticks(half_width_s, max_ticks=4) if mark < half_width_s]
    axes.set_xlim(-half_width_s, half_width_s)
    marks = [-mark for mark in marks[:0:-1]] + marks
    axes.set_xticks(marks, [f"{mark:+d} s" if mark else "0" for mark in marks])
    axes.set_xlabel("seconds from the middle of the best moment", color=SOFT, fontsize=8.5)


def _add_legend(figure: Figure, predictions: Sequence[Prediction]) -> None:
    """Only what occurs is explained."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def mark(shape: str, colour: str, label: str, fill: str = "full") -> Line2D:
        return Line2D([], [], linestyle="", marker=shape, color=colour, label=label, fillstyle=fill)

    entries = []
    if any(p.found and p.moments for p in predictions):
        entries.append(mark("v", FOUND, "predicted (darker: higher score)"))
    if any(not p.found and p.moments for p in predictions):
        entries.append(mark("v", FOUND, "candidate, judged not present", fill="none"))
    if any(p.gt for p in predictions):
        entries.append(mark("^", TRUTH, "true span"))
    if any(p.windows for p in predictions):
        entries.append(Patch(color=SEARCHED, label="windows visited"))
    if entries:
        figure.legend(handles=entries, ncols=len(entries), frameon=False, fontsize=8.5,
                      labelcolor=SOFT, loc="upper right", bbox_to_anchor=(0.985, 1.0))  # fmt: skip
