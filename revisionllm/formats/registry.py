"""The table of file formats: how each is recognised, read and written.

name                     annotations or predictions of
revisionllm              our predictions (records/predictions.py)
released-log             the released code's logs (read only; needs annotations for seconds)
qvhighlights             QVHighlights, and everything lighthouse ships in its shape
moment-detr              predictions of the QVHighlights family
vidchapters              VidChapters VMR, test (per query) and training (per video)
mad, cone                MAD's official JSON; CONE's JSONL for MAD and Ego4D-NLQ
mad-predictions          predictions of CONE and RGNet
ego4d-nlq, ego4d-nlq-predictions
activitynet, charades-sta
captions                 JSON lines of vid, start_s, end_s, caption (alignment stage)
csv                      a table with the columns video, start, end, sentence
timelens                 results, with the ground truth in their keys
msrvtt                   MSR-VTT's JSON, and the table of its 1k-A split (read only)
vue-tr, vue-tr-predictions
extremewhen, extremewhen-predictions
snag                     SnAG, HieraMamba, DeCafNet, UniversalVTG
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.formats import (
    captions,
    csv_table,
    ego4d,
    extremewhen,
    mad,
    msrvtt,
    qvhighlights,
    snag,
    timelens,
    vue_tr,
)
from revisionllm.formats.log_windows import LogArithmetic
from revisionllm.formats.released_log import is_released_folder, log_ranking, read_logs, shard_paths
from revisionllm.records.jsonl import MAX_LINE_BYTES, BadRecord, Problem, parse_json, read_json
from revisionllm.records.predictions import write_predictions as write_own
from revisionllm.records.rankings import (
    LabelledQuery,
    Ranking,
    prediction_from_ranking,
    read_own_rankings,
)

ANNOTATIONS, PREDICTIONS = "annotations", "predictions"
RELEASED_LOG = "released-log"


@dataclass(frozen=True)
class Format:
    """One file format. `looks_like` gets the first record (or the first value of an object)."""

    name: str
    kind: str
    looks_like: Callable[[dict[str, Any]], bool]
    read: Callable[[Path], tuple[list, list[Problem]]]
    write: Callable[[Path, Sequence], None] | None


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda record: all(name in record for name in names)


def _first_value_has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda record: _has(*names)(_first_value(record))


def _first_value(record: dict[str, Any]) -> dict[str, Any]:
    value = next(iter(record.values()), None)
    return value if isinstance(value, dict) else {}


def _is_timelens(record: dict[str, Any]) -> bool:
    return timelens.SEPARATOR in next(iter(record), "")


def _write_own(path: Path, rankings: Sequence[Ranking]) -> None:
    try:
        write_own(path, [prediction_from_ranking(ranking) for ranking in rankings])
    except BadRecord as error:
        raise UserError(f"{error} (--annotations FILE can supply it)") from error


def _read_log_alone(path: Path) -> tuple[list[Ranking], list[Problem]]:
    raise UserError(f"{path}: released logs hold no seconds; give the annotations as well")


_A, _P = ANNOTATIONS, PREDICTIONS
_TABLE = (
    Format("revisionllm", _P, _has("schema", "moments"), read_own_rankings, _write_own),
    Format(RELEASED_LOG, _P, _has("query_id", "answer", "info"), _read_log_alone, None),
    Format(
        "moment-detr",
        _P,
        _has("pred_relevant_windows"),
        qvhighlights.read_predictions,
        qvhighlights.write_predictions,
    ),
    Format(
        "mad-predictions", _P, _has("predicted_times"), mad.read_predictions, mad.write_predictions
    ),
    Format(
        "ego4d-nlq-predictions",
        _P,
        _has("results"),
        ego4d.read_predictions,
        ego4d.write_predictions,
    ),
    Format("timelens", _P, _is_timelens, timelens.read_predictions, timelens.write_predictions),
    Format(
        "vue-tr-predictions",
        _P,
        lambda record: "answer" in record and ("query_id" in record or "id" in record),
        vue_tr.read_predictions,
        vue_tr.write_predictions,
    ),
    Format(
        "extremewhen-predictions",
        _P,
        _has("pred_interval"),
        extremewhen.read_predictions,
        extremewhen.write_predictions,
    ),
    Format(
        "qvhighlights",
        _A,
        # the test file keeps the true windows back
        lambda record: (
            _has("qid")(record)
            and ("relevant_windows" in record or _has("query", "duration", "vid")(record))
        ),
        qvhighlights.read_queries,
        qvhighlights.write_queries,
    ),
    Format(
        "vidchapters",
        _A,
        _has("vid", "relevant_windows"),
        qvhighlights.read_queries,
        qvhighlights.write_queries,
    ),
    Format(
        "cone", _A, _has("clip_id", "timestamps"), mad.read_cone_queries, mad.write_cone_queries
    ),
    Format("msrvtt", _A, _has("videos", "sentences"), msrvtt.read_queries, None),
    Format("ego4d-nlq", _A, _has("videos"), ego4d.read_queries, ego4d.write_queries),
    Format("vue-tr", _A, _has("query_id", "gt"), vue_tr.read_queries, vue_tr.write_queries),
    Format(
        "extremewhen",
        _A,
        _has("correct_interval"),
        extremewhen.read_queries,
        extremewhen.write_queries,
    ),
    Format("mad", _A, _first_value_has("movie", "sentence"), mad.read_queries, mad.write_queries),
    Format(
        "activitynet",
        _A,
        _first_value_has("sentences", "timestamps"),
        captions.read_activitynet,
        captions.write_activitynet,
    ),
    Format(
        "snag",
        _A,
        lambda record: "annotations" in _first_value(_first_value(record)),
        snag.read_queries,
        snag.write_queries,
    ),
    Format(
        "charades-sta", _A, lambda record: False, captions.read_charades, captions.write_charades
    ),
    Format(
        "captions",
        _A,
        _has("vid", "start_s", "end_s", "caption"),
        captions.read_captions,
        captions.write_captions,
    ),
    Format("csv", _A, lambda record: False, csv_table.read_queries, csv_table.write_queries),
)
FORMATS = {format_.name: format_ for format_ in _TABLE}


def names(kind: str | None = None) -> list[str]:
    """The names of all formats, or of those of one kind."""
    return [name for name, format_ in FORMATS.items() if kind in (None, format_.kind)]


def detect(path: str | Path, kind: str | None = None) -> Format:
    """Tell a file's format from its first record.

    Args:
        kind: ANNOTATIONS or PREDICTIONS to consider only those.

    Raises:
        UserError: no such file, or no format fits; the message lists the names that can be given.
    """
    path = Path(path)
    if path.is_dir():
        if kind != ANNOTATIONS and is_released_folder(path):
            return FORMATS[RELEASED_LOG]
        raise UserError(f"{path} is a folder without released logs; give a file")
    if kind != PREDICTIONS:
        text_format = _text_format(path)
        if text_format:
            return FORMATS[text_format]
    first = _first_record(path)
    if isinstance(first, dict):
        for format_ in _TABLE:
            if kind in (None, format_.kind) and format_.looks_like(first):
                return format_
    raise UserError(f"{path}: not a known format; say which one: {', '.join(names(kind))}")


def _text_format(path: Path) -> str | None:
    """The name of a format that is no JSON, by the first line with something in it."""
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE_BYTES), b"")
            first = next((line for line in lines if line.strip()), b"")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if first.lstrip(b"\xef\xbb\xbf \t").startswith((b"{", b"[")):
        return None
    if b"##" in first:
        return "charades-sta"
    head = first.decode("utf-8", "replace")
    if msrvtt.is_table(head):
        return "msrvtt"
    return "csv" if csv_table.is_table(head) else None


def _first_record(path: Path) -> Any:
    """The first JSON record."""
    records: list[Any] = []
    try:
        with path.open("rb") as file:
            for raw in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                if raw.strip() and _parsed(raw, records):
                    break
                if path.suffix != ".jsonl" and raw.strip():
                    records.append(read_json(path))  # one document over several lines
                    break
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not records:
        raise UserError(f"{path} holds no JSON record (empty, or every line is broken)")
    first = records[0]
    return first[0] if isinstance(first, list) and first else first


def _parsed(raw: bytes, records: list[Any]) -> bool:
    try:
        records.append(parse_json(raw))
    except BadRecord:
        return False
    return True


def read_queries(
    path: str | Path, name: str | None = None
) -> tuple[list[LabelledQuery], list[Problem]]:
    """Read annotations in any format (detected unless named).

    They pass the checks of `formats/annotations.py`; what does not is a problem.

    Raises:
        UserError: no format fits, or no record can be used.
    """
    queries, problems = _named(path, name, ANNOTATIONS).read(Path(path))
    good, seen = [], set()
    for query in queries:
        found = annotation_problems(query)
        if query.qid in seen:
            found.append("this id occurs again")
        seen.add(query.qid)
        if found:
            problems.append(Problem(str(path), 0, f"query {query.qid}: {', '.join(found)}"))
        else:
            good.append(query)
    _require_some(path, good, problems)
    return good, problems


def annotation_problems(query: LabelledQuery) -> list[str]:
    """What the one set of checks finds, whatever the file's format."""
    from revisionllm.formats.annotations import query_problems

    spans = query.spans.tolist()
    return query_problems(query.qid, query.vid, query.query, spans, query.duration_s)


def _require_some(path: str | Path, items: Sequence, problems: Sequence[Problem]) -> None:
    if problems and not items:
        raise UserError(f"{path}: none of its {len(problems)} records can be used; {problems[0]}")


def read_rankings(
    path: str | Path,
    name: str | None = None,
    queries: Sequence[LabelledQuery] = (),
    logs: LogArithmetic | None = None,
) -> tuple[list[Ranking], list[Problem]]:
    """Read predictions in any format (detected unless named).

    Args:
        queries: annotations that fill in what the format does not carry: film, length, sentence,
            true spans. Released logs cannot be read without them.
        logs: windows of released logs, which do not say them; they cannot be read without.

    Raises:
        UserError: no format fits, something is missing, or no record can be used.
    """
    format_ = _named(path, name, PREDICTIONS)
    known = {query.qid: query for query in queries}
    if format_.name == RELEASED_LOG and known:
        rankings, problems = _read_log(Path(path), known, logs)
    else:
        rankings, problems = format_.read(Path(path))
    for ranking in rankings:
        _fill_in(ranking, known.get(ranking.qid))
        if ranking.num_reversed:
            what = f"query {ranking.qid}: {ranking.num_reversed} spans end before they start"
            problems.append(Problem(str(path), 0, what))
    _require_some(path, rankings, problems)
    return rankings, problems


def fill_in_queries(queries: Sequence[LabelledQuery], known: Sequence[LabelledQuery]) -> None:
    """Give queries what their format does not carry and other annotations do."""
    by_id = {query.qid: query for query in known}
    lengths = {query.vid: query.duration_s for query in known}
    for query in queries:
        other = by_id.get(query.qid)
        if query.duration_s is None:
            query.duration_s = lengths.get(query.vid) if other is None else other.duration_s
        if not query.labelled and other is not None:
            query.spans, query.labelled = other.spans, other.labelled


def _named(path: str | Path, name: str | None, kind: str) -> Format:
    if name is None:
        return detect(path, kind)
    format_ = FORMATS.get(name)
    if format_ is None or format_.kind != kind:
        raise UserError(f"{name!r} is not a format of {kind}: {', '.join(names(kind))}")
    if not Path(path).exists():
        raise UserError(f"no such file: {path}")
    return format_


def _read_log(
    path: Path, known: dict[str, LabelledQuery], logs: LogArithmetic | None
) -> tuple[list[Ranking], list[Problem]]:
    """Released dense logs in seconds.

    Raises:
        UserError: nothing says how long their windows are.
    """
    if logs is None:
        raise UserError(
            f"{path}: released logs do not say their windows; give --window_s and"
            " --frames_per_window (MAD: 125 and 250; chapters: 500 and 100)"
        )
    files, problems = ([path], []) if path.is_file() else shard_paths(path, None)
    rows, bad_lines = read_logs(files)
    problems += bad_lines
    rankings = []
    for row in rows:
        query = known.get(row.query_id)
        if query is None:
            problems.append(
                Problem(str(path), 0, f"query {row.query_id} is not in the annotations")
            )
            continue
        try:
            ranking, num_reversed = log_ranking(
                row,
                query,
                window_s=logs.window_s,
                frames_per_window=logs.frames_per_window,
            )
        except BadRecord as error:
            problems.append(Problem(str(path), 0, f"query {row.query_id}: {error}"))
            continue
        ranking.num_reversed = num_reversed
        rankings.append(ranking)
    return rankings, problems


def _fill_in(ranking: Ranking, query: LabelledQuery | None) -> None:
    if query is None:
        return
    ranking.vid = query.vid if ranking.vid is None else ranking.vid
    ranking.query = query.query if ranking.query is None else ranking.query
    ranking.duration_s = query.duration_s if ranking.duration_s is None else ranking.duration_s
    if ranking.gt is None and query.labelled:
        ranking.gt = query.spans
