"""Several runs on the same queries: paired differences, best and worst queries, their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revisionllm.data.stores.feature_store import check_key
from revisionllm.errors import UserError
from revisionllm.eval.report import figures
from revisionllm.eval.report.tables import Table, percent
from revisionllm.metrics.recall import Interval, paired_difference
from revisionllm.metrics.scoring import Scored, film_groups, per_query_measures
from revisionllm.records.rankings import NO_SPANS, LabelledQuery, Ranking

COMPARED = (("mIoU", None, None), ("R1@0.3", 1, 0.3), ("R1@0.5", 1, 0.5), ("R5@0.5", 5, 0.5))
SHOWN_MOMENTS = 3  # per run, in timelines
FILM_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
NUM_FRAMES = 8


@dataclass(frozen=True)
class Bars:
    """One query with the bars of its timeline: (label, colour, spans [n, 2]), the truth first."""

    query: LabelledQuery
    ious: dict[str, float]  # run -> IoU of its best-ranked moment
    bars: list[tuple[str, str, np.ndarray]]


def check_same_queries(runs: Mapping[str, Scored]) -> None:
    """Refuse runs that were not asked the same queries (raises UserError)."""
    names = list(runs)
    first = [(query.qid, query.spans.tolist()) for query in runs[names[0]].queries]
    for name in names[1:]:
        other = [(query.qid, query.spans.tolist()) for query in runs[name].queries]
        if other != first:
            raise UserError(
                f"{names[0]} and {name} have different ground truth ({len(first)} and {len(other)} "
                "queries); give one annotation file with --gt"
            )


def metric_table(runs: Mapping[str, Scored]) -> Table:
    """One line per run; recall with its interval, then mAP, calibration and what went wrong."""
    head = ["run", "mIoU", "R1@0.1", "R1@0.3", "R1@0.5", "R1@0.7", "R5@0.1", "R5@0.3", "R5@0.5"]
    rows = []
    for name, scored in runs.items():
        values = {"mIoU": scored.report["mIoU"]} | scored.report["recall"]
        cells = []
        for measure in head[1:]:
            interval = scored.report["intervals"].get(measure)
            spread = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
            cells.append(f"{values[measure]:.2f}{spread}")
        counts = scored.report["counts"]
        calibration = scored.report["calibration"]
        ece = f"{calibration['0.5']['ece']:.3f}" if calibration else "-"
        cells += [percent(scored.report["mAP"]["avg"]), ece]
        rows.append([name, *cells, str(counts["failed"]), str(counts["missing"])])
    return [*head, "mAP", "ECE@0.5", "failed", "missing"], rows


def difference_table(runs: Mapping[str, Scored], *, seed: int = 0) -> Table:
    """Each run against the first one, query by query, with 95 % intervals of the difference."""
    names = list(runs)
    head = ["difference", *[name for name, _, _ in COMPARED]]
    rows = []
    for name in names[1:]:
        cells = []
        for _, rank, threshold in COMPARED:
            interval = _difference(runs[name], runs[names[0]], rank, threshold, seed)
            sure = " *" if interval.low > 0 or interval.high < 0 else ""
            cells.append(f"{interval.mean:+.2f} [{interval.low:+.1f}, {interval.high:+.1f}]{sure}")
        rows.append([f"{name} - {names[0]}", *cells])
    return head, rows


def _difference(
    first: Scored, second: Scored, rank: int | None, threshold: float | None, seed: int
) -> Interval:
    values = []
    for scored in (first, second):
        if rank is None:
            values.append(per_query_measures(scored.ious, (1,), (0.5,))[:, 0])
        else:
            values.append(per_query_measures(scored.ious, (rank,), (threshold,))[:, 1])
    return paired_difference(values[0], values[1], groups=film_groups(first.queries), seed=seed)


def cost_table(runs: Mapping[str, Scored]) -> Table | None:
    """Mean cost per query; None if no run reports one."""
    costs = {name: scored.report["cost"] for name, scored in runs.items() if scored.report["cost"]}
    if not costs:
        return None
    names = ["dense_windows", "segments", "llm_tokens", "seconds"]
    rows = [[run, *(f"{cost[name]:.1f}" for name in names)] for run, cost in costs.items()]
    return ["run", *[name.replace("_", " ") for name in names]], rows


def breakdown_by_run(runs: Mapping[str, Scored], name: str) -> Table | None:
    """R1@0.5 and mIoU of each run per range of seconds; None if the lengths are not known."""
    first = next(iter(runs.values())).report[name]
    if not first:
        return None
    head = ["seconds", "queries"]
    for run in runs:
        head += [f"{run} mIoU", f"{run} R1@0.5"]
    rows = []
    for index, row in enumerate(first):
        up_to = (
            f"{row['over_s']:g} - {row['up_to_s']:g}"
            if row["up_to_s"]
            else f"over {row['over_s']:g}"
        )
        cells = [up_to, str(row["num_queries"])]
        for scored in runs.values():
            own = scored.report[name][index]
            cells += [f"{own['mIoU']:.2f}", f"{own['R1@0.5']:.2f}"]
        rows.append(cells)
    return head, rows


def best_and_worst(scored: Scored, count: int) -> tuple[list[int], list[int]]:
    """Rows of the best and the worst queries; of equally bad ones the most confident come first."""
    top = np.maximum(scored.ious[:, 0], 0.0)
    confidence = np.array([_confidence(ranking) for ranking in scored.rankings])
    best = np.lexsort((-confidence, -top))[:count]
    worst = np.lexsort((-confidence, top))[:count]
    return best.tolist(), [row for row in worst.tolist() if row not in set(best.tolist())]


def _confidence(ranking: Ranking | None) -> float:
    if ranking is None or ranking.scores is None or not len(ranking.scores):
        return -np.inf
    return float(ranking.scores[0])


def bars_of(runs: Mapping[str, Scored], row: int) -> Bars:
    """The timeline of one query: the truth, then the best moments of each run."""
    first = next(iter(runs.values()))
    query = first.queries[row]
    bars = [("truth", figures.TRUTH_COLOUR, query.spans)]
    ious = {}
    for index, (name, scored) in enumerate(runs.items()):
        ranking = scored.rankings[row]
        spans = NO_SPANS if ranking is None or ranking.failed else ranking.spans[:SHOWN_MOMENTS]
        bars.append((name, figures.run_colour(index), spans))
        ious[name] = max(0.0, float(scored.ious[row, 0]))
    return Bars(query, ious, bars)


def rows_of(scored: Scored, qids: Sequence[str]) -> list[int]:
    """Rows of the named queries (raises UserError for an unknown id)."""
    row_of = {query.qid: row for row, query in enumerate(scored.queries)}
    unknown = [qid for qid in qids if qid not in row_of]
    if unknown:
        raise UserError(f"no such query: {', '.join(unknown)}")
    return [row_of[qid] for qid in qids]


def qualitative_png(bars: Bars, films: str | Path | None) -> bytes:
    """The paper's figure of one query; with frames where the film is at hand."""
    film = find_film(films, bars.query.vid)
    near_s = figures.near_range(bars.bars, bars.query.duration_s)
    frames = frames_around(film, near_s) if film else []
    only_best = [(label, colour, spans[:1]) for label, colour, spans in bars.bars[1:]]
    return figures.qualitative(
        f'"{bars.query.query}"', bars.query.duration_s, [bars.bars[0], *only_best], frames
    )


def find_film(films: str | Path | None, vid: str) -> Path | None:
    """The film's file: `films` itself if it is a file, or `<films>/<vid>.<mp4, ...>`.

    Raises:
        UserError: an id that would lead out of the folder.
    """
    if films is None:
        return None
    films = Path(films)
    if films.is_file():
        return films
    names = [films / f"{check_key(vid)}{suffix}" for suffix in FILM_SUFFIXES]
    return next((path for path in names if path.is_file()), None)


def frames_around(film: Path, range_s: tuple[float, float]) -> list[tuple[float, np.ndarray]]:
    """Frames spread evenly over a range of seconds: (seconds, uint8 [H, W, 3])."""
    from revisionllm.data.video import probe, read_frame

    info = probe(film)
    last_s = min(range_s[1], info.duration_s)
    size = (160, max(2, round(160 * info.height / info.width)))
    times_s = np.linspace(range_s[0], max(range_s[0], last_s - 0.05), NUM_FRAMES)
    return [(float(time_s), read_frame(film, float(time_s), size=size)) for time_s in times_s]
