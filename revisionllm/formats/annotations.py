"""Read who asks what of which film, and when it happens; the one reader of annotation files.

Understood, found out by looking:
- MAD and evaluation JSON: `{"<query id>": {"movie", "sentence", "timestamps", "movie_duration"}}`;
- MAD .jsonl: `{"query_id", "query", "clip_id", "duration", "timestamps"}` per line;
- VidChapters .jsonl, training: `{"vid", "duration", "query": [..], "relevant_windows": [..]}` per
  video, whose j-th chapter is query `<vid>_<j>`; test: the same with "qid" and one query per line;
- training JSON: a list of `{"query_id", "id", "conversations", "meta"}`, what the converters write;
- every other annotation format of `registry.py` (CSV, Charades-STA, ActivityNet, Ego4D, ...); a
  query with several true spans becomes several, `<query id>#1`, `#2`, ...

Strangers write these files. A record that cannot be used never stops a reader: it becomes a problem
that names it, and `require_good` reports all problems of all files at once.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from revisionllm.constants import MAX_SENTENCE, VIDEO_PLACEHOLDER
from revisionllm.errors import UserError
from revisionllm.files import is_number
from revisionllm.formats.questions import QUESTIONS, clean_query, plain_text, question_text

log = logging.getLogger(__name__)

# Annotations round and containers differ: an event may end this much after its film.
DURATION_SLACK_S = 1.0
# formats of `registry.py` that are read here, record by record, whatever else a file holds
OWN_FORMATS = ("mad", "cone", "vidchapters", "qvhighlights")
_QUESTION_PATTERNS = [
    re.compile(re.escape(text).replace(re.escape("{query}"), "(.*)"), re.DOTALL)
    for text in QUESTIONS.values()
]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One sentence and where it is true: seconds `[start_s, end_s)` of a film of `duration_s`.

    Both times are NaN if the sentence is true of nothing in its film (only where `read_annotations`
    is told that this may be).
    """

    query_id: str
    video_id: str
    sentence: str
    start_s: float
    end_s: float
    duration_s: float

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """The true span in a list; empty if there is none."""
        return [] if math.isnan(self.start_s) else [(self.start_s, self.end_s)]


def by_film(annotations: Sequence[Annotation]) -> list[tuple[str, list[Annotation]]]:
    """Annotations by film, in file order."""
    films: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        films.setdefault(annotation.video_id, []).append(annotation)
    return list(films.items())


@dataclass(frozen=True)
class AnnotationFile:
    """What a file held: usable annotations in file order, and a line per problem."""

    path: Path
    annotations: list[Annotation]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class _Record:
    """The fields of one query as found, whatever they are."""

    query_id: Any
    video_id: Any
    sentence: Any
    times: Any
    duration_s: Any


def read_annotations(
    path: str | Path,
    *,
    absent_ok: bool = False,
    length_of: Callable[[str], float | None] | None = None,
) -> AnnotationFile:
    """Read the annotations of a file in any of the formats above.

    Args:
        absent_ok: empty `timestamps` say that the sentence is true of nothing in its film, which
            evaluation wants to ask too; otherwise they are a problem.
        length_of: a film's length in seconds, for formats that do not say it.

    Raises:
        UserError: the file is missing or is no JSON at all; problems of single records are returned
            (see `require_good`).
    """
    annotations: list[Annotation] = []
    problems: list[str] = []
    for record in _checked_records(Path(path), problems):
        if record.duration_s is None and length_of is not None and _is_id(record.video_id):
            record = replace(record, duration_s=length_of(str(record.video_id)))
        absent = absent_ok and record.times == []
        timed = replace(record, times=[0.0, record.duration_s]) if absent else record
        found = _sentence_problems(record) + _time_problems(timed)
        if found:
            problems.append(f"query {_shown(record.query_id)}: {', '.join(found)}")
            continue
        duration_s = float(record.duration_s)
        start_s, end_s = (min(float(time_s), duration_s) for time_s in timed.times)
        if absent:
            start_s = end_s = math.nan
        query_id, video_id = str(record.query_id), str(record.video_id)
        annotations.append(
            Annotation(query_id, video_id, record.sentence, start_s, end_s, duration_s)
        )
    return AnnotationFile(Path(path), annotations, problems)


def read_sentences(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Query id -> sentence of a file, and its problems; times are neither needed nor looked at."""
    sentences: dict[str, str] = {}
    problems: list[str] = []
    for record in _checked_records(Path(path), problems):
        found = _sentence_problems(record)
        if found:
            problems.append(f"query {_shown(record.query_id)}: {', '.join(found)}")
        else:
            sentences[str(record.query_id)] = record.sentence
    return sentences, problems


def require_good(path: str | Path, problems: list[str], *, skip_bad: bool) -> None:
    """Log every problem; go on without those records only if `skip_bad`.

    Raises:
        UserError: there are problems and `skip_bad` is off.
    """
    for problem in problems:
        log.warning("%s: %s", path, problem)
    if problems and not skip_bad:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(
            f"{len(problems)} problems in {path}, all listed above ({shown}); mend them or leave"
            " those queries out with --skip_bad"
        )
    if problems:
        log.warning("%s: skipped %d bad records", path, len(problems))


def training_record(annotation: Annotation, source: str) -> dict[str, Any]:
    """One item of the training JSON, as the released converters have it; rounded to 0.1 s."""
    question = plain_text(question_text(annotation.sentence, "frames"))
    return {
        "query_id": annotation.query_id,
        "id": annotation.video_id,
        "conversations": [
            {"from": "human", "value": f"{VIDEO_PLACEHOLDER}\n{question}"},
            {"from": "gpt", "value": "From <s0> to <e0>."},
        ],
        "meta": {
            "duration": annotation.duration_s,
            "token": {"<s0>": round(annotation.start_s, 1), "<e0>": round(annotation.end_s, 1)},
        },
        "source": source,
    }


def evaluation_record(annotation: Annotation) -> dict[str, Any]:
    """The value of one query in the evaluation JSON."""
    return {
        "movie": annotation.video_id,
        "sentence": annotation.sentence,
        "timestamps": [annotation.start_s, annotation.end_s],
        "movie_duration": annotation.duration_s,
    }


# --- from bytes to records ---


def _checked_records(path: Path, problems: list[str]) -> Iterator[_Record]:
    """Records with a usable query id, each id once; everything else becomes a problem."""
    seen: set[str] = set()
    for record in _records(path, problems):
        query_id = record.query_id
        if not _is_id(query_id):
            problems.append(f"film {_shown(record.video_id)}: a query without id")
        elif str(query_id) in seen:
            problems.append(f"query {_shown(query_id)}: this id occurs again")
        else:
            seen.add(str(query_id))
            yield record


def _records(path: Path, problems: list[str]) -> Iterator[_Record]:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read annotations {path}: {reason}") from error
    other = _other_format(path)
    if other is not None:
        yield from _of_other_format(other, path, problems)
        return
    if path.suffix == ".jsonl":
        yield from _parse_each(_json_lines(data, problems), _line_records, problems)
        return
    try:
        document = _parse_json(data, problems)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if isinstance(document, list):
        labelled = ((f"item {index}", item) for index, item in enumerate(document))
        yield from _parse_each(labelled, _training_item, problems)
    elif isinstance(document, dict):
        labelled = ((f"query {_shown(key)}", (key, value)) for key, value in document.items())
        yield from _parse_each(labelled, _mad_item, problems)
    else:
        raise UserError(f"{path} holds {type(document).__name__}, not annotations")


def _other_format(path: Path) -> Any:
    """The format of `registry.py` of a file that is none of those read here, or None."""
    from revisionllm.formats import registry

    try:
        found = registry.detect(path, registry.ANNOTATIONS)
    except UserError:  # broken, or ours: the readers below say what is wrong
        return None
    return None if found.name in OWN_FORMATS else found


def _of_other_format(found: Any, path: Path, problems: list[str]) -> Iterator[_Record]:
    queries, bad = found.read(path)
    problems.extend(f"line {problem.line}: {problem.what}" for problem in bad)
    for query in queries:
        spans = query.spans.tolist()
        if len(spans) < 2:
            times = spans[0] if spans else []
            yield _Record(query.qid, query.vid, query.query, times, query.duration_s)
        for number, span in enumerate(spans if len(spans) > 1 else [], 1):
            query_id = f"{query.qid}#{number}"
            yield _Record(query_id, query.vid, query.query, span, query.duration_s)


def _parse_json(data: bytes, problems: list[str]) -> Any:
    """JSON that may hold NaN, repeated keys and bytes that are not UTF-8: the checks name those."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            problems.extend(
                f"query {_shown(key)}: this id occurs {count} times"
                for key, count in counts.items()
                if count > 1
            )
        return made

    try:
        text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")  # Excel's mark
        return json.loads(text, object_pairs_hook=as_dict)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _json_lines(data: bytes, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _parse_json(line, problems)
        except ValueError as error:
            problems.append(f"line {number}: not valid JSON ({error})")


def _parse_each(
    labelled: Iterable[tuple[str, Any]],
    parse: Callable[[Any], Iterable[_Record]],
    problems: list[str],
) -> Iterator[_Record]:
    """Records of each item; an item of another shape is a problem with its label."""
    for label, item in labelled:
        try:
            records = list(parse(item))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"{label}: not an annotation ({reason})")
            continue
        yield from records


def _mad_item(item: tuple[str, Any]) -> Iterator[_Record]:
    key, value = item
    yield _Record(
        key,
        value["movie"],
        value["sentence"],
        value.get("timestamps"),
        value.get("movie_duration"),
    )


def _line_records(line: Any) -> Iterator[_Record]:
    if "query_id" in line:  # MAD; text extraction wants no more than id and query
        video = line.get("clip_id", line.get("video_id"))
        times, duration_s = line.get("timestamps"), line.get("duration")
        yield _Record(line["query_id"], video, line["query"], times, duration_s)
        return
    video, duration_s, windows = line["vid"], line["duration"], line["relevant_windows"]
    if "qid" in line:
        yield _Record(line["qid"], video, line["query"], _only(windows), duration_s)
        return
    if len(line["query"]) != len(windows):
        raise ValueError(
            f"film {_shown(video)}: {len(line['query'])} queries and {len(windows)} windows"
        )
    for index, (sentence, window) in enumerate(zip(line["query"], windows, strict=True)):
        yield _Record(f"{video}_{index}", video, sentence, _only(window), duration_s)


def _only(windows: Any) -> Any:
    """The one window `[s, e]` of `[[s, e]]`; `[s, e]` itself is taken as well."""
    if isinstance(windows, list) and len(windows) == 1:
        return windows[0]
    return windows


def _training_item(item: Any) -> Iterator[_Record]:
    meta = item["meta"]
    token = meta["token"]
    sentence = _asked_sentence(item["conversations"][0]["value"])
    times = [token["<s0>"], token["<e0>"]]
    yield _Record(item["query_id"], item["id"], sentence, times, meta["duration"])


def _asked_sentence(question: str) -> str:
    """The sentence inside a training item's question, with the full stop that questions leave out.

    So the same question is asked again whatever the sentence ends with.
    """
    text = question.replace(VIDEO_PLACEHOLDER, "", 1).strip()
    for pattern in _QUESTION_PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            return f"{match[1]}."
    raise ValueError(f"unknown question {text[:60]!r}")


# --- what can be wrong with a record ---


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or type(value) is int


def _sentence_problems(record: _Record) -> list[str]:
    found = []
    if not isinstance(record.sentence, str):
        found.append(f"the sentence is {_shown(record.sentence)}")
    elif not clean_query(record.sentence):
        found.append("the sentence is empty")
    elif len(record.sentence) > MAX_SENTENCE:
        found.append(f"the sentence has {len(record.sentence)} characters, over {MAX_SENTENCE}")
    texts = (record.query_id, record.video_id, record.sentence)
    if not all(_is_unicode(text) for text in texts if isinstance(text, str)):
        found.append("not UTF-8 text")
    return found


def _time_problems(record: _Record) -> list[str]:
    found = [] if _is_id(record.video_id) else [f"the film is {_shown(record.video_id)}"]
    duration_s = record.duration_s
    if not is_number(duration_s) or duration_s <= 0:
        return [*found, f"the film's duration is {_shown(duration_s)}"]
    times = record.times
    if not isinstance(times, list) or len(times) != 2 or not all(map(is_number, times)):
        return [*found, f"the times are {_shown(times)}, not [start, end] in seconds"]
    start_s, end_s = times
    if end_s < start_s:
        found.append(f"times reversed, {start_s:g} > {end_s:g}")
    if start_s < 0:
        found.append(f"starts at {start_s:g} s")
    if max(start_s, end_s) > duration_s + DURATION_SLACK_S:
        found.append(f"times {start_s:g}..{end_s:g} s go beyond the film's {duration_s:g} s")
    return found


def query_problems(
    query_id: Any, video_id: Any, sentence: Any, spans_s: list, duration_s: float | None
) -> list[str]:
    """What is wrong with a query of any format: the checks that every command applies.

    Args:
        spans_s: true spans; none where it is true of nothing, or where they are not known.
        duration_s: None: the format does not say how long the film is.
    """
    known_s = duration_s
    if duration_s is None:
        known_s = max((span[1] for span in spans_s), default=0.0) or 1.0
    records = [
        _Record(query_id, video_id, sentence, span, known_s) for span in spans_s or [[0.0, 0.0]]
    ]
    found = _sentence_problems(records[0])
    found += [problem for record in records for problem in _time_problems(record)]
    return list(dict.fromkeys(found))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shown(value: Any) -> str:
    """A value for a message: short, plain ASCII."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."
