"""Annotations of the datasets to the two JSON files of training and evaluation.

Used by the `*_to_activitynet.py` of `mad/`, `vidchap7m/` and `retrieval/msrvtt/`; what the files
look like: `annotations.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import MADE_BY, claim_output, read_json, write_noted, write_text
from revisionllm.formats import msrvtt
from revisionllm.formats.annotations import (
    Annotation,
    evaluation_record,
    read_annotations,
    require_good,
    training_record,
)
from revisionllm.formats.registry import read_queries


def add_converter_arguments(
    parser: argparse.ArgumentParser, *, annotations: Path, out: Path
) -> None:
    """Paths and what to do with bad records."""
    parser.add_argument(
        "--annotations",
        type=Path,
        default=annotations,
        help="the dataset's file (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=out, help="new file (default: %(default)s)")
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out bad records, each of them listed, instead of stopping",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that this project did not make"
    )


def read_good(path: Path, *, skip_bad: bool) -> list[Annotation]:
    """The annotations of a file.

    Raises:
        UserError: the file is missing, empty, or has problems (all listed) and `skip_bad` is off.
    """
    if not path.is_file():
        raise UserError(f"annotations not found: {path}; data/README.md says where they come from")
    file = read_annotations(path)
    require_good(path, file.problems, skip_bad=skip_bad)
    if not file.annotations:
        raise UserError(f"no annotations in {path}")
    return file.annotations


def convert_training(args: argparse.Namespace, source: str) -> int:
    """Dataset annotations to the training JSON; returns the exit code."""
    claim_output(args.out, inputs=[args.annotations], overwrite=args.overwrite)
    annotations = read_good(args.annotations, skip_bad=args.skip_bad)
    _write(args.out, [training_record(annotation, source) for annotation in annotations])
    _tell(args.out, annotations)
    return 0


def convert_evaluation(args: argparse.Namespace) -> int:
    """Dataset annotations to the evaluation JSON, queries of the listed videos alone."""
    claim_output(args.out, inputs=[args.annotations, args.videos], overwrite=args.overwrite)
    annotations = read_good(args.annotations, skip_bad=args.skip_bad)
    listed = read_video_list(args.videos)
    chosen = [annotation for annotation in annotations if annotation.video_id in listed]
    others = [annotation for annotation in annotations if annotation.video_id not in listed]
    if others:
        films = sorted({annotation.video_id for annotation in others})
        print(
            f"left out {len(others):,} queries of {len(films):,} videos that {args.videos} does"
            f" not list: {', '.join(films[:5])}{', ...' if len(films) > 5 else ''}",
            file=sys.stderr,
        )
    unasked = listed - {annotation.video_id for annotation in annotations}
    if unasked:
        print(f"{len(unasked):,} videos of {args.videos} have no query", file=sys.stderr)
    if not chosen:
        raise UserError(f"{args.videos} lists none of the videos of {args.annotations}")
    _write(args.out, {a.query_id: evaluation_record(a) for a in chosen})
    _tell(args.out, chosen)
    return 0


def convert_msrvtt(args: argparse.Namespace) -> int:
    """MSR-VTT's files to training and evaluation JSON; returns the exit code."""
    table = Path(args.test) if args.test else None
    inputs = [args.annotations, *([table] if table else [])]
    for out in (args.out, args.test_out):
        claim_output(out, inputs=inputs, overwrite=args.overwrite)
    if args.out.resolve() == args.test_out.resolve():
        raise UserError(f"--out and --test_out are the same file: {args.out}")
    annotations = read_good(args.annotations, skip_bad=args.skip_bad)
    videos, _ = msrvtt.read_videos(args.annotations)
    test = [a for a in annotations if videos[a.video_id][1] == "test"]
    if table is not None:
        if not table.is_file():
            raise UserError(f"no test split at {table}; give --test FILE, or --test '' for none")
        test = _whole_videos(table, videos, skip_bad=args.skip_bad)
    tested = {annotation.video_id for annotation in test}
    train = [annotation for annotation in annotations if annotation.video_id not in tested]
    for chosen, what in ((test, "to test"), (train, "to train on")):
        if not chosen:
            raise UserError(f"{args.annotations} and --test {args.test!r} leave nothing {what}")
    _write(args.out, [training_record(annotation, "msrvtt") for annotation in train])
    _tell(args.out, train)
    _write(args.test_out, {a.query_id: evaluation_record(a) for a in test})
    _tell(args.test_out, test)
    return 0


def _whole_videos(
    table: Path, videos: dict[str, tuple[float, str]], *, skip_bad: bool
) -> list[Annotation]:
    """The sentences of a test split, each about one of `videos` from its start to its end."""
    queries, found = read_queries(table, "msrvtt")
    problems = [f"line {problem.line}: {problem.what}" for problem in found]
    problems += [f"query {q.qid}: no video {q.vid}" for q in queries if q.vid not in videos]
    require_good(table, problems, skip_bad=skip_bad)
    known = [(query, videos[query.vid][0]) for query in queries if query.vid in videos]
    return [Annotation(q.qid, q.vid, q.query, 0.0, end_s, end_s) for q, end_s in known]


def read_video_list(path: Path) -> set[str]:
    """Video ids of a JSON list, or the keys of a JSON object.

    Raises:
        UserError: missing or something else.
    """
    if not path.is_file():
        raise UserError(
            f"list of videos not found: {path}; data/README.md says where it comes from"
        )
    document = read_json(path)
    if not isinstance(document, (list, dict)) or not all(isinstance(v, str) for v in document):
        raise UserError(f"{path} must be a list of video ids, or an object with them as keys")
    return set(document)


def _write(path: Path, document: Any) -> None:
    """Write JSON, one item a line; a list's first item, or a note beside the file, says who did."""
    if isinstance(document, list):
        document = [{**document[0], "made_by": MADE_BY}, *document[1:]]
        opening, closing = "[]"
        items = [json.dumps(item) for item in document]
    else:
        opening, closing = "{}"
        items = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    write = write_text if isinstance(document, list) else write_noted
    write(path, f"{opening}\n" + ",\n".join(items) + f"\n{closing}\n")


def _tell(path: Path, annotations: list[Annotation]) -> None:
    films = {annotation.video_id for annotation in annotations}
    print(f"wrote {path}: {len(annotations):,} queries about {len(films):,} films")
