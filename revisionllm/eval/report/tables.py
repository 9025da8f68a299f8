"""Reports as rows of text: the tables of `eval score`, and of the Markdown and HTML comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from revisionllm.metrics.scoring import Scored

Table = tuple[list[str], list[list[str]]]  # head, rows


def metric_rows(report: Mapping[str, Any]) -> list[tuple[str, float, list[float] | None]]:
    """(name, percent, interval or None) of mIoU and every recall."""
    values = {"mIoU": report["mIoU"]} | report["recall"]
    return [(name, value, report["intervals"].get(name)) for name, value in values.items()]


def score_text(scored: Scored) -> list[str]:
    """What `eval score` prints."""
    report = scored.report
    lines = [
        f"{report['num_queries']} queries, {report['num_present']} with an event in their film"
    ]
    if report["resampled"]:
        lines.append(f"95 % intervals by resampling whole {report['resampled']}")
    if report["headline"]:
        lines.append(f"{report['convention']}, its own numbers:")
        lines += [f"  {name}: {value:.2f}" for name, value in report["headline"].items()]
    for name, value, interval in metric_rows(report):
        spread = f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        lines.append(f"{name}: {value:.2f}{spread}")
    lines += [f"mAP {name}: {value:.2f}" for name, value in report["mAP"].items()]
    lines += _optional_lines(report)
    for title, name in (("film length", "by_duration"), ("event length", "by_length")):
        if report[name]:
            lines += ["", f"by {title}:", *aligned(breakdown_table(report[name]))]
    return lines


def _optional_lines(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if report["sets"]:
        lines.append(f"answered sets: IoU {report['sets']['IoU']:.2f}, ")
        lines[-1] += f"as many spans as are true {report['sets']['count_accuracy']:.2f}"
    if report["set_iou"]:
        several = report["set_iou"]
        lines.append(f"set IoU ({several['num_queries']} queries): {several['mean']:.2f}")
    for threshold, bins in (report["calibration"] or {}).items():
        lines.append(f"ECE@{threshold}: {bins['ece']:.4f}")
    if report["not_present"]:
        found = report["not_present"]
        lines.append(f"not present: precision {percent(found['precision'])}, ")
        lines[-1] += f"recall {percent(found['recall'])} of {found['num_absent']} absent"
    if report["cost"]:
        cost = ", ".join(f"{name} {value:.1f}" for name, value in report["cost"].items())
        lines.append(f"mean cost per query: {cost}")
    return lines


def percent(value: float | None) -> str:
    """A percentage, or a dash where it is not defined."""
    return "-" if value is None else f"{value:.2f}"


def breakdown_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per range of seconds."""
    names = [name for name in rows[0] if name not in ("over_s", "up_to_s", "num_queries")]
    body = []
    for row in rows:
        top = "" if row["up_to_s"] is None else f" - {row['up_to_s']:g}"
        label = f"{row['over_s']:g}{top} s" if top else f"over {row['over_s']:g} s"
        body.append([label, str(row["num_queries"]), *(f"{row[name]:.2f}" for name in names)])
    return ["seconds", "queries", *names], body


def aligned(table: Table) -> list[str]:
    """A table in columns of text: the first to the left, numbers to the right."""
    head, rows = table
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(table: Table) -> list[str]:
    """A table in Markdown."""
    head, rows = table
    ruler = ["---", *["---:"] * (len(head) - 1)]
    escaped = [[plain_markdown(cell) for cell in row] for row in [head, *rows]]
    return [f"| {' | '.join(row)} |" for row in [escaped[0], ruler, *escaped[1:]]]


def plain_markdown(text: str) -> str:
    """Text as it is shown in Markdown: one line, no tags, no cell ends, no links or pictures."""
    line = escape(" ".join(text.split()), quote=False)
    return line.replace("|", "\\|").replace("](", "]\\(")


def csv_text(report: Mapping[str, Any]) -> str:
    """name, value, low, high: one line per measure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "value", "low", "high"])
    for name, value, interval in metric_rows(report):
        writer.writerow([name, value, *(interval or ["", ""])])
    writer.writerows([f"mAP {name}", value, "", ""] for name, value in report["mAP"].items())
    return buffer.getvalue()
