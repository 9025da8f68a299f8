"""Bars of a table's rows, as a PNG file (matplotlib, drawn without a display)."""

from __future__ import annotations

from pathlib import Path

from revisionllm.files import MADE_BY, replacing

SHOWN = ("R1@0.3", "R1@0.5", "share")
LONG_LABEL = 32  # letters of a row's name that fit beside a chart of the usual width
COLOURS = ("#1f5fa8", "#c8553d", "#4d7c8a")


def draw_rows(rows: list[dict], title: str, path: Path) -> None:
    """One group of bars per row: recalls with their intervals, or shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in SHOWN if name in rows[0]]
    longest = max(len(row["method"]) for row in rows)
    width = 8 + 0.15 * max(0, longest - LONG_LABEL)  # the title keeps its room beside the legend
    figure, axis = pyplot.subplots(figsize=(width, 0.9 + 0.42 * len(rows)))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [row[name] for row in rows]
        gaps = None
        if isinstance(values[0], list):  # with an interval
            values, low, high = (list(column) for column in zip(*values, strict=True))
            gaps = [
                [value - lo for value, lo in zip(values, low, strict=True)],
                [hi - value for value, hi in zip(values, high, strict=True)],
            ]
        at = [index + (place - (len(names) - 1) / 2) * height for index in range(len(rows))]
        axis.barh(at, values, height * 0.9, xerr=gaps, color=COLOURS[place], label=name, capsize=2)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="%", xlim=(0, 100))
    axis.set_title(title, loc="left")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if len(names) > 1:  # above the bars, right of the title
        axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names))
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png", metadata={"Software": MADE_BY})
    pyplot.close(figure)
