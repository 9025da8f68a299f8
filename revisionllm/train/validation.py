"""A look at validation data while training: loss by kind of question, and recall by a real search.

Both are of a fixed part of the queries (whole films in a fixed order, until there are enough), the
same at every look, in every run and on any number of devices; training draws no other numbers for
it. The run that did best so far is kept in `<run>/best`, a run folder as any.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from revisionllm.data.stores.lmdb_records import read_query
from revisionllm.files import write_json
from revisionllm.formats.annotations import Annotation, by_film
from revisionllm.metrics.recall import hit_table, iou_table
from revisionllm.records.films import Film, Query
from revisionllm.train.dataset import GroundingDataset
from revisionllm.train.run_log import VALIDATION, append_line, drop_lines_after, read_lines
from revisionllm.train.sampler import Ring

log = logging.getLogger("revisionllm.train")

BEST = "best"
RANKS, IOU = (1, 5), 0.5


def fixed_part(annotations: Sequence[Annotation], count: int) -> list[Annotation]:
    """At most `count` annotations: film after film, in an order that their names alone decide."""

    def place(annotation: Annotation) -> str:
        return hashlib.sha256(annotation.video_id.encode()).hexdigest()

    return sorted(annotations, key=place)[:count]


def is_searched(config) -> bool:
    """Does a run of its stage answer a search alone? A sparse one is trained for others."""
    return config.stage in ("dense", "long")


def _plan(config, duration_s: float):
    from revisionllm.search.cost import Plan
    from revisionllm.search.plans import every_window, long_level

    if config.stage == "dense":
        return every_window(config).plans(duration_s)[0]
    return Plan("segments", (long_level(config),), "exhaustive")


def search_questions(dataset: GroundingDataset, config) -> int:
    """How often one search asks about a window, or about a row of segments."""
    total = 0
    for _, asked in by_film(dataset.annotations):
        level = _plan(config, asked[0].duration_s).levels[0]
        rows = math.ceil(len(level.grid(asked[0].duration_s)) / level.group_size)
        total += len(asked) * rows
    return total


def hits(config, predictions: Sequence) -> np.ndarray:
    """[Q, 2] bool, whether rank 1 and ranks 1 to 5 hold a hit: IoU of at least 0.5 with a true
    span; of a long run's ranges, which are longer than events, one that holds an event's middle."""
    spans = [
        np.array([(m.start_s, m.end_s) for m in p.moments]).reshape(-1, 2) for p in predictions
    ]
    truth = [np.array(p.gt) for p in predictions]
    if config.stage == "dense":
        table = iou_table(spans, truth, max_rank=max(RANKS))
    else:
        table = iou_table(spans, truth, max_rank=max(RANKS), iou=holds_middle)
    return hit_table(table, ranks=RANKS, thresholds=[IOU])[:, 0]


def holds_middle(ranges: np.ndarray, events: np.ndarray) -> np.ndarray:
    """1.0 where a range [..., 2] holds the middle of an event [..., 2], else 0.0."""
    middle = events.mean(-1)
    return ((ranges[..., 0] <= middle) & (middle <= ranges[..., 1])).astype(np.float64)


class Validation(TrainerCallback):
    """Looks every so many steps, on all processes together.

    Args:
        trainer: `GroundingTrainer`.
        dataset: of `fixed_part`.
        every: steps between two looks; the last step has one, too.
        collate: samples to a batch.
        searches: measure recall, too.
        keep: writes a run folder; called by all processes.
        run_log: told how long a look took; None on other processes than the main one.
    """

    def __init__(
        self,
        trainer: Any,
        dataset: GroundingDataset,
        *,
        every: int,
        collate: Any,
        searches: bool,
        keep: Callable[[Path], None],
        run_log: Any = None,
    ) -> None:
        self.trainer, self.dataset, self.every, self.collate = trainer, dataset, every, collate
        self.searches, self.keep, self.run_log = searches, keep, run_log
        self.config = trainer.model.model.config
        self.run = Path(trainer.args.output_dir)

    @property
    def is_main(self) -> bool:
        """The process that writes."""
        return self.trainer.args.process_index == 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_main:
            drop_lines_after(self.run / VALIDATION, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self.every and step != state.max_steps:
            return
        from revisionllm.train.trainer import random_state, set_random_state

        started, kept = time.monotonic(), random_state()
        if self.run_log is not None:
            self.run_log.pauses()
        # the search takes the memory that the step has left
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            self.look(step, state.max_steps)
        finally:
            set_random_state(kept)
            self.trainer.model.train()
        seconds = time.monotonic() - started
        if self.run_log is not None:
            self.run_log.paused(seconds, self.every)

    def look(self, step: int, max_steps: int) -> None:
        """Measure, write and keep the run if it is the best so far."""
        started = time.monotonic()
        record: dict[str, Any] = {"step": step} | self.losses()
        if self.searches:
            record |= self.recall()
        earlier = read_lines(self.run / VALIDATION)
        best = all(merit(record) > merit(other) for other in earlier)
        if best:
            self.keep_best(record)
        record |= {"is_best": best, "seconds": round(time.monotonic() - started, 1)}
        self.trainer.accelerator.wait_for_everyone()  # all have read what stood there
        if self.is_main:
            append_line(self.run / VALIDATION, record)
            log.info("step %d/%d validation %s", step, max_steps, told(record))
        self.trainer.accelerator.wait_for_everyone()
        self._report(record)

    def _report(self, record: dict[str, Any]) -> None:
        """To what --report_to names; the step's own line is still to come."""
        shown = {f"eval_{k}": v for k, v in record.items() if k not in ("step", "is_best")}
        control = self.trainer.control
        should_log = control.should_log
        self.trainer.log({name: value for name, value in shown.items() if value is not None})
        control.should_log = should_log

    @torch.no_grad()
    def losses(self) -> dict[str, float | None]:
        """Mean loss of all questions, and of either kind."""
        trainer, dataset = self.trainer, self.dataset
        model = trainer.model.eval()
        size, world = trainer.args.per_device_train_batch_size, trainer.args.world_size
        sums = torch.zeros(2, 2, dtype=torch.float64)  # (not present, present) x (loss, count)
        for output in dataset.spec.outputs:
            plans = dataset.plans(0, output)
            ring, total = Ring(plans, np.arange(len(plans))), int(plans.sizes.sum())
            for first in range(0, total, size * world):
                first += size * trainer.args.process_index
                # all processes run equally many passes; what is past the end does not count
                batch = self.collate([dataset[plan] for plan in ring.cut(first, size)])
                batch = trainer._prepare_inputs(batch)
                with trainer.compute_loss_context_manager():
                    found = model(**batch)
                real = max(0, min(size, total - first))
                present = batch["present"][:real].cpu()
                values = found[:real].double().cpu()
                for kind in (0, 1):
                    chosen = values[present == bool(kind)]
                    sums[kind] += torch.tensor([float(chosen.sum()), len(chosen)])
        (absent, absents), (present, presents) = self._added(sums).tolist()
        return {
            "loss": (absent + present) / (absents + presents),
            "loss_present": present / presents if presents else None,
            "loss_not_present": absent / absents if absents else None,
        }

    def recall(self) -> dict[str, float]:
        """Share of queries in percent with a hit (see `hits`), by the search with every window."""
        from revisionllm.engine.dense import DenseEngine
        from revisionllm.engine.segments import SegmentEngine
        from revisionllm.search.searcher import Searcher, SearchOptions

        trainer, model = self.trainer, self.trainer.model.model
        if self.config.stage == "dense":
            engines = {"dense": DenseEngine(model)}
        else:
            name = _plan(self.config, self.config.window_s).levels[0].name
            engines = {name: SegmentEngine(model)}
        searcher = Searcher(
            engines,
            self.config,
            SearchOptions(),
            lambda film, _: _plan(self.config, film.duration_s),
        )
        sums = torch.zeros(len(RANKS) + 1, dtype=torch.float64)
        args = trainer.args
        with trainer.compute_loss_context_manager():
            for film, queries in self._films(args.process_index, args.world_size):
                found = hits(self.config, searcher.ground(film, queries))
                sums += torch.tensor([*found.sum(0).tolist(), len(found)], dtype=torch.float64)
        *counts, asked = self._added(sums).tolist()
        name = f"@{IOU:g}" if self.config.stage == "dense" else "@middle"
        return {
            f"R{rank}{name}": 100 * count / asked for rank, count in zip(RANKS, counts, strict=True)
        }

    def _films(self, first: int, step: int) -> Iterator[tuple[Film, list[Query]]]:
        store, text = self.dataset.store, self.dataset.text
        for vid, asked in by_film(self.dataset.annotations)[first::step]:
            queries = []
            for annotation in asked:
                query = Query(annotation.query_id, annotation.sentence, annotation.spans_s)
                if text is not None:
                    words, sentence = read_query(text, annotation.query_id)
                    query = replace(query, words=words, feature=sentence)
                queries.append(query)
            fps = self.dataset.spec.feature_fps
            yield Film(vid, store.read(vid), fps, asked[0].duration_s), queries

    def _added(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        device = self.trainer.args.device
        return self.trainer.accelerator.reduce(sums.to(device), "sum").cpu()

    def keep_best(self, record: dict[str, Any]) -> None:
        """Write the run folder of this step in the place of the best one before."""
        partial, target = self.run / f"{BEST}.partial", self.run / BEST
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self.keep(partial)
        if self.is_main:
            write_json(partial / "validation.json", record)
            replaced = self.run / f"{BEST}.old"
            shutil.rmtree(replaced, ignore_errors=True)
            if target.exists():
                os.replace(target, replaced)
            os.replace(partial, target)
            shutil.rmtree(replaced, ignore_errors=True)


def merit(record: dict[str, Any]) -> tuple[float, float]:
    """What is compared: recall at rank 1 where it is measured, and the lower loss."""
    recall = next((value for name, value in record.items() if name.startswith("R1@")), 0.0)
    return recall, -record["loss"]


def told(record: dict[str, Any]) -> str:
    """A look in words."""
    shown = {k: v for k, v in record.items() if k not in ("step", "seconds", "is_best")}
    parts = [
        f"{name.replace('_', ' ')} {value:.1f}" if name[0] == "R" else f"{name} {value:.4f}"
        for name, value in shown.items()
        if value is not None
    ]
    best = ", the best so far" if record["is_best"] else ""
    return f"{' '.join(parts)} ({record['seconds']:.1f} s{best})"


def cost(dataset: GroundingDataset, config, *, every: int, searches: bool, kept: int) -> str:
    """What validation takes, for the log before the first step.

    Args:
        kept: bytes of a run folder.
    """
    questions = sum(dataset.num_questions(output) for output in dataset.spec.outputs)
    films = len(by_film(dataset.annotations))
    searched = f", {search_questions(dataset, config):,} of the search" if searches else ""
    return (
        f"validation every {every:,} steps: {len(dataset.annotations):,} queries in"
        f" {films:,} films, {questions:,} questions for the loss{searched}; the"
        f" best run is kept in {BEST}/, {kept / 1e6:,.1f} MB"
    )
