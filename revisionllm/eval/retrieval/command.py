"""The two metric commands: read what the eval launchers left, filter, rank, print, write files.

Shared by metric_retrieval_forward.py (MAD) and metric_retrieval_forward_chapters.py. Field
convention by default; `--convention released` reproduces the released scripts digit for digit.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.eval.retrieval import filter as retrieval_filter
from revisionllm.eval.retrieval import released
from revisionllm.files import MADE_BY, claim_outputs, write_json, write_text
from revisionllm.formats.log_windows import RELEASED_FRAMES
from revisionllm.metrics.scoring import Accounting
from revisionllm.options import Parser
from revisionllm.records.rankings import LabelledQuery

HEADER = "====================== Grounding ======================"


@dataclass(frozen=True)
class MetricDefaults:
    """Where a data set's launchers leave their predictions, and which blocks are printed."""

    grounding_path: str
    retrieval_path: str
    retrieval_path2: str | None
    launchers: tuple[str, str, str]  # make dense, long_100, long_33
    also_without_retrieval: bool  # the chapters script prints a first block without the filter
    window_s: float  # of released logs, which do not say it


def metric_parser(defaults: MetricDefaults, description: str) -> argparse.ArgumentParser:
    """The flags of the released scripts, and ours."""
    parser = Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    paths = "run folder, folder of predictions (ours or released logs) or one of our JSONL files"
    parser.add_argument("--grounding_path", default=defaults.grounding_path, help=f"dense: {paths}")
    parser.add_argument(
        "--retrieval_path", default=defaults.retrieval_path, help=f"long 100: {paths}"
    )
    parser.add_argument(
        "--retrieval_path2",
        default=defaults.retrieval_path2,
        help=f"long 33, or 'none' for a single retrieval: {paths}",
    )
    shards = (
        "shards there should be; 0: the single file predictions.txt; unset: those that are there"
    )
    parser.add_argument("--distributed_grounding", type=int, help=f"dense {shards}")
    parser.add_argument("--distributed_retrieval", type=int, help=f"retrieval {shards}")
    parser.add_argument(
        "--convention",
        choices=("field", "ours", "released"),
        default="field",
        help="field: unrounded IoU, >=, failed queries are misses; released: the old numbers",
    )
    parser.add_argument(
        "--data_path",
        help="annotations, in any format of `revisionllm convert-data`; with released "
        "logs they give unrounded IoU and the queries that were never answered",
    )
    parser.add_argument(
        "--window_s", type=float, default=defaults.window_s, help="of released logs"
    )
    parser.add_argument(
        "--frames_per_window",
        type=int,
        default=RELEASED_FRAMES,
        help="of released logs; the released chapters evaluation used 100",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace metrics.* that this project did not make"
    )
    parser.add_argument("--output_dir", help="where metrics.json and .csv go (dense predictions)")
    return parser


def run_metrics(args: argparse.Namespace, defaults: MetricDefaults) -> int:
    """Read the stages, score them in the chosen convention, print and write. Returns 0."""
    second = None if args.retrieval_path2 in (None, "", "none", "None") else args.retrieval_path2
    for name in ("grounding_path", "retrieval_path"):
        if not getattr(args, name):
            raise UserError(f"--{name} is empty; give a run folder or a file")
    logs = retrieval_filter.LogArithmetic(args.window_s, args.frames_per_window)
    wanted = [
        (args.grounding_path, "dense", args.distributed_grounding),
        (args.retrieval_path, "long_100", args.distributed_retrieval),
    ]
    if second is not None:
        wanted.append((second, "long_33", args.distributed_retrieval))
    accounting = Accounting()
    stages = []
    for (path, name, count), command in zip(wanted, defaults.launchers, strict=False):
        stage = retrieval_filter.read_stage(
            path, name, command, num_shards=count, logs=logs, data_path=args.data_path
        )
        accounting.problems += stage.problems
        if any(problem.what == "missing shard" for problem in stage.problems):
            accounting.notes.append(f"missing shards of {name}: {command} makes them (it resumes)")
        stages.append(stage)
    dense, *retrieval = stages
    folder = Path(args.output_dir) if args.output_dir else dense.folder
    claim_outputs(
        folder,
        ("metrics.json", "metrics.csv"),
        mark="metrics.json",
        inputs=[args.grounding_path, args.retrieval_path, second, args.data_path],
        overwrite=args.overwrite,
    )
    score = _released_blocks if args.convention == "released" else _field_blocks
    blocks = score(dense, retrieval, args, defaults.also_without_retrieval, accounting)
    for line in accounting.lines():
        print(line, file=sys.stderr)
    _write(folder, blocks, args.convention, accounting)
    return 0


def _released_blocks(
    dense: retrieval_filter.StageAnswers,
    retrieval: Sequence[retrieval_filter.StageAnswers],
    args: argparse.Namespace,
    also_without_retrieval: bool,
    accounting: Accounting,
) -> list[dict]:
    if dense.rankings or any(stage.rankings for stage in retrieval):
        raise UserError("--convention released reads released logs only; these are our predictions")
    second = retrieval[1].rows if len(retrieval) > 1 else None
    blocks = []
    for with_retrieval in (False, True) if also_without_retrieval else (True,):
        block, notes = released.combine(
            dense.rows, retrieval[0].rows, second, with_retrieval=with_retrieval
        )
        print("\n".join(block.lines(args.grounding_path)))
        accounting.notes += [note for note in notes if note not in accounting.notes]
        blocks.append({"with_retrieval": with_retrieval, "share_kept": block.share} | block.metrics)
    _note_released_losses(dense, retrieval, accounting)
    return blocks


def _note_released_losses(
    dense: retrieval_filter.StageAnswers,
    retrieval: Sequence[retrieval_filter.StageAnswers],
    accounting: Accounting,
) -> None:
    """Name what the released scripts drop or count twice without a word."""
    ids = [row.query_id for row in dense.rows]
    retrieved = {row.query_id for row in retrieval[0].rows}
    lost = [qid for qid in dict.fromkeys(ids) if qid not in retrieved]
    twice = [qid for qid, count in Counter(ids).items() if count > 1]
    if lost:
        accounting.notes.append(f"{len(lost)} queries are not in the retrieval logs and vanish")
    if twice:
        accounting.notes.append(f"{len(twice)} queries are counted more than once: {twice[:5]}")


def _field_blocks(
    dense: retrieval_filter.StageAnswers,
    retrieval: Sequence[retrieval_filter.StageAnswers],
    args: argparse.Namespace,
    also_without_retrieval: bool,
    accounting: Accounting,
) -> list[dict]:
    truth = _read_truth(args.data_path)
    cut = sum(released.is_malformed(text) for row in dense.rows for text in row.answers)
    if cut:
        accounting.notes.append(f"{cut} answers are neither a span nor Not Present: left out")
    if dense.rows and truth is None:
        accounting.notes.append("IoU as logged, two decimals: --data_path gives unrounded ones")
    answers, absent = retrieval_filter.dense_answers(dense, truth, accounting)
    ranges = [retrieval_filter.retrieved_ranges(stage, accounting) for stage in retrieval]
    qids = _all_queries(answers, absent, ranges, truth)
    if not qids:
        raise UserError("no query to score: the dense predictions are empty")
    _account(answers, qids, ranges, absent, accounting)
    blocks = []
    for with_retrieval in (False, True) if also_without_retrieval else (True,):
        result = retrieval_filter.filter_and_score(answers, qids, ranges if with_retrieval else [])
        _print_field(result, args.grounding_path, with_retrieval)
        counts = {"share_kept": result.share, "fallbacks": result.num_fallbacks}
        blocks.append({"with_retrieval": with_retrieval} | counts | result.metrics)
    print(f"failed queries: {len(accounting.failed)}")
    print(f"missing queries: {len(accounting.missing)}")
    return blocks


def _read_truth(data_path: str | None) -> dict[str, LabelledQuery] | None:
    if data_path is None:
        return None
    from revisionllm.formats.registry import read_queries

    queries, problems = read_queries(data_path)
    if problems:
        raise UserError(f"{problems[0]} ({len(problems)} such lines in the annotations)")
    return {query.qid: query for query in queries}


def _all_queries(
    answers: Mapping[str, retrieval_filter.DenseAnswers],
    absent: Sequence[str],
    ranges: Sequence[Mapping],
    truth: Mapping[str, LabelledQuery] | None,
) -> list[str]:
    """Every query that counts: annotated, or answered by a stage; absent events do not."""
    if truth is not None:
        return [qid for qid, query in truth.items() if len(query.spans)]
    everyone = dict.fromkeys([*answers, *(qid for retrieved in ranges for qid in retrieved)])
    left_out = set(absent)
    return [qid for qid in everyone if qid not in left_out]


def _account(
    answers: Mapping[str, retrieval_filter.DenseAnswers],
    qids: Sequence[str],
    ranges: Sequence[Mapping],
    absent: Sequence[str],
    accounting: Accounting,
) -> None:
    names = ("--retrieval_path", "--retrieval_path2")
    accounting.missing += [q for q in qids if q not in answers or q not in ranges[0]]
    failed = [q for q in qids if q in answers and q in ranges[0] and ranges[0][q] is None]
    accounting.failed = list(dict.fromkeys(accounting.failed + failed))
    for name, retrieved in zip(names, ranges, strict=False):
        lacking = [qid for qid in qids if qid in answers and qid not in retrieved]
        if lacking:
            accounting.notes.append(f"{len(lacking)} queries are not in {name}: {lacking[:5]}")
    if absent:
        accounting.notes.append(f"{len(absent)} queries have no event in their film: not ranked")


def _print_field(result: retrieval_filter.FieldResult, path: str, with_retrieval: bool) -> None:
    print(f"buffer:  {0 if with_retrieval else -1}")
    print(path)
    print(f"share of windows kept: {result.share:.4f}")
    print(HEADER)
    print(f"Found {result.num_queries} logs")
    for name, value in result.metrics.items():
        print(f"{name}: {value:.2f}")
    if with_retrieval:
        print(f"nothing retrieved, scored unfiltered: {result.num_fallbacks}")


def _write(folder: Path, blocks: list[dict], convention: str, accounting: Accounting) -> None:
    """metrics.json and metrics.csv; with `released` also the old scripts' result_retrieval.txt."""
    report = {
        "made_by": MADE_BY,
        "convention": convention,
        "blocks": blocks,
        "counts": accounting.counts(),
    }
    write_json(folder / "metrics.json", report)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["with_retrieval", "name", "value"])
    for block in blocks:
        flag = str(block["with_retrieval"]).lower()
        writer.writerows([flag, k, v] for k, v in block.items() if k != "with_retrieval")
    write_text(folder / "metrics.csv", table.getvalue())
    print(f"wrote {folder / 'metrics.json'} and metrics.csv", file=sys.stderr)
    if convention == "released":
        scores = {k: v for k, v in blocks[-1].items() if k == "mIoU" or k.startswith("R")}
        write_text(folder / "result_retrieval.txt", json.dumps(scores))
