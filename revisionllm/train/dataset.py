"""Training data of a stage: annotations and features in, samples out.

`build_dataset` checks everything before training starts: all problems of annotations and features
are reported together, and what the stage cannot ask is decided once, counted and told by
`GroundingDataset.report`. `dataset.plans(epoch)` lists an epoch's samples, `dataset[plan]` reads
one; every random choice is in the plan and both are pure functions: workers may be in any order.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from revisionllm.data.stores.feature_store import CONTENTS, FeatureStore, open_features
from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
from revisionllm.errors import UserError
from revisionllm.files import sha256_of
from revisionllm.formats.annotations import Annotation, read_annotations, require_good
from revisionllm.formats.questions import CAPTION_QUESTION, question_text
from revisionllm.records.films import query_rows
from revisionllm.train.packed_windows import packed_windows
from revisionllm.train.samples import (
    FilmEvents,
    SamplePlan,
    SampleSpec,
    align_plan,
    answer_text,
    clear_segments,
    has_negative_window,
    long_plan,
    long_problem,
    make_film,
    question_wording,
    segment_grid,
    window_plan,
)

log = logging.getLogger(__name__)

# Features and annotation may differ this much in a film's length: a wrong rate is off by more.
LENGTH_TOLERANCE = 0.1
LENGTH_SLACK_S = 10.0
# First part of the seeds, so that no two uses of the seed share a stream.
SEED_WINDOWS, SEED_FILMS, SEED_ROWS, SEED_ORDER = range(4)


@dataclass(frozen=True)
class TextQuestion:
    """A question of a sample in words."""

    query_id: str
    text: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """A plan with its features.

    Attributes:
        plan: what it is.
        features: float32 [S, F, D], a row of windows; S = 1 unless long. Repeats are made.
        questions: one per `plan.targets`.
        query_features: `query_rows` [L, D] per question; None if the adapter does not read them.
    """

    plan: SamplePlan
    features: np.ndarray
    questions: tuple[TextQuestion, ...]
    query_features: tuple[np.ndarray, ...] | None


class Plans(Sequence[SamplePlan]):
    """The samples of an epoch; one-question plans are made when asked for, so they cost no memory.

    Attributes:
        sizes: questions per plan, int64 [N].
    """

    def __init__(self, make: Callable[[int], SamplePlan], sizes: np.ndarray) -> None:
        self._make = make
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, position: int) -> SamplePlan:
        return self._make(range(len(self))[position])


class GroundingDataset:
    """Samples of one stage; made by `build_dataset`.

    Attributes:
        spec: what is asked.
        seed: of every random choice.
        annotations: all usable ones; `Target.index` counts into it.
        skipped: reason -> how many questions per epoch are left out.
    """

    def __init__(
        self,
        spec: SampleSpec,
        annotations: Sequence[Annotation],
        store: FeatureStore,
        text: LmdbRecords | None,
        *,
        seed: int = 0,
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.annotations = list(annotations)
        self.skipped: Counter[str] = Counter()
        self.annotation_files: list[Path] = []
        self.store, self.text = store, text
        self._num_features = {
            video_id: store.num_frames(video_id)
            for video_id in sorted({a.video_id for a in self.annotations})
        }
        by_film: dict[str, list[int]] = defaultdict(list)
        for index, annotation in enumerate(self.annotations):
            by_film[annotation.video_id].append(index)
        self._films = {
            video_id: make_film(
                video_id, count / spec.feature_fps, self.annotations, by_film[video_id]
            )
            for video_id, count in self._num_features.items()
        }
        # output -> number of the annotation -> negatives to ask besides the positive
        self._asked = {output: self._decide(output) for output in spec.outputs}

    def fingerprint(self) -> dict[str, str]:
        """Digests of what is read: annotations by content, features by shape and description."""
        annotations, features = hashlib.sha256(), hashlib.sha256()
        for path in self.annotation_files:
            annotations.update(bytes.fromhex(sha256_of(path)))
        for video_id in sorted(self._num_features):
            # a film that was touched or copied is the same film
            told = {k: v for k, v in self.store.metadata(video_id).items() if k != CONTENTS}
            about = [video_id, self.store.shape(video_id), told]
            features.update(json.dumps(about, sort_keys=True, default=list).encode())
        return {"annotations": annotations.hexdigest(), "features": features.hexdigest()}

    def clip_fingerprint(self) -> str | None:
        """Of the CLIP that made the features; None if no description says."""
        for video_id in self._num_features:
            found = self.store.metadata(video_id).get("clip_fingerprint")
            if found:
                return str(found)
        return None

    def num_questions(self, output: str | None = None) -> int:
        """Questions of an epoch, the same in every one."""
        return sum(1 + negatives for negatives in self._asked[self._output(output)].values())

    def report(self) -> list[str]:
        """What is asked and what was left out, for the log."""
        asked = sum(self.num_questions(output) for output in self.spec.outputs)
        total = asked + sum(self.skipped.values())
        lines = [
            f"{len(self._films):,} films, {len(self.annotations):,} annotations,"
            f" {asked:,} questions per epoch"
        ]
        return lines + [
            f"skipped {count:,} of {total:,} questions: {reason}"
            for reason, count in sorted(self.skipped.items())
        ]

    def plans(self, epoch: int, output: str | None = None) -> Plans:
        """All samples of an epoch, not shuffled.

        Args:
            epoch: from 0.
            output: for an alternate stage, which of its two kinds of batches.
        """
        output = self._output(output)
        spec = self.spec
        if spec.stage == "dense" and spec.questions_per_window > 1 and not spec.needs_text:
            packed = self._packed_plans(epoch)
            return Plans(packed.__getitem__, np.array([len(plan.targets) for plan in packed]))
        rows = [
            (index, number)
            for index, negatives in self._asked[output].items()
            for number in range(1 + negatives)
        ]
        stage = self._stage_of(output)
        return Plans(lambda i: self._plan(stage, epoch, *rows[i]), np.ones(len(rows), np.int64))

    def _plan(self, stage: str, epoch: int, index: int, number: int) -> SamplePlan:
        """Number 0 asks about annotation `index` where it happens, the others where it does not."""
        film = self._films[self.annotations[index].video_id]
        tag = SEED_ROWS if stage == "long" else SEED_WINDOWS
        rng = np.random.default_rng([tag, self.seed, epoch, index, number])
        if stage == "align":
            return align_plan(film, index, self.spec)
        if stage == "long":
            return long_plan(film, index, self.spec, rng, present=number == 0)
        return window_plan(film, index, stage, self.spec, rng, present=number == 0)

    def __getitem__(self, plan: SamplePlan) -> Sample:
        """Read the features of a plan and put its questions in words.

        Raises:
            UserError: missing or corrupt features; names film, query and store.
        """
        questions = []
        for ask in plan.targets:
            annotation = self.annotations[ask.index]
            if plan.stage == "align":
                text, answer = CAPTION_QUESTION, annotation.sentence
            else:
                wording = question_wording(plan.stage, self.spec)
                text = question_text(annotation.sentence, wording)
                answer = answer_text(plan.stage, ask, self.spec)
            questions.append(TextQuestion(annotation.query_id, text, answer))
        words = None
        if self.text is not None:
            words = tuple(self._query_rows(q.query_id) for q in questions)
        return Sample(plan, self._read(plan), tuple(questions), words)

    def _query_rows(self, query_id: str) -> np.ndarray:
        words, sentence = read_query(self.text, query_id)
        return query_rows(words, sentence, reads_sentence=self.spec.reads_sentence)

    def _read(self, plan: SamplePlan) -> np.ndarray:
        """Features [S, F, D]; rows that windows share are read once."""
        clock, num_features = self.spec.clock(plan.window_s), self._num_features[plan.video_id]
        indices = [clock.feature_indices(start_s, num_features) for start_s in plan.starts_s]
        wanted = np.repeat(np.stack(indices), plan.repeat, axis=0)
        if len(wanted) == 1:
            return self.store.read(plan.video_id, wanted[0])[None]
        rows, inverse = np.unique(wanted, return_inverse=True)
        return self.store.read(plan.video_id, rows)[inverse.reshape(wanted.shape)]

    def _packed_plans(self, epoch: int) -> list[SamplePlan]:
        asked: dict[str, dict[int, int]] = defaultdict(dict)
        for index, negatives in self._asked["frames"].items():
            asked[self.annotations[index].video_id][index] = negatives
        plans = []
        for number, (video_id, film) in enumerate(self._films.items()):
            if video_id in asked:
                rng = np.random.default_rng([SEED_FILMS, self.seed, epoch, number])
                plans += packed_windows(film, asked[video_id], self.spec, rng)
        return plans

    def _output(self, output: str | None) -> str:
        if output is None and len(self.spec.outputs) > 1:
            raise ValueError(
                f"an alternate stage has several outputs, say which of {self.spec.outputs}"
            )
        return output or self.spec.outputs[0]

    def _stage_of(self, output: str) -> str:
        """The stage whose samples an output has; the second one of an alternate stage: dense."""
        return self.spec.stage if output == self.spec.outputs[0] else "dense"

    # --- decided once ---

    def _decide(self, output: str) -> dict[int, int]:
        """Number of the annotation -> how many negatives; what cannot be asked is counted."""
        stage, asked = self._stage_of(output), {}
        per_positive = self.spec.negatives_per_positive
        for index, annotation in enumerate(self.annotations):
            film = self._films[annotation.video_id]
            problem = self._problem(film, index, stage)
            if problem:
                self.skipped[f"{stage}: {problem}"] += 1 + per_positive
                continue
            asked[index] = per_positive if self._has_negative(film, index, stage) else 0
            if asked[index] < per_positive:
                self.skipped[f"{stage}: no place for Not Present in the film"] += per_positive
        if not asked:
            raise UserError(
                f"no {stage} question can be asked of {len(self.annotations)} annotations:"
                f" {dict(self.skipped)}; do window_s, min_duration_s and the data fit?"
            )
        return asked

    def _problem(self, film: FilmEvents, index: int, stage: str) -> str | None:
        if self.annotations[index].start_s >= film.duration_s:
            return "event after the film's last feature"
        if film.duration_s < self.spec.min_duration_s:
            return f"film shorter than {self.spec.min_duration_s:g} s"
        return long_problem(film, index, self.spec) if stage == "long" else None

    def _has_negative(self, film: FilmEvents, index: int, stage: str) -> bool:
        if stage == "long":
            return bool(len(clear_segments(film, index, segment_grid(film, self.spec))))
        return has_negative_window(film, index, self.spec)


def build_dataset(
    spec: SampleSpec,
    *,
    annotations: str | Path | Iterable[str | Path],
    features: str | Path,
    text_features: str | Path | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    feature_dim: int | None = None,
    text_width: int | None = None,
    clip_fingerprint: str | None = None,
    choose: Callable[[list[Annotation]], list[Annotation]] | None = None,
) -> GroundingDataset:
    """Open and check everything a stage reads, every row of the features included.

    Args:
        spec: what is asked.
        annotations: one file or several (see `annotations.py`).
        features: frame features, any store.
        text_features: LMDB of the queries' features, needed if `spec.needs_text`.
        seed: of every random choice.
        skip_bad: leave out what is bad, with a line for each, instead of stopping.
        feature_dim: width that the adapter reads; None: any.
        text_width: of the queries' words that it reads; None: any.
        clip_fingerprint: of the CLIP that the start was trained on; None: not known.
        choose: which annotations of all; what the others need is not looked at. None: all.

    Raises:
        UserError: a file is missing; or problems, all logged, and `skip_bad` is off.
    """
    paths = [annotations] if isinstance(annotations, (str, Path)) else list(annotations)
    store = open_features(features)
    length_of = store_lengths(store, spec.feature_fps)
    files = [read_annotations(path, length_of=length_of) for path in paths]
    text = _open_text(text_features) if spec.needs_text else None
    problems = [f"{file.path}: {problem}" for file in files for problem in file.problems]
    found: list[Annotation] = []
    seen: set[str] = set()
    for file in files:
        for annotation in file.annotations:
            if annotation.query_id in seen:
                problems.append(f"{file.path}: query {annotation.query_id}: also in another file")
            else:
                seen.add(annotation.query_id)
                found.append(annotation)
    if choose is not None:
        found = choose(found)
    wanted = _Wanted(spec.feature_fps, feature_dim, clip_fingerprint)
    bad_films = _film_problems(found, store, wanted)
    problems += [f"{store.path}: {problem}" for problem in bad_films.values()]
    known = None if text is None else set(text.keys())
    usable = []
    for annotation in found:
        if known is not None and annotation.query_id not in known:
            problems.append(f"{text.path}: query {annotation.query_id}: no text features")
        elif annotation.video_id not in bad_films:
            usable.append(annotation)
    if text is not None and usable and text_width is not None:
        problems += _text_problems(text, usable[0].query_id, text_width)
    require_good("training data", problems, skip_bad=skip_bad)
    if not usable:
        raise UserError(f"no usable annotation in {', '.join(map(str, paths))}")
    dataset = GroundingDataset(spec, usable, store, text, seed=seed)
    dataset.annotation_files = [Path(path) for path in paths]
    total = sum(len(file.annotations) + len(file.problems) for file in files)
    if total > len(usable):
        dataset.skipped["bad annotation or features"] = (total - len(usable)) * (
            1 + spec.negatives_per_positive
        )
    return dataset


def store_lengths(store: FeatureStore, feature_fps: float) -> Callable[[str], float | None]:
    """Films' lengths in seconds by their features; None where there are none."""

    def length_of(video_id: str) -> float | None:
        try:
            rate = float(store.metadata(video_id).get("feature_fps", feature_fps))
            return store.num_frames(video_id) / rate
        except UserError:
            return None

    return length_of


def _open_text(path: str | Path | None) -> LmdbRecords:
    if path is None or not Path(path).exists():
        raise UserError(
            f"text features not found: {path}; this stage's adapter reads the query, extract them"
            " with mad_clip_text_extractor.py or chapters_clip_text_extractor.py"
        )
    return LmdbRecords(path)


def _text_problems(text: LmdbRecords, query_id: str, text_width: int) -> list[str]:
    width = read_query(text, query_id)[0].shape[1]
    if width == text_width:
        return []
    return [f"{text.path}: words {width} wide, the adapter reads {text_width}"]


@dataclass(frozen=True)
class _Wanted:
    """What features must be: rows per second, width, made by which CLIP (None: any)."""

    feature_fps: float
    feature_dim: int | None
    clip_fingerprint: str | None


def length_problem(length_s: float, stated_s: float) -> str | None:
    """Why features of this length cannot be of a film of the stated length; None if they can."""
    slack_s = max(LENGTH_SLACK_S, LENGTH_TOLERANCE * stated_s)
    if length_s > 0 and abs(length_s - stated_s) <= slack_s:
        return None
    return f"{length_s:g} s of features, the annotation says {stated_s:g} s; is the rate right,"


def _film_problems(
    annotations: Sequence[Annotation], store: FeatureStore, wanted: _Wanted
) -> dict[str, str]:
    """FilmEvents -> why its features cannot be used: missing, damaged, or made otherwise."""
    feature_fps = wanted.feature_fps
    duration_s: dict[str, float] = {}
    for annotation in annotations:
        duration_s.setdefault(annotation.video_id, annotation.duration_s)
    keys = set(store.keys())
    problems = {}
    clips: Counter[str] = Counter()
    for video_id in sorted(duration_s.keys() & keys):
        with suppress(UserError):
            clips.update(str(c) for c in [store.metadata(video_id).get("clip_fingerprint")] if c)
    clip = wanted.clip_fingerprint or (clips.most_common(1)[0][0] if clips else None)
    bar = tqdm(sorted(duration_s), desc="checking features", unit="film", disable=None)
    for video_id in bar:
        if video_id not in keys:
            problems[video_id] = f"film {video_id}: no features"
            continue
        try:
            count, width = store.shape(video_id)
            length_s, about = count / feature_fps, store.metadata(video_id)
            bad = store.bad_rows(video_id)
        except UserError as error:
            problems[video_id] = f"film {video_id}: {error}"
            continue
        rate = about.get("feature_fps", feature_fps)
        made_by = about.get("clip_fingerprint", clip)
        wrong_length = length_problem(length_s, duration_s[video_id])
        if wanted.feature_dim not in (None, width):
            turned = "; are rows and columns swapped?" if count == wanted.feature_dim else ""
            problems[video_id] = (
                f"film {video_id}: features {width} wide, the adapter reads {wanted.feature_dim}"
                f"{turned}"
            )
        elif made_by != clip:
            problems[video_id] = (
                f"film {video_id}: features of CLIP {made_by}, the others and the run's start are"
                f" of {clip}"
            )
        elif bad:
            problems[video_id] = f"film {video_id}: {bad}"
        elif rate != feature_fps:
            problems[video_id] = (
                f"film {video_id}: features of {rate:g} per second, {feature_fps:g} asked"
            )
        elif wrong_length:
            problems[video_id] = f"film {video_id}: {wrong_length} at {feature_fps:g} per second"
    return problems
