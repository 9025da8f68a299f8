"""Predicting for a whole annotation file: films, shards, resuming, merging.

Shards are whole films, so that queries of a film share its work. Each shard appends to its own file
and skips the queries that are already there, if the same run and flags made them (`made_with.py`);
when all are done, the files are merged into `predictions.jsonl`. A query that cannot be answered is
recorded as failed, with its reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.eval.made_with import (
    check_queries,
    check_same,
    made_with,
    own_folder,
    source_flags,
    write_made_with,
)
from revisionllm.model.hub import missing, path_argument, reference_to
from revisionllm.options import Parser
from revisionllm.records.predictions import PredictionWriter, merge_shards, read_predictions

if TYPE_CHECKING:
    from revisionllm.formats.annotations import Annotation
    from revisionllm.records.films import Film, Query
    from revisionllm.search.searcher import Searcher, SearchOptions

FROM_CLIP, NO_TEXT = "clip", "none"


@dataclass(frozen=True)
class PredictionDefaults:
    """What an entry point reads and writes when it is told nothing."""

    checkpoint: str
    stage: str  # folder under <checkpoint>/predictions
    data_path: str = "data/mad/MAD_test.json"
    features: str = "data/mad/CLIP_L14_frames_features_5fps"
    text_features: str = "data/mad/clip_L14_text_features"


def add_prediction_arguments(parser: argparse.ArgumentParser, defaults: PredictionDefaults) -> None:
    """Arguments that all predicting commands share."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=path_argument,
        default=defaults.checkpoint,
        help="run or published checkpoint",
    )
    add("--base", help="of a published checkpoint that does not say: its LLM")
    add("--adapter_file", nargs="+", help="of a published checkpoint: its projector or adapter")
    add("--stage", help="of a published checkpoint: dense, sparse or long")
    add(
        "--data_path",
        nargs="+",
        default=[defaults.data_path],
        help="annotations of the queries, one file or more; empty timestamps: happens nowhere",
    )
    add("--features", default=defaults.features, help="frame features: HDF5, LMDB, .npy folder")
    add(
        "--text_features",
        default=defaults.text_features,
        help="text features by query id (LMDB); clip: by the run's own CLIP; none",
    )
    add(
        "--output",
        help="folder; unset: <checkpoint>/predictions/<stage>, or <stage>-<file> where that holds"
        " those of other annotations",
    )
    add("--num_shards", type=int, help="processes that share the films; unset: one per GPU")
    add("--shard", type=int, help="run this one alone; unset: all, or SLURM array's or torchrun's")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 (%(default)s)")
    add("--budget_mb", type=int, help="memory of the engine's batches; unset: by the device")
    add("--queries_per_batch", type=int, default=128, help="asked at once (%(default)s)")
    add(
        "--convention",
        choices=("field", "ours", "released"),
        default="field",
        help="released: its windows, decoding, scores and logs, for comparison (%(default)s)",
    )
    add(
        "--alternate_norm",
        action=argparse.BooleanOptionalAction,
        help="layer norm of alternating output (unset: yes; not with --convention released, whose"
        " evaluation drops it)",
    )
    add("--limit", type=int, help="only so many queries, to try things out")
    add("--threshold", type=float, default=0.5, help="found if the score is at least (%(default)s)")
    add("--top_k", type=int, default=50, help="moments per query (%(default)s)")
    add("--nms_iou", type=float, default=0.5, help="drop moments overlapping more (%(default)s)")
    add(
        "--retry_failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask queries again that failed before (default); also --keep_failed for the opposite",
    )
    add(
        "--keep_failed",
        dest="retry_failed",
        action="store_false",
        help="leave queries alone that failed before",
    )
    add(
        "--skip_bad",
        action="store_true",
        help="leave out annotations with problems instead of stopping",
    )


def predict_all(
    args: argparse.Namespace,
    defaults: PredictionDefaults,
    make_searcher: Callable[[argparse.Namespace], Searcher],
    *,
    script: Sequence[str],
    argv: Sequence[str],
) -> Path | None:
    """Predict for all films, or for one shard of them.

    Args:
        make_searcher: loads models; called only if there is something to do.
        script: the command that started this, to start shards with; argv: its arguments.

    Returns:
        the merged file, or None while other shards are not done.

    Raises:
        UserError: something is missing or contradicts itself.
    """
    _take_shard_from(os.environ, args)
    from revisionllm.formats.annotations import by_film

    annotations = annotations_of(args)
    films = by_film(annotations[: args.limit])
    count = args.num_shards or _num_gpus(args.device)
    if args.shard is not None and not 0 <= args.shard < count:
        raise UserError(f"--shard {args.shard} is not in 0..{count - 1}; give --num_shards too")
    _check_checkpoint(args)
    folder = output_folder(args, defaults.stage)
    shards = [folder / f"shard-{number}-of-{count}.jsonl" for number in range(count)]
    others = sorted(set(folder.glob("shard-*-of-*.jsonl")) - set(shards))
    if others:
        raise UserError(
            f"{others[0]} is of another number of shards; go on with that --num_shards, or move"
            f" {folder} away"
        )
    if args.shard is None and count > 1:
        _start_shards(count, script, argv)
    else:
        number = args.shard or 0
        _predict_shard(args, annotations, films[number::count], shards[number], make_searcher)
    return _merge(shards, folder, {a.query_id for _, asked in films for a in asked})


def output_folder(args: argparse.Namespace, stage: str) -> Path:
    """Where a predicting command writes."""
    if not args.output and reference_to(args.checkpoint) is not None:
        raise UserError("give --output: the checkpoint is of the hub's cache, which is only read")
    default = Path(args.checkpoint) / "predictions" / stage
    return Path(args.output) if args.output else own_folder(default, args.data_path)


def _take_shard_from(environment: Mapping[str, str], args: argparse.Namespace) -> None:
    """Without --shard: the place in a SLURM array, or among torchrun's processes."""
    for shard, count in (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")):
        if args.shard is None and args.num_shards is None and {shard, count} <= set(environment):
            args.shard, args.num_shards = int(environment[shard]), int(environment[count])
            local = environment.get("LOCAL_RANK")
            if local and args.device in ("auto", "cuda") and _num_gpus("cuda") > 1:
                args.device = f"cuda:{local}"


def annotations_of(args: argparse.Namespace) -> list[Annotation]:
    """All annotations of --data_path, in file order; --limit cuts them afterwards."""
    from revisionllm.formats.annotations import read_annotations, require_good

    annotations: list[Annotation] = []
    for path in args.data_path:
        if not Path(path).is_file():
            raise UserError(f"no annotations at {path}; data/README.md says where they go")
        file = read_annotations(path, absent_ok=True, length_of=_feature_lengths(args))
        require_good(path, file.problems, skip_bad=args.skip_bad)
        annotations += file.annotations
    twice = [key for key, count in Counter(a.query_id for a in annotations).items() if count > 1]
    if twice:
        raise UserError(f"query {twice[0]!r} is in more than one of {', '.join(args.data_path)}")
    return annotations


def _feature_lengths(args: argparse.Namespace) -> Callable[[str], float | None]:
    """Films' lengths by their features, for annotations that do not say them; read when asked."""
    known: list[Callable[[str], float | None]] = []

    def length_of(video_id: str) -> float | None:
        if not known:
            from revisionllm.data.stores.feature_store import open_features
            from revisionllm.model.loading import describe
            from revisionllm.train.dataset import store_lengths

            config, _ = describe(args.checkpoint, **source_flags(args))
            known.append(store_lengths(open_features(args.features), config.feature_fps))
        return known[0](video_id)

    return length_of


def _num_gpus(device: str) -> int:
    if device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _start_shards(count: int, script: Sequence[str], argv: Sequence[str]) -> None:
    """One process per GPU; waits for all.

    Raises:
        UserError: shards failed; what they said stands above.
    """
    processes = []
    for number in range(count):
        command = [sys.executable, *script, *argv]
        command += ["--shard", str(number), "--num_shards", str(count)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": _visible_gpu(number)}
        processes.append(subprocess.Popen(command, env=environment))
    try:
        codes = [process.wait() for process in processes]
    except BaseException:  # interrupted or terminated: so are the shards
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    if any(codes):
        failed = [str(number) for number, code in enumerate(codes) if code]
        raise UserError(
            f"shards {', '.join(failed)} of {count} stopped, see above; run this again to resume"
        )


def _visible_gpu(number: int) -> str:
    """The number-th GPU of those that we may use, as a process of its own should see it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return names[number % len(names)] if names else str(number)


def _predict_shard(args, annotations, films, path: Path, make_searcher) -> None:
    """Answer what the shard's file does not answer yet; writes nothing before all is loaded."""
    from revisionllm.search.answer_log import AnswerLog

    made = made_with(args)
    found = read_predictions(path) if path.is_file() else []
    check_same(path.parent, made, has_answers=bool(found))
    # of all annotations: --limit may have been wider before
    check_queries(path, found, {annotation.query_id: annotation for annotation in annotations})
    done = {p.qid for p in found if p.status == "ok" or not args.retry_failed}
    wanted = {a.query_id for _, asked in films for a in asked}
    prepared = _prepare(args, films, make_searcher) if wanted - done else None
    if prepared is not None:
        write_made_with(path.parent, made, args.data_path)
    with PredictionWriter(path) as writer:
        if writer.dropped_torn_line:
            print(f"{path}: dropped a torn last line", file=sys.stderr)
        if args.retry_failed and prepared is not None:
            writer.forget_failed()
        total = sum(a.query_id not in writer.done for _, asked in films for a in asked)
        if not total or prepared is None:
            return
        searcher, source = prepared
        from tqdm import tqdm

        with (
            AnswerLog(path.with_suffix(".answers"), made) as log,
            tqdm(total=total, unit="query", desc=path.stem, file=sys.stderr) as progress,
        ):
            searcher.answer_log = log

            def show(level: str, asked: int, questions: int) -> None:
                progress.set_postfix_str(f"{level}: {asked} of {questions} windows asked")

            log.progress = show
            for vid, asked in films:
                batches = _film_predictions(args, searcher, source, vid, asked, set(writer.done))
                for predictions in batches:
                    for prediction in predictions:
                        if prediction.qid not in writer.done:
                            writer.write(prediction)
                            progress.update()
                    log.clear()


def _prepare(args, films, make_searcher) -> tuple[Searcher, FeatureSource]:
    from revisionllm.data.stores.feature_store import open_features

    store = open_features(args.features)
    searcher = make_searcher(args)
    _check_features(store, [vid for vid, _ in films], searcher.config, args)
    kinds = searcher.plan_for.kinds()
    source = FeatureSource(store, searcher.config, args, "segments" in kinds)
    # sentences too long for the CLIP have no features; dense windows can be asked all the same
    source.text_is_optional = args.skip_bad and kinds == {"dense"}
    source.check_widths(searcher, kinds)
    return searcher, source


def _check_checkpoint(args: argparse.Namespace) -> None:
    if not Path(args.checkpoint).exists():
        said = missing(args.checkpoint, "checkpoint")
        hint = "" if ";" in said else "; checkpoints/README.md says what makes it"
        raise UserError(said + hint)


def _check_features(store, vids: Sequence[str], config, args: argparse.Namespace) -> None:
    """Refuse features of another width or CLIP than the run's, before anything is asked.

    Films without features, or with damaged ones, fail one by one with their reason.

    Raises:
        UserError: names the first film, and how many there are.
    """
    wrong = []
    for vid in vids:
        try:
            count, width = store.shape(vid)
            made_by = store.metadata(vid).get("clip_fingerprint")
        except UserError:
            continue
        if width != config.adapter.feature_dim:
            turned = "; rows and columns swapped?" if count == config.adapter.feature_dim else ""
            wrong.append(
                f"features of {vid!r} are {width} wide, {args.checkpoint} reads"
                f" {config.adapter.feature_dim}{turned}"
            )
        elif made_by and config.clip_fingerprint and made_by != config.clip_fingerprint:
            wrong.append(
                f"features of {vid!r} are of CLIP {made_by}, {args.checkpoint} was trained on those"
                f" of {config.clip_fingerprint}"
            )
    if wrong:
        more = f" (and {len(wrong) - 1} more films)" if len(wrong) > 1 else ""
        raise UserError(f"{args.features}: {wrong[0]}{more}; give the run's own features")


class FeatureSource:
    """Frame features of films and text features of queries, as the flags name them."""

    def __init__(self, store, config, args: argparse.Namespace, needs_words: bool) -> None:
        self.store, self.config = store, config
        self._clip = self._records = None
        self.text_is_optional = False
        if args.text_features == FROM_CLIP:
            from revisionllm.model.clip import load_clip

            if config.clip is None:
                raise UserError(f"{args.checkpoint} names no CLIP; give --text_features FOLDER")
            self._clip = load_clip(config.clip, device=args.device)
        elif args.text_features != NO_TEXT:
            from revisionllm.data.stores.lmdb_records import LmdbRecords

            if not Path(args.text_features).exists():
                raise UserError(
                    f"no text features at {args.text_features}; data/README.md says which"
                    " extractor makes them, --text_features clip computes them now"
                )
            self._records = LmdbRecords(args.text_features)
        elif needs_words:
            raise UserError("segments need the words of the queries: --text_features none")

    def check_widths(self, searcher: Searcher, kinds: set[str]) -> None:
        """Refuse text features that cannot be read, or compared with the frames.

        Raises:
            UserError: names both widths.
        """
        from revisionllm.data.stores.lmdb_records import read_query

        first = next(iter(self._records.keys()), None) if self._records is not None else None
        if first is None:
            return
        words, sentence = read_query(self._records, first)
        models = [getattr(engine, "model", None) for engine in searcher.engines.values()]
        for model in models if "segments" in kinds else ():
            if model is None:  # recorded answers
                continue
            adapter = model.config.adapter
            if adapter.kind == "clip" and adapter.width_of_words != words.shape[1]:
                raise UserError(
                    f"{self._records.path}: words {words.shape[1]} wide, the adapter of"
                    f" {searcher.run} reads {adapter.width_of_words}"
                )
        width = self.config.adapter.feature_dim
        if "cosine" in kinds and len(sentence) != width:
            raise UserError(
                f"sentences are {len(sentence)} wide, frames {width}: features of two encoders have"
                " no cosine; give --no-cosine"
            )

    def film(self, vid: str, duration_s: float) -> Film:
        """A film's features. Raises UserError if they are missing, damaged or of another length."""
        from revisionllm.records.films import Film
        from revisionllm.train.dataset import length_problem

        fps = float(self.store.metadata(vid).get("feature_fps", self.config.feature_fps))
        wrong = length_problem(self.store.num_frames(vid) / fps, duration_s)
        if wrong:
            raise UserError(f"film {vid!r}: {wrong} at {fps:g} per second")
        rows = self.store.read(vid)
        return Film(vid, rows, fps, duration_s, key=vid)

    def query(self, annotation: Annotation) -> Query:
        """A query with its text features. Raises UserError if they are missing."""
        import numpy as np

        from revisionllm.data.stores.lmdb_records import read_query
        from revisionllm.records.films import Query

        query = Query(annotation.query_id, annotation.sentence, annotation.spans_s)
        if self._records is not None:
            try:
                words, feature = read_query(self._records, annotation.query_id)
            except UserError:
                if self.text_is_optional:
                    return query
                raise
            return replace(query, words=words, feature=feature)
        if self._clip is not None:
            tokens, sentence = self._clip.encode_texts([annotation.sentence])
            return replace(
                query, words=np.asarray(tokens[0]), feature=np.asarray(sentence[0]).reshape(-1)
            )
        return query


def _film_predictions(
    args, searcher, source: FeatureSource, vid, asked, done: set[str]
) -> Iterator[list]:
    """Predictions of a film's queries, batch by batch; what cannot be answered is a failure.

    Batches are cut alike whatever is done already, and those that are done whole are left out: last
    digits may depend on the company in which a query is asked.
    """
    from revisionllm.records.films import Query

    if all(annotation.query_id in done for annotation in asked):
        return
    duration_s = asked[0].duration_s

    def failures(annotations, error: Exception) -> list[Any]:
        reason = " ".join(str(error).split()) or type(error).__name__
        queries = [Query(a.query_id, a.sentence, a.spans_s) for a in annotations]
        return [searcher.failed(vid, duration_s, query, reason) for query in queries]

    try:
        film = source.film(vid, duration_s)
    except UserError as error:  # anything else is a fault of ours and stops the run
        yield failures(asked, error)
        return
    for first in range(0, len(asked), args.queries_per_batch):
        queries, batch = [], []
        company = asked[first : first + args.queries_per_batch]
        if all(annotation.query_id in done for annotation in company):
            continue
        for annotation in company:
            try:
                queries.append(source.query(annotation))
                batch.append(annotation)
            except UserError as error:
                yield failures([annotation], error)
        if not queries:
            continue
        try:
            predictions = searcher.ground(film, queries)
        except UserError as error:
            yield failures(batch, error)
            continue
        yield predictions


def _merge(shards: Sequence[Path], folder: Path, wanted: set[str]) -> Path | None:
    """The merged file, once the shards answer all queries."""
    if not all(path.is_file() for path in shards):
        return None
    done = {prediction.qid for path in shards for prediction in read_predictions(path)}
    if not wanted <= done:
        print(f"{len(wanted - done)} queries are left for other shards", file=sys.stderr)
        return None
    merged = folder / "predictions.jsonl"
    predictions = merge_shards(shards, merged)
    failed = [prediction for prediction in predictions if prediction.status == "failed"]
    print(f"{merged}: {len(predictions)} queries, {len(failed)} failed", file=sys.stderr)
    for reason, count in Counter(prediction.reason for prediction in failed).most_common():
        first = next(prediction.qid for prediction in failed if prediction.reason == reason)
        print(f"  failed: {count} queries such as {first}: {reason}", file=sys.stderr)
    if failed and len(failed) == len(predictions):
        raise UserError(f"{merged}: all {len(failed)} queries failed, see above")
    return merged


def load_run(args: argparse.Namespace):
    """The model that the flags name. Raises UserError if it is missing or incomplete."""
    from revisionllm.model.loading import load_model

    flags = source_flags(args)
    model = load_model(args.checkpoint, device=args.device, dtype=args.dtype, **flags)
    keep_norm = (
        args.convention != "released" if args.alternate_norm is None else args.alternate_norm
    )
    if not keep_norm and hasattr(model.projector, "alternate_layer_norm"):
        from torch import nn

        model.projector.alternate_layer_norm = nn.Identity()
    return model


def search_options(args: argparse.Namespace, **others: Any) -> SearchOptions:
    """What the flags say of the search, with the checkpoint's calibration."""
    from revisionllm.model.config import read_calibration
    from revisionllm.search.searcher import SearchOptions

    return SearchOptions(
        threshold=args.threshold,
        top_k=args.top_k,
        nms_iou=args.nms_iou,
        calibration=read_calibration(args.checkpoint),
        **others,
    )


def print_scores(path: Path) -> None:
    """Print the table of `revisionllm eval score` for a predictions file."""
    from revisionllm.eval import cli

    parser = Parser()
    cli.add_arguments(parser)
    cli.run(parser.parse_args(["score", str(path)]))
