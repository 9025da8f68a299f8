"""`revisionllm convert-data SRC DST --from F --to F`: between the field's file formats.

revisionllm convert-data MAD_test.json mad_test.jsonl --from mad --to cone
revisionllm convert-data predictions.jsonl submission.jsonl --to moment-detr
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.files import claim_output
from revisionllm.formats.log_windows import add_log_arguments, log_arithmetic

KINDS = {"annotations": "queries", "predictions": "answers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    from revisionllm.formats.registry import names

    known = ", ".join(names())
    parser.add_argument("source", metavar="SRC", help="file to read (released logs: their folder)")
    parser.add_argument("target", metavar="DST", help="file to write; it must not exist yet")
    parser.add_argument("--from", dest="source_format", help=f"detected if unset: {known}")
    parser.add_argument("--to", dest="target_format", required=True, help=f"one of: {known}")
    parser.add_argument(
        "--annotations",
        help="ground truth that fills in what the source lacks (film, length, spans)",
    )
    add_log_arguments(parser)
    parser.add_argument(
        "--nested-spans",
        action="store_true",
        help="timelens only: [[s, e]] in the keys, as lmms-eval reads it (unset: [s, e])",
    )
    parser.add_argument("--fps", type=float, help="frames per second of the features (snag only)")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="convert the rest when lines of the source cannot be read (they are named either way)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0. Raises UserError for whatever the user can mend."""
    from revisionllm.formats import registry

    target = registry.FORMATS.get(args.target_format)
    if target is None or target.write is None:
        raise UserError(f"cannot write {args.target_format!r}; --to takes: {_writable(registry)}")
    claim_output(args.target, inputs=[args.source, args.annotations], overwrite=True)
    if Path(args.target).exists() and not args.overwrite:
        raise UserError(f"{args.target} exists; --overwrite replaces it")
    queries = registry.read_queries(args.annotations)[0] if args.annotations else []
    if target.kind == registry.ANNOTATIONS:
        items, problems = registry.read_queries(args.source, args.source_format)
        registry.fill_in_queries(items, queries)
    else:
        logs = log_arithmetic(args)
        items, problems = registry.read_rankings(args.source, args.source_format, queries, logs)
    for problem in problems:
        print(f"not used: {problem}", file=sys.stderr)
    if problems and not args.skip_bad:
        raise UserError(
            f"{len(problems)} lines of {args.source} cannot be read; --skip-bad drops them"
        )
    if not items:
        raise UserError(f"{args.source} holds nothing to convert")
    options = {"snag": {"fps": args.fps}, "timelens": {"nested_spans": args.nested_spans}}
    target.write(Path(args.target), items, **options.get(args.target_format, {}))
    print(f"{len(items)} {KINDS[target.kind]} written to {args.target} ({args.target_format})")
    return 0


def _writable(registry) -> str:
    return ", ".join(name for name, format_ in registry.FORMATS.items() if format_.write)
