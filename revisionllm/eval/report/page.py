"""`revisionllm eval report`: one self-contained HTML file and one Markdown file about several runs.

Nothing is loaded from anywhere: figures are embedded, timelines are drawn in SVG.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from revisionllm.eval.report import comparison, figures
from revisionllm.eval.report.tables import Table, markdown, plain_markdown
from revisionllm.files import MADE_BY
from revisionllm.metrics.scoring import Scored

NOTES = (
    "Field convention: IoU not rounded, a hit is IoU >= threshold, failed and missing queries are "
    "misses. Brackets: 95 % bootstrap intervals over {resampled}. In the differences, * marks an "
    "interval without zero."
)
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 1120px; padding: 24px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p.note { color: #555; margin: 4px 0 12px; max-width: 80ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid #e2e2e2; }
th { color: #555; font-weight: 600; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: nowrap; }
td small { color: #777; display: block; white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 12px 0 20px; } figcaption { color: #555; font-size: 13px; }
.query { border-top: 1px solid #e2e2e2; padding: 10px 0; }
.query p { margin: 0 0 4px; } .query .meta { color: #666; font-size: 13px; }
svg text { font: 11px system-ui, sans-serif; fill: #444; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 12px; }
"""
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
    first = next(iter(runs.values()))
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(', '.join(runs))}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(' / '.join(runs))}</h1>",
        f"<p class='note'>{first.report['num_queries']} queries. {escape(_notes(first))}</p>",
    ]
    for title, table in _tables(runs):
        parts += [f"<h2>{escape(title)}</h2>", _html_table(table)]
    parts += ["<h2>Recall</h2>", _figure(pictures.recall, "recall over the IoU threshold")]
    if pictures.reliability:
        caption = "confidence of the best moment against the share with IoU >= 0.5"
        parts += ["<h2>Reliability</h2>", _figure(pictures.reliability, caption)]
    for query, picture in pictures.qualitative:
        parts += [
            f"<h2>{escape(query)}</h2>",
            _figure(picture, "the true and the best predicted moments"),
        ]
    parts += _examples(runs, num_examples)
    parts += [
        f"<h2>{escape(name)}: what was not used</h2>" + _lines(scored)
        for name, scored in runs.items()
        if scored.accounting.lines()
    ]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def markdown_page(
    runs: Mapping[str, Scored], pictures: Mapping[str, str], num_examples: int
) -> str:
    """The Markdown page.

    Args:
        pictures: caption -> file name beside the page.
    """
    first = next(iter(runs.values()))
    about = f"{first.report['num_queries']} queries. {_notes(first)}"
    lines = [f"# {plain_markdown(' / '.join(runs))}", "", about]
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


def _notes(scored: Scored) -> str:
    return NOTES.format(resampled=scored.report["resampled"] or "nothing (no resampling)")


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


def _html_table(table: Table) -> str:
    head, rows = table
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{cells}</tr>{body}</table></div>"


def _cell(text: str) -> str:
    value, bracket, interval = text.partition(" [")
    if not bracket or not interval.rstrip(" *").endswith("]"):
        return f"<td>{escape(text)}</td>"
    return f"<td>{escape(value)}<small>[{escape(interval)}</small></td>"


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    image = f"<img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _lines(scored: Scored) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in scored.accounting.lines())}</ul>"


def _chosen(scored: Scored, count: int) -> list[tuple[str, list[int]]]:
    best, worst = comparison.best_and_worst(scored, count)
    chosen = [("best queries", best), ("worst queries", worst)]
    return [(title, rows) for title, rows in chosen if rows]


def _examples(runs: Mapping[str, Scored], count: int) -> list[str]:
    colours = [("truth", figures.TRUTH_COLOUR)]
    colours += [(name, figures.run_colour(index)) for index, name in enumerate(runs)]
    key = "".join(
        f"<span class='key' style='background:{c}'></span>{escape(n)}" for n, c in colours
    )
    parts = [f"<h2>Best and worst queries</h2><p class='note'>{key}</p>"]
    for name, scored in runs.items():
        for title, rows in _chosen(scored, count):
            parts.append(f"<h3>{escape(name)}: {title}</h3>")
            parts += [_example(comparison.bars_of(runs, row)) for row in rows]
    return parts


def _example(bars: comparison.Bars) -> str:
    query = bars.query
    ious = ", ".join(f"{name} IoU {value:.2f}" for name, value in bars.ious.items())
    meta = f"{query.vid} / {query.qid}: {ious}"
    return (
        f"<div class='query'><p>{escape(query.query)}</p><p class='meta'>{escape(meta)}</p>"
        f"{timeline_svg(bars)}</div>"
    )


def timeline_svg(bars: comparison.Bars) -> str:
    """The whole film from left to right, one row for the truth and one per run."""
    ends = [float(spans[:, 1].max()) for _, _, spans in bars.bars if len(spans)]
    length_s = max([bars.query.duration_s or 0.0, *ends]) or 1.0
    width, height = LABEL_WIDTH + TRACK_WIDTH + 10, ROW_HEIGHT * len(bars.bars) + 16
    parts = [f"<svg viewBox='0 0 {width} {height}' width='100%' role='img' aria-label='timeline'>"]
    for row, (label, colour, spans) in enumerate(bars.bars):
        top = row * ROW_HEIGHT
        parts.append(f"<text x='0' y='{top + 12}'>{escape(label[:20])}</text>")
        parts.append(_rectangle(LABEL_WIDTH, top + 2, TRACK_WIDTH, "#f0f0f0", ""))
        for rank, (start_s, end_s) in enumerate(spans.tolist(), 1):
            left = LABEL_WIDTH + TRACK_WIDTH * max(start_s, 0.0) / length_s
            wide = max(3.0, TRACK_WIDTH * (end_s - max(start_s, 0.0)) / length_s)
            title = f"{label} {rank}: {start_s:.1f} - {end_s:.1f} s"
            parts.append(_rectangle(left, top + 2, wide, colour, title, 1.0 if rank == 1 else 0.45))
    bottom = height - 3
    for share in np.linspace(0, 1, 5).tolist():
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        x = LABEL_WIDTH + TRACK_WIDTH * share
        parts.append(
            f"<text x='{x:.0f}' y='{bottom}' text-anchor='{anchor}'>{share * length_s:.0f} s</text>"
        )
    return "".join(parts) + "</svg>"


def _rectangle(
    left: float, top: float, width: float, colour: str, title: str, opacity: float = 1.0
) -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f"<rect x='{left:.1f}' y='{top}' width='{width:.1f}' height='{ROW_HEIGHT - 5}' rx='2' "
        f"fill='{colour}' opacity='{opacity}'>{inner}</rect>"
    )


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
