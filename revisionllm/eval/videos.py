"""`revisionllm eval videos`: text-to-video retrieval, which video a sentence is about.

revisionllm eval videos data/msrvtt/msrvtt_test.json         # by the encoder alone
revisionllm eval videos ... --checkpoint checkpoints/mad_stage2_long_100
revisionllm eval videos ... --checkpoint RUN --candidates 100     # of the encoder's best alone

The encoder ranks by the cosine of the sentence and the mean of a video's frames. A run of the long
stage reads each video as one segment, as many at once as it was trained with, and is asked "During
which video can we see ...?": a video's score is the probability of an answer whose first number
names it, calibrated where the run folder holds a calibration, and so comparable between batches.
Paper: https://arxiv.org/abs/2411.14901, table 5.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.files import BadRecord, json_digest, lock_file, parse_json
from revisionllm.model.hub import path_argument

if TYPE_CHECKING:
    import numpy as np

    from revisionllm.formats.annotations import Annotation

FOLDER = Path("data/msrvtt")
SCHEMA = "revisionllm.videos/1"
RECALLS = (1, 5, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm eval videos`."""
    add = parser.add_argument
    add("annotations", type=Path, metavar="GT", help="evaluation file: sentences and their videos")
    add(
        "--features",
        default=str(FOLDER / "msrvtt_clipl14_features"),
        help="frame features (%(default)s)",
    )
    add(
        "--text_features",
        default=str(FOLDER / "clip_L14_text_features"),
        help="LMDB of the sentences (%(default)s)",
    )
    add("--checkpoint", type=path_argument, help="run of the long stage; unset: the encoder alone")
    add("--candidates", type=int, help="videos that the LLM is asked about, the encoder's best")
    add("--output", type=Path, help="JSON lines, one per sentence; a rerun goes on with them")
    add("--limit", type=int, help="so many sentences only")
    add("--queries_per_batch", type=int, default=32, help="(%(default)s)")
    add("--budget_mb", type=int, help="memory of the engine's batches, MiB")
    add("--device", default="auto", help="(%(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Rank the videos for every sentence and print the figures; returns the exit code."""
    annotations = _annotations(args)[: args.limit]
    if args.candidates is not None and args.candidates < 1:
        raise UserError(f"--candidates {args.candidates}: at least 1")
    if args.checkpoint and not args.output:
        raise UserError("--checkpoint: give --output FILE.jsonl, so that a rerun can go on")
    library = Videos.read(args.features, sorted({a.video_id for a in annotations}))
    ranks: dict[str, float] = {}
    with _Results(args.output, _made_with(args)) as results:
        ranks |= results.ranks
        waiting = [a for a in annotations if a.query_id not in ranks]
        for annotation, scores in _scored(args, library, waiting):
            row = library.result(annotation, scores)
            results.write(row)
            ranks[annotation.query_id] = row["rank"]
    figures = retrieval_figures([ranks[a.query_id] for a in annotations])
    print(json.dumps(figures) if args.json else as_table(figures, len(library.vids)))
    return 0


def retrieval_figures(ranks: Sequence[float]) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank, of the right videos' ranks (from 1).

    As https://github.com/ArrowLuo/CLIP4Clip counts them, but for ties: a video that shares its
    score with others has the mean of their ranks.
    """
    import numpy as np

    found = np.asarray(ranks, dtype=np.float64)
    figures = {f"R@{k}": float(100 * (found <= k).mean()) for k in RECALLS}
    return figures | {
        "MedR": float(np.median(found)),
        "MnR": float(found.mean()),
        "queries": len(found),
    }


def rank_of(scores: np.ndarray, right: int) -> float:
    """The right one's rank among scores [V], from 1; the mean of those that score the same."""
    own = scores[right]
    return 1 + float((scores > own).sum()) + (float((scores == own).sum()) - 1) / 2


def as_table(figures: dict[str, float], num_videos: int) -> str:
    """The figures as a Markdown table."""
    names = [*(f"R@{k}" for k in RECALLS), "MedR", "MnR"]
    head = f"| {' | '.join(['sentences', 'videos', *names])} |"
    cells = [f"{figures['queries']:,}", f"{num_videos:,}", *(f"{figures[n]:.1f}" for n in names)]
    return f"{head}\n|{' --: |' * len(cells)}\n| {' | '.join(cells)} |"


@dataclass
class Videos:
    """The videos that are searched: one segment each. As a `Film`, second i is video i.

    Attributes:
        vids: ids, sorted.
        features: frame features [T, D] of each.
    """

    vids: list[str]
    features: list[np.ndarray]
    means: np.ndarray = field(repr=False)
    key: str | None = None

    @classmethod
    def read(cls, path: str, vids: Sequence[str]) -> Videos:
        """Read the videos' features.

        Raises:
            UserError: a video has none, or they differ in width.
        """
        import numpy as np

        from revisionllm.data.stores.feature_store import open_features
        from revisionllm.grounding.scores import unit_rows

        store = open_features(path)
        features = [np.asarray(store.read(vid), dtype=np.float32) for vid in vids]
        widths = {rows.shape[1]: vid for vid, rows in zip(vids, features, strict=True)}
        if len(widths) > 1:
            (one, a), (other, b) = list(widths.items())[:2]
            raise UserError(f"{path}: features of {a!r} are {one} wide, of {b!r} {other}")
        means = unit_rows(np.stack([unit_rows(rows).mean(0) for rows in features]))
        return cls(list(vids), features, means.astype(np.float32))

    def window_frames(self, window, config) -> np.ndarray:
        """What a run's model sees of a video: `frames_per_window` frames [F, D], evenly spread."""
        import numpy as np

        rows = self.features[window.index]
        count = config.frames_per_window
        return rows[np.minimum(np.arange(count) * len(rows) // count, len(rows) - 1)]

    def result(self, annotation: Annotation, scores: np.ndarray) -> dict[str, Any]:
        """A sentence's line of --output."""
        import numpy as np

        best = np.argsort(-scores, kind="stable")[: max(RECALLS)]
        return {
            "qid": annotation.query_id,
            "query": annotation.sentence,
            "vid": annotation.video_id,
            "rank": rank_of(scores, self.vids.index(annotation.video_id)),
            "videos": [[self.vids[at], float(scores[at])] for at in best],
        }


def _annotations(args: argparse.Namespace) -> list[Annotation]:
    from revisionllm.formats.annotations import read_annotations, require_good

    if not args.annotations.is_file():
        raise UserError(f"no annotations at {args.annotations}; data/README.md says what makes it")
    file = read_annotations(args.annotations)
    require_good(args.annotations, file.problems, skip_bad=False)
    if not file.annotations:
        raise UserError(f"no annotations in {args.annotations}")
    return file.annotations


def _made_with(args: argparse.Namespace) -> dict[str, Any]:
    from revisionllm.model.fingerprints import run_fingerprint

    about: dict[str, Any] = {
        name: str(Path(getattr(args, name)).resolve())
        for name in ("annotations", "features", "text_features")
    }
    about |= {"candidates": args.candidates}
    if args.checkpoint:
        about["checkpoint"] = run_fingerprint(args.checkpoint)
    return about


def _scored(
    args: argparse.Namespace, library: Videos, annotations: Sequence[Annotation]
) -> Iterator[tuple[Annotation, np.ndarray]]:
    """Each sentence with the scores [V] of all videos."""
    import numpy as np
    from tqdm import tqdm

    from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
    from revisionllm.grounding.scores import unit_rows

    if not Path(args.text_features).exists():
        raise UserError(f"no text features at {args.text_features}; data/README.md says what makes")
    records = LmdbRecords(args.text_features)
    reader = _LlmReader(args, library) if args.checkpoint and annotations else None
    with tqdm(total=len(annotations), unit="sentence", file=sys.stderr) as bar:
        for first in range(0, len(annotations), args.queries_per_batch):
            batch = annotations[first : first + args.queries_per_batch]
            texts = [read_query(records, a.query_id) for a in batch]
            sentences = np.stack([sentence for _, sentence in texts])
            if sentences.shape[1] != library.means.shape[1]:
                raise UserError(
                    f"sentences are {sentences.shape[1]} wide, frames {library.means.shape[1]}:"
                    " features of two encoders have no cosine"
                )
            scores = unit_rows(sentences).astype(np.float32) @ library.means.T
            if reader is not None:
                scores = reader.scores(batch, texts, scores)
            yield from zip(batch, scores, strict=True)
            bar.update(len(batch))


class _LlmReader:
    """Scores videos by a run of the long stage."""

    def __init__(self, args: argparse.Namespace, library: Videos) -> None:
        from revisionllm.engine.segments import SegmentEngine
        from revisionllm.model.config import read_calibration
        from revisionllm.model.loading import load_model

        model = load_model(args.checkpoint, device=args.device)
        config, width = model.config, library.means.shape[1]
        if config.stage != "long" or config.question != "video":
            raise UserError(
                f"{args.checkpoint} is a run of stage {config.stage} that answers"
                f" {config.question!r}; which video is asked of a run of the long stage"
            )
        if config.adapter.feature_dim != width:
            raise UserError(
                f"{args.features}: {width} wide, {args.checkpoint} reads"
                f" {config.adapter.feature_dim}"
            )
        self._library, self._candidates = library, args.candidates
        self._size = config.num_segments
        self._engine = SegmentEngine(model, budget_mb=args.budget_mb)
        self._calibration = read_calibration(args.checkpoint)
        if self._calibration is not None:
            try:
                self._calibration.confidence({"presence": 0.5, "entropy": 0.5, "cosine": 0.5})
            except ValueError as error:
                raise UserError(f"{args.checkpoint}/calibration.json: {error}") from error

    def scores(self, batch, texts, cosines: np.ndarray) -> np.ndarray:
        """Scores [Q, V]; videos that are not asked about stay behind all others, by cosine."""
        import numpy as np

        from revisionllm.grounding.levels import Question
        from revisionllm.grounding.windows import Window
        from revisionllm.records.films import Query

        questions: list[Question] = []
        asked: list[list[int]] = []  # the videos of each question; fillers behind `news`
        news: list[int] = []
        for number, row in enumerate(cosines):
            chosen = np.argsort(-row, kind="stable")[: self._candidates]
            for group in _groups(np.sort(chosen).tolist(), self._size, len(row)):
                shown, fresh = group
                windows = tuple(Window(at, float(at), at + 1.0) for at in shown)
                questions.append(Question(number, windows))
                asked.append(shown)
                news.append(fresh)
        queries = [
            Query(a.query_id, a.sentence, words=words, feature=sentence)
            for a, (words, sentence) in zip(batch, texts, strict=True)
        ]
        answers = self._engine.first_numbers(questions, self._library, queries)
        scores = cosines.astype(np.float64) - 2.0  # below every probability
        for question, shown, fresh, (first, entropy) in zip(
            questions, asked, news, answers, strict=True
        ):
            at = np.array(shown[:fresh])
            found = first[:fresh]
            if self._calibration is not None:
                parts = {"presence": found, "entropy": np.full(fresh, entropy)}
                parts["cosine"] = cosines[question.query, at]
                found = self._calibration.confidence(parts)
            scores[question.query, at] = found
        return scores


def _groups(chosen: list[int], size: int, num_videos: int) -> Iterator[tuple[list[int], int]]:
    """Batches of `size` videos, the last filled up with others: (videos, how many are its own)."""
    for first in range(0, len(chosen), size):
        own = chosen[first : first + size]
        missing = min(size, num_videos) - len(own)
        others = [at for at in range(num_videos) if at not in set(own)] if missing > 0 else []
        fillers = [others[i * len(others) // missing] for i in range(missing)] if others else []
        yield own + fillers, len(own)


class _Results:
    """The lines of --output: written as they come, locked, taken up by a rerun.

    Raises:
        UserError: the file was made with something else, or is none of ours.
    """

    def __init__(self, path: Path | None, made_with: dict[str, Any]) -> None:
        self.ranks: dict[str, float] = {}
        self._file = None
        if path is None:
            return
        from revisionllm.records.jsonl import iter_json_lines
        from revisionllm.records.predictions import cut_torn_line

        head = {"schema": SCHEMA, "made_with": json_digest(made_with)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        lock_file(self._file, f"writes {path}")
        first, *_ = path.read_bytes().split(b"\n", 1)
        if not first:
            self.write(head)
            return
        _check_head(path, first, head)
        cut_torn_line(path)
        rows = [row for _, row in iter_json_lines(path)]
        self.ranks = {row["qid"]: row["rank"] for row in rows[1:]}

    def write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _check_head(path: Path, first: bytes, head: dict[str, Any]) -> None:
    """Refuse a file that begins otherwise, before anything in it is changed."""
    try:
        found = parse_json(first)
    except BadRecord:
        found = None
    if found == head:
        return
    is_ours = isinstance(found, dict) and found.get("schema") == SCHEMA
    what = "made with other files or flags" if is_ours else "not of this command"
    raise UserError(f"{path} is {what}; move it away")
