"""The measurements behind `ablation.py`: each gives (title, rows), rows as of `benchmark.row`.

A row carries recalls with intervals, verdicts on absent sentences, the share of dense windows
visited and LLM tokens per query (one query alone on its film).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tqdm import tqdm

from revisionllm.demo.benchmark import (
    Asked,
    chance_row,
    clip_row,
    fit_calibration,
    moment_spans,
    row,
)
from revisionllm.demo.evaluation.judged_films import judged_film
from revisionllm.demo.evaluation.window_table import window_rows
from revisionllm.demo.world.language import differences
from revisionllm.eval.calibrate import PARTS, even_odds
from revisionllm.grounding.levels import Level, WindowAnswer
from revisionllm.grounding.scores import frame_cosines
from revisionllm.metrics.recall import span_iou
from revisionllm.records.films import Film
from revisionllm.search.cost import Plan
from revisionllm.search.kept_answers import KeptAnswers, MemoEngine
from revisionllm.search.plans import (
    COSINE_WEIGHT,
    LONG_KEEP,
    bounded,
    cosine_level,
    dense_level,
    llm_shape,
    long_level,
    long_listing,
    search_plans,
)
from revisionllm.search.searcher import Searcher, SearchOptions

KEEP_ALONE = 0.7  # `LONG_KEEP` of long levels that do without the cosine; they keep margins, too
TEST_SEED, VAL_SEED = 5000, 900  # no training, quickstart, benchmark or planner film has these
Rows = Iterator[tuple[str, list[dict]]]


@dataclass(frozen=True)
class Score:
    """A stand-in for a calibration: the confidence is any function of a moment's parts."""

    of: Callable[[dict], np.ndarray]

    def confidence(self, parts) -> np.ndarray:
        """Arrays [N] of parts to confidences [N]."""
        return np.asarray(self.of(parts), dtype=np.float64)


def shuffled(parts: dict) -> np.ndarray:
    """No ranking: a value that depends on the moment and says nothing about it."""
    return np.modf(np.abs(parts["entropy"]) * 1e6 + parts["cosine"] * 1e6)[0]


ENTROPY = Score(lambda parts: np.exp(-parts["entropy"]))
UNRANKED = Score(shuffled)


def any_window(answer: WindowAnswer) -> WindowAnswer:
    """As if "Not Present" did not exist: every window is as good as another."""
    return replace(answer, presence=1.0)


def only_positive(answer: WindowAnswer) -> WindowAnswer:
    """Candidates only where the answer names a span itself."""
    return answer if answer.is_positive else replace(answer, spans=())


def first_span(answer: WindowAnswer) -> WindowAnswer:
    """The answer's own span alone."""
    return replace(answer, spans=tuple(answer.spans[:1]))


class Setting:
    """Loaded models, films and the calibration, each made when first asked for."""

    def __init__(self, args) -> None:
        from revisionllm.engine.dense import DenseEngine
        from revisionllm.model.clip import load_clip
        from revisionllm.model.config import read_config
        from revisionllm.model.loading import load_model

        self.args = args
        self.minutes = args.minutes[0]
        self.model = load_model(args.checkpoint, device=args.device)
        self.clip = load_clip(self.model.config.clip, device=args.device)
        self.shape = llm_shape(self.model, [read_config(run) for run in args.long])
        self.engine = self.asking_once(DenseEngine(self.model, explore=0.0))
        self._films: dict = {}

    def asking_once(self, engine, change=None) -> MemoEngine:
        """With a memory of its own, on disk if a folder is given for answers."""
        memory, folder = {}, self.args.answers
        if folder:
            memory = KeptAnswers(folder, engine.model, self.clip.fingerprint())
        return MemoEngine(engine, memory, change)

    def films(self, minutes: float, *, split: str = "test", all_features: bool = False) -> list:
        """(film, queries) of one length."""
        key = (minutes, split, all_features)
        if key not in self._films:
            count, seed = (self.args.films, TEST_SEED)
            if split == "val":
                count, seed = self.args.val_films, VAL_SEED
            room = max(1, int(minutes // 2))  # a short film has fewer events to ask for
            num_present, num_absent = min(self.args.present, room), min(self.args.absent, room)
            self._films[key] = [
                judged_film(
                    number,
                    minutes,
                    self.clip,
                    self.args.cache,
                    num_present=num_present,
                    num_absent=num_absent,
                    first_seed=seed,
                    split=split,
                    all_features=all_features,
                )
                for number in range(count)
            ]
        return self._films[key]

    def dense(self) -> Level:
        """The run's dense windows."""
        return dense_level(self.model.config)

    def windows(self, _film: Film) -> list[Level]:
        """Dense windows alone."""
        return [self.dense()]

    def planned(self, film: Film) -> list[Level]:
        """Dense windows where the cosine level says so."""
        return [cosine_level(self.model.config, film.duration_s), self.dense()]

    @cached_property
    def calibration(self):
        """Fitted on validation films, exhaustive search."""
        predictions, _ = self.search(
            self.films(self.minutes, split="val"), self.windows, calibration=None
        )
        return fit_calibration(predictions)

    @cached_property
    def long_runs(self) -> list:
        """(level, engine) of each long run."""
        from revisionllm.engine.segments import SegmentEngine
        from revisionllm.model.loading import load_model

        runs = []
        for path in self.args.long:
            model = load_model(path, device=self.args.device)
            engine = SegmentEngine(model, **long_listing(model.config))
            runs.append((long_level(model.config), self.asking_once(engine)))
        return runs

    def alone(self, film: Film) -> list[Level]:
        """The long runs' levels, without a word of the cosine."""
        return bounded([level for level, _ in self.long_runs], film.duration_s, KEEP_ALONE)

    def recursion(self, film: Film) -> list[Level]:
        """All levels, as the demo searches them: cosine, long runs, dense."""
        plans = search_plans(
            self.model.config,
            film.duration_s,
            long_levels=[level for level, _ in self.long_runs],
            long_keep=LONG_KEEP,
            cosine_weight=COSINE_WEIGHT,
        )
        return list(plans[-1].levels)

    def search(self, films, levels, *, engine=None, order="coarse_to_fine", **options):
        """Predictions of all films' queries, and the films of the queries. Their LLM tokens are
        those of a query alone on its film."""
        engines = {level.name: engine for level, engine in self.long_runs}
        engines["dense"] = engine or self.engine
        asked = self.shape.prefix_tokens + self.shape.question_tokens
        predictions, names = [], []
        for film, queries in tqdm(films, "films searched", leave=False, file=sys.stderr):
            plan = Plan("", tuple(levels(film)), order)
            searcher = Searcher(
                engines, self.model.config, SearchOptions(**options), lambda *_, plan=plan: plan
            )
            before = self._long_tokens()
            found = searcher.ground(film, queries)
            share = (self._long_tokens() - before) / len(queries)
            for prediction in found:
                prediction.cost.llm_tokens = prediction.cost.dense_windows * asked + share
            predictions += found
            names += [film.vid] * len(queries)
        return predictions, names

    def line(self, name: str, films, levels, **options) -> dict:
        """A row of a table."""
        return self.row_of(name, films, *self.search(films, levels, **options))

    def row_of(self, name: str, films, predictions, names) -> dict:
        """A row of a table, from what `search` gave."""
        found = [p.found for p in predictions]
        truth = [p.gt[0] if p.gt else None for p in predictions]
        line = row(name, names, truth, moment_spans(predictions), found)
        windows = {film.vid: len(self.dense().grid(film.duration_s)) for film, _ in films}
        share = np.mean([p.cost.dense_windows / windows[p.vid] for p in predictions])
        line["windows"] = f"{share:.0%}"
        line["llm_tokens"] = float(np.mean([p.cost.llm_tokens for p in predictions]))
        return line

    def _long_tokens(self) -> float:
        """LLM tokens of all questions about segments so far, remembered ones too."""
        return sum(self.shape.long_tokens(*engine.shown) for _, engine in self.long_runs)

    def asked(self, films) -> Asked:
        """The films' sentences with what the baselines need."""
        asked = Asked(duration_s=films[0][0].duration_s, fps=films[0][0].feature_fps)
        for film, queries in films:
            asked.films += [film.vid] * len(queries)
            asked.truth += [query.gt[0] if query.gt else None for query in queries]
            features = np.stack([query.feature for query in queries])
            asked.cosines += list(frame_cosines(film.features, features))
        return asked

    def baselines(self, films) -> list[dict]:
        """Rows of per-frame CLIP retrieval and of chance; neither looks at LLM windows."""
        val, test = self.asked(self.films(self.minutes, split="val")), self.asked(films)
        return [clip_row(val, test)[0], chance_row(val, test)]

    def changed(self, change) -> MemoEngine:
        """The same answers, rewritten."""
        return MemoEngine(self.engine.engine, self.engine.memory, change)


def ingredients(setting: Setting) -> Rows:
    """Each ingredient of the method on top of those before, on films of each length."""
    for minutes in setting.args.minutes:
        films, windows = setting.films(minutes), setting.windows

        def whole(film: Film) -> list[Level]:
            return [replace(setting.dense(), window_s=film.duration_s, stride_s=film.duration_s)]

        own = setting.changed(first_span)
        rows = [setting.line("no windows", films, whole, engine=own, calibration=None)]
        if setting.args.no_negatives:
            rows.append(_without_negatives(setting, films, windows))
        free = setting.changed(lambda a: any_window(first_span(a)))
        name = "windows, 'Not Present' ignored"
        rows.append(setting.line(name, films, windows, engine=free, calibration=UNRANKED))
        positive = setting.changed(lambda a: any_window(only_positive(first_span(a))))
        name = "+ 'Not Present', no ranking"
        rows.append(setting.line(name, films, windows, engine=positive, calibration=UNRANKED))
        name = "+ entropy ranking"
        rows.append(setting.line(name, films, windows, engine=positive, calibration=ENTROPY))
        everything = {"calibration": setting.calibration}
        rows.append(setting.line("+ calibrated ranking", films, windows, **everything))
        if setting.long_runs:
            rows += _long_rows(setting, films, everything)
        rows.append(setting.line("cosine > dense", films, setting.planned, **everything))
        rows += setting.baselines(films)
        yield f"Ingredients, films of {minutes:g} minutes", rows


def _without_negatives(setting: Setting, films, windows) -> dict:
    from revisionllm.engine.dense import DenseEngine
    from revisionllm.model.loading import load_model

    model = load_model(setting.args.no_negatives, device=setting.args.device)
    engine = setting.asking_once(DenseEngine(model, explore=0.0), first_span)
    return setting.line(
        "windows, trained without negatives", films, windows, engine=engine, calibration=ENTROPY
    )


def _long_rows(setting: Setting, films, options) -> list[dict]:
    rows, dense = [], setting.dense()
    names = [level.name for level, _ in setting.long_runs]
    for note, coarse in ((", LLM alone", setting.alone), ("", setting.recursion)):
        for first in reversed(range(len(names))):
            shown = len(names) - first

            def levels(film: Film, coarse=coarse, shown=shown) -> list[Level]:
                long_levels = [level for level in coarse(film) if level.kind == "segments"]
                return [*long_levels[-shown:], dense]

            name = " > ".join([*names[first:], "dense"]) + note
            rows.append(setting.line(name, films, levels, **options))
    name = " > ".join(["cosine", *names, "dense"])
    return [*rows, setting.line(name, films, setting.recursion, **options)]


def order(setting: Setting) -> Rows:
    """The three orders of the same levels. What coarse levels keep is a budget where they come
    first, and what they name where they veto."""
    films, dense, rows = setting.films(setting.minutes), setting.dense(), []
    naming = [level for level, _ in setting.long_runs]

    def first(film: Film) -> list[Level]:
        return setting.recursion(film)[1:] if naming else setting.planned(film)

    def vetoing(film: Film) -> list[Level]:
        return [*naming, dense] if naming else setting.planned(film)

    for name in ("coarse_to_fine", "fine_to_coarse", "exhaustive"):
        options = {"order": name, "calibration": setting.calibration}
        levels = first if name == "coarse_to_fine" else vetoing
        rows.append(setting.line(name, films, levels, **options))
    yield "Search order", rows


def confidence(setting: Setting) -> Rows:
    """How well each confidence ranks, tells absent sentences, and is calibrated (ECE)."""
    val, films = setting.films(setting.minutes, split="val"), setting.films(setting.minutes)
    rows = []
    kinds = {
        "presence": ("log_odds",),
        "entropy": ("entropy",),
        "cosine": ("cosine",),
        "presence, entropy, cosine": ("log_odds", "entropy", "cosine"),
        "all, with a second window": PARTS,
    }

    windows = setting.windows
    predictions, _ = setting.search(val, windows, calibration=None)
    for name, parts in kinds.items():
        fitted = fit_calibration(predictions, parts)
        judged, names = setting.search(films, windows, calibration=fitted)
        line = setting.row_of(name, films, judged, names)
        line["ece"] = found_ece(judged)
        line |= absent_scores(judged)
        rows.append(line)
    yield "Confidence", rows


def found_ece(predictions) -> float:
    """Expected calibration error of the best moments' scores as chances that the sentence happens,
    both kinds of sentences counting alike."""
    from revisionllm.metrics import detection

    judged = [p for p in predictions if p.moments]
    judged = even_odds(judged, [bool(p.gt) for p in judged])
    scores = np.array([p.moments[0].score for p in judged])
    return detection.calibration(scores, np.array([bool(p.gt) for p in judged])).ece


def absent_scores(predictions) -> dict:
    """Precision and recall of "not present"."""
    from revisionllm.metrics.detection import not_present

    absent = np.array([p.gt == [] for p in predictions])
    said = np.array([not p.found for p in predictions])
    result = not_present(absent, said)
    return {f"absent_{name}": result[name] for name in ("precision", "recall")}


def sampling(setting: Setting) -> Rows:
    """Frames per window, stride, and refinement below dense."""
    from revisionllm.engine.dense import DenseEngine

    films, dense = setting.films(setting.minutes, all_features=True), setting.dense()
    options = {"calibration": setting.calibration}
    rows = []
    for factor in (0.5, 1.0, 2.0):
        level = replace(dense, stride_s=min(dense.window_s, dense.stride_s * factor))
        name = f"stride {level.stride_s:g} s"
        rows.append(setting.line(name, films, lambda _, lv=level: [lv], **options))
    config, shape = setting.model.config, setting.shape
    for frames in (config.frames_per_window // 2, config.frames_per_window // 4):
        setting.model.config = replace(config, frames_per_window=frames)
        setting.shape = replace(shape, frames_per_window=frames)
        engine = setting.asking_once(DenseEngine(setting.model, explore=0.0))
        name = f"{frames} frames a window"
        rows.append(setting.line(name, films, setting.windows, engine=engine, **options))
    setting.model.config, setting.shape = config, shape
    name = "refined at full rate"
    rows.append(setting.line(name, films, setting.windows, refine_top=1, **options))
    yield "Window sampling", rows


KINDS = (
    *("right", "boundary", "wrong action", "wrong direction", "wrong actor", "wrong place"),
    *("several wrong", "nothing there"),
)


def errors(setting: Setting) -> Rows:
    """What the best answers on films of the first length show, as shares of present sentences."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film

    films = setting.films(setting.minutes)
    predictions, _ = setting.search(films, setting.windows, calibration=setting.calibration)
    present = [p for p in predictions if p.gt]
    counts, descriptions, plans = dict.fromkeys(KINDS, 0), {}, {}
    for film, queries in films:
        plan = plans[film.vid] = plan_film(int(film.vid[-5:]), film.duration_s, "test")
        num_absent = sum(query.gt == [] for query in queries)
        for sentence in film_sentences(plan, len(queries) - num_absent, num_absent):
            descriptions[sentence.query_id] = sentence.description
    for prediction in present:
        kind = error_kind(prediction, plans[prediction.vid].facts, descriptions[prediction.qid])
        counts[kind] += 1
    shares = [(kind, count) for kind, count in counts.items()]
    shares.append(("right one among the first five", sum(map(_in_top_five, present))))
    rows = [{"method": kind, "share": 100 * count / len(present)} for kind, count in shares]
    yield "Errors by kind", rows


def single_windows(setting: Setting) -> Rows:
    """What the LLM tells in single windows of films of the first length."""
    yield "Single windows", window_rows(setting, setting.films(setting.minutes))


def _in_top_five(prediction) -> bool:
    spans = moment_spans([prediction])[0][:5]
    return bool(len(spans)) and float(span_iou(spans, np.array(prediction.gt[0])).max()) >= 0.5


def error_kind(prediction, facts, description) -> str:
    """One of `KINDS`: right (IoU 0.5), boundary (some overlap), or in what the event that the best
    span shows (IoU at least 0.3) differs from the sentence, by the event that differs least."""
    spans = moment_spans([prediction])[0][:1]
    if not len(spans):
        return "nothing there"
    iou = float(span_iou(spans, np.array(prediction.gt[0]))[0])
    if iou > 0:
        return "right" if iou >= 0.5 else "boundary"
    shown = [f for f in facts if span_iou(spans[0], np.array([f.start_s, f.end_s])) >= 0.3]
    if not shown:
        return "nothing there"
    least = min((list(differences(description, fact)) for fact in shown), key=len)
    return f"wrong {least[0]}" if len(least) == 1 else "several wrong"


MEASURES: dict[str, Callable[[Setting], Rows]] = {
    "ingredients": ingredients,
    "order": order,
    "confidence": confidence,
    "sampling": sampling,
    "errors": errors,
    "windows": single_windows,
}
