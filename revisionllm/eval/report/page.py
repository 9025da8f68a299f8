"""`revisionllm eval report`: one self-contained HTML file and one Markdown file about several runs.

Nothing is loaded from anywhere: figures are embedded, timelines are drawn in SVG.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revisionllm.eval.report import comparison, figures
from revisionllm.eval.report.tables import Table, markdown, plain_markdown
from revisionllm.files import MADE_BY, html_template
from revisionllm.metrics.scoring import Scored

NOTES = (
    "Field convention: IoU not rounded, a hit is IoU >= threshold, failed and missing queries are "
    "misses. Brackets: 95 % bootstrap intervals over {resampled}. In the differences, * marks an "
    "interval without zero."
)
LABEL_WIDTH, TRACK_WIDTH, ROW_HEIGHT = 130, 900, 17


@dataclass(frozen=True)
class Pictures:
    """PNG bytes of the report's figures."""

    recall: bytes
    reliability: bytes | None
    qualitative: list[tuple[str, bytes]]  # (query, figure)


def draw(runs: Mapping[str, Scored], qids: Sequence[str], films: str | Path | None) -> Pictures:
    """Draw every figure of the report."""
    first = next(iter(runs.values()))
    calibrations = {
        name: scored.report["calibration"]
        for name, scored in runs.items()
        if scored.report["calibration"]
    }
    chosen = []
    for row in comparison.rows_of(first, qids):
        bars = comparison.bars_of(runs, row)
        chosen.append((bars.query.query, comparison.qualitative_png(bars, films)))
    return Pictures(
        recall=figures.recall_curves({name: scored.ious for name, scored in runs.items()}),
        reliability=figures.reliability(calibrations, "0.5") if calibrations else None,
        qualitative=chosen,
    )


def html_page(runs: Mapping[str, Scored], pictures: Pictures, *, num_examples: int) -> str:
    """The whole HTML page."""
    colours = [(name, figures.run_colour(index)) for index, name in enumerate(runs)]
    return html_template(
        "revisionllm.eval.report",
        "report.html",
        base64=lambda png: base64.b64encode(png).decode("ascii"),
    ).render(
        made_by=MADE_BY,
        runs=runs,
        about=_about(runs),
        tables=_tables(runs),
        pictures=pictures,
        colours=[("truth", figures.TRUTH_COLOUR), *colours],
        chosen=[
            (name, title, [comparison.bars_of(runs, row) for row in rows])
            for name, scored in runs.items()
            for title, rows in _chosen(scored, num_examples)
        ],
        split_interval=_split_interval,
        film_length_s=_film_length_s,
        label_width=LABEL_WIDTH,
        track_width=TRACK_WIDTH,
        row_height=ROW_HEIGHT,
    )


def markdown_page(
    runs: Mapping[str, Scored], pictures: Mapping[str, str], num_examples: int
) -> str:
    """The Markdown page.

    Args:
        pictures: caption -> file name beside the page.
    """
    lines = [f"# {plain_markdown(' / '.join(runs))}", "", _about(runs)]
    for title, table in _tables(runs):
        lines += ["", f"## {title}", "", *markdown(table)]
    for caption, name in pictures.items():
        shown = plain_markdown(caption)
        lines += ["", f"## {shown}", "", f"![{shown}]({name})"]
    for name, scored in runs.items():
        for title, rows in _chosen(scored, num_examples):
            heading = f"## {plain_markdown(name)}: {title}"
            lines += ["", heading, "", *markdown(_example_table(runs, rows))]
    for name, scored in runs.items():
        notes = scored.accounting.lines()
        if notes:
            lines += ["", f"## {plain_markdown(name)}: what was not used", ""]
            lines += [f"- {plain_markdown(note)}" for note in notes]
    return "\n".join([*lines, "", f"<!-- made_by: {MADE_BY} -->"]) + "\n"


def _about(runs: Mapping[str, Scored]) -> str:
    report = next(iter(runs.values())).report
    notes = NOTES.format(resampled=report["resampled"] or "nothing (no resampling)")
    return f"{report['num_queries']} queries. {notes}"


def _tables(runs: Mapping[str, Scored]) -> list[tuple[str, Table]]:
    tables = [("Metrics (%)", comparison.metric_table(runs))]
    if len(runs) > 1:
        tables.append(("Differences, query by query (points)", comparison.difference_table(runs)))
    titles = {"by_duration": "By film length (seconds)", "by_length": "By event length (seconds)"}
    for name, title in titles.items():
        table = comparison.breakdown_by_run(runs, name)
        if table:
            tables.append((title, table))
    cost = comparison.cost_table(runs)
    if cost:
        tables.append(("Mean cost per query", cost))
    absent = [[name, *_absent_cells(scored)] for name, scored in runs.items() if _absent(scored)]
    if absent:
        head = ["run", "precision", "recall", "absent", "said absent"]
        tables.append(('"Not present" (%)', (head, absent)))
    return tables


def _absent(scored: Scored) -> dict | None:
    return scored.report["not_present"]


def _absent_cells(scored: Scored) -> list[str]:
    found = scored.report["not_present"]
    shares = [found["precision"], found["recall"]]
    cells = ["-" if share is None else f"{share:.2f}" for share in shares]
    return [*cells, str(found["num_absent"]), str(found["num_said_absent"])]


def _split_interval(text: str) -> tuple[str, str]:
    """A cell's value and the interval behind it, if there is one."""
    value, _, interval = text.partition(" [")
    return (value, f"[{interval}") if interval.rstrip(" *").endswith("]") else (text, "")


def _chosen(scored: Scored, count: int) -> list[tuple[str, list[int]]]:
    best, worst = comparison.best_and_worst(scored, count)
    chosen = [("best queries", best), ("worst queries", worst)]
    return [(title, rows) for title, rows in chosen if rows]


def _film_length_s(bars: comparison.Bars) -> float:
    """Of the film, or up to the last span where it is not known."""
    ends = [float(spans[:, 1].max()) for _, _, spans in bars.bars if len(spans)]
    return max([bars.query.duration_s or 0.0, *ends]) or 1.0


def _example_table(runs: Mapping[str, Scored], rows: Sequence[int]) -> Table:
    head = ["query", "film", "true seconds", *(f"{name} (IoU)" for name in runs)]
    body = []
    for row in rows:
        bars = comparison.bars_of(runs, row)
        cells = [bars.query.query, bars.query.vid, _seconds(bars.query.spans)]
        for label, _, spans in bars.bars[1:]:
            cells.append(f"{_seconds(spans[:1])} ({bars.ious[label]:.2f})")
        body.append(cells)
    return head, body


def _seconds(spans: np.ndarray) -> str:
    return ", ".join(f"{start_s:.1f} - {end_s:.1f}" for start_s, end_s in spans) or "none"
