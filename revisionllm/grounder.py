"""From a video file and sentences to ranked moments in seconds: the whole path as a library.

    grounder = Grounder.from_checkpoint("checkpoints/demo/dense")
    film = grounder.open_film("film.mp4", features_dir="out/features")
    for prediction in grounder.ground(film, ["a red ball bounces on the beach"]):
        print(prediction.found, prediction.moments[:3])

decode -> CLIP features -> windows -> adapter -> LLM -> answers -> search -> moments. The search
here is coarse to fine: text-frame cosine of short segments (no model pass), segments read by the
LLM if there are runs of the long stage (what survives them, their answers and the cosine decide
together), then dense windows where something survived; or every dense window if that is less work
for so many sentences.
Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from revisionllm.constants import DEMO_WEIGHTS, MAX_SENTENCE
from revisionllm.errors import UserError
from revisionllm.files import cache_dir
from revisionllm.model.hub import local, missing
from revisionllm.records.films import Film
from revisionllm.search.plans import (
    COSINE_WEIGHT,
    DEFAULT_KEEP,
    LONG_KEEP,
    budget_plan,
    llm_shape,
    long_level,
    long_listing,
    search_plans,
)

if TYPE_CHECKING:
    from revisionllm.engine import Engine
    from revisionllm.grounding.levels import Level

DEFAULT_CHECKPOINT = DEMO_WEIGHTS / "dense"
DEFAULT_LONG_RUNS = (DEMO_WEIGHTS / "long_100", DEMO_WEIGHTS / "long_33")
SEARCHES = ("planned", "recursive", "exhaustive")
DEFAULT_BUDGET = 20  # windows per sentence that a foreign grounder is asked about
ENCODER_FPS = 1.0  # rows per second where the encoder alone reads them
BUDGET_MB = 1024  # MiB of an engine's batches


def default_features_dir() -> Path:
    """Where features are kept between calls: $XDG_CACHE_HOME/revisionllm/features."""
    return cache_dir() / "features"


def long_runs_beside(checkpoint: Path) -> tuple[Path, ...]:
    """The long runs that ship with a dense run, the coarsest first: the demo's has some."""
    return DEFAULT_LONG_RUNS if checkpoint == DEFAULT_CHECKPOINT else ()


def check_sentences(sentences: Sequence[str]) -> None:
    """Raises:
    UserError: there is none, or one of them is empty.
    """
    if not sentences:
        raise UserError("no sentence given: what should be found? e.g. 'a red ball bounces'")
    for number, sentence in enumerate(sentences, 1):
        if not any(character.isalnum() for character in sentence):
            raise UserError(f"sentence {number} has no words: {sentence!r}; describe one event")
        if any("\ud800" <= letter <= "\udfff" for letter in sentence):
            raise UserError(f"sentence {number} is not UTF-8 text: {sentence!r}")
        if len(sentence) > MAX_SENTENCE:
            raise UserError(
                f"sentence {number} has {len(sentence)} characters, at most {MAX_SENTENCE} are"
                " read; describe one event"
            )


def film_of(
    video_path: str | os.PathLike,
    clip,
    feature_fps: float,
    *,
    features_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Film:
    """Read a video's features, extracting those that `features_dir` does not hold yet.

    Args:
        clip: `model.clip.ClipFeatures`.
        feature_fps: rows per second.
        features_dir: where they are kept; None: `default_features_dir`.

    Raises:
        UserError: not a readable video, or the disk is full.
    """
    from revisionllm.data.feature_extraction.frames import extract_features

    path = Path(video_path).resolve()
    folder = Path(features_dir) if features_dir else default_features_dir()
    key = f"{path} {clip.fingerprint()} {feature_fps}"
    out = folder / f"{path.stem[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.npy"
    file = extract_features(path, clip, feature_fps=feature_fps, out_path=out, progress=progress)
    rows = np.load(file.path, mmap_mode="r", allow_pickle=False)
    kept = f"{file.path} {os.stat(file.path).st_mtime_ns}"
    return Film(path.stem, rows, feature_fps, file.duration_s, key=kept, video_path=path)


class Grounder:
    """Searches films with engines and an encoder; `from_checkpoint` and `of_engine` make one.

    Args:
        engines: by level name, "dense" among them.
        config: of what answers dense windows: a run's, or a foreign grounder's profile.
        clip: `model.clip.ClipFeatures` of the frames' features.
        run: what predictions are signed with.
        feature_fps: feature rows per second.
        calibration: see `grounding.calibration`; None: the score is the presence.
        long_levels: of the long stage, the coarsest first.
        shape: of the dense run's LLM, for choosing the cheapest plan.
        device: where the engines run, as `torch.device.type`.
        is_foreign: dense windows are answered by another model; searches take `budget` then.
    """

    def __init__(
        self,
        engines: dict[str, Engine],
        config,
        clip,
        *,
        run: str,
        feature_fps: float,
        calibration=None,
        long_levels: Sequence[Level] = (),
        shape=None,
        device: str = "cpu",
        is_foreign: bool = False,
    ) -> None:
        self.engines, self.config, self.clip = engines, config, clip
        self.run, self.feature_fps, self.calibration = run, feature_fps, calibration
        self.long_levels, self.device = long_levels, device
        self.is_foreign, self._shape = is_foreign, shape

    @property
    def engine(self) -> Engine:
        """The engine of the dense level."""
        return self.engines["dense"]

    @classmethod
    def of_engine(
        cls,
        engine,
        clip,
        calibration=None,
        *,
        long_runs: Sequence[str | os.PathLike] = (),
        device: str = "auto",
    ) -> Grounder:
        """Another model's windows below an encoder's level.

        Args:
            engine: `engine.foreign.ForeignEngine`, or what answers dense questions, has a `profile`
                and a `signature`.
            clip: of the encoder.
            calibration: of the engine's answers; None: the score is the presence.
            long_runs: run folders of the long stage between them, the coarsest first.

        Raises:
            UserError: a run is not of the long stage, or was trained on another encoder's features.
        """
        from revisionllm.model.loading import load_model

        engines = {"dense": engine}
        models = [load_model(local(run), device=device) for run in long_runs]
        for run, model in zip(long_runs, models, strict=True):
            if model.config.clip_fingerprint not in (None, clip.fingerprint()):
                raise UserError(
                    f"{run} reads features of CLIP {model.config.clip_fingerprint}, the encoder is"
                    f" {clip.fingerprint()}"
                )
        rates = {model.config.feature_fps for model in models} or {ENCODER_FPS}
        if len(rates) > 1:
            raise UserError(f"the long runs read {sorted(rates)} frames per second; one rate only")
        return cls(
            engines,
            engine.profile,
            clip,
            run=engine.signature,
            feature_fps=rates.pop(),
            calibration=calibration,
            long_levels=_add_long(engines, models),
            is_foreign=True,
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | os.PathLike,
        *,
        long_runs: Sequence[str | os.PathLike] = (),
        device: str = "auto",
    ) -> Grounder:
        """Load a run folder of the dense stage, its CLIP and its calibration.

        Args:
            long_runs: run folders of the long stage, the coarsest first.

        Raises:
            UserError: no run folder there, it names no CLIP, or a run of `long_runs` is another's,
                not of the long stage, or of the same level as another.
        """
        folder = Path(local(checkpoint))
        long_runs = [Path(local(run)) for run in long_runs]
        for run in (folder, *long_runs):
            if not run.exists():
                raise UserError(
                    f"{missing(str(run), 'checkpoint')}; checkpoints/README.md says what there is"
                )
        from revisionllm.engine.dense import DenseEngine
        from revisionllm.model.clip import load_clip
        from revisionllm.model.config import read_calibration
        from revisionllm.model.loading import load_model

        model = load_model(folder, device=device)
        if model.config.clip is None:
            raise UserError(
                f"{folder}/config.json names no CLIP; set its entry clip to the CLIP's folder"
            )
        fitted = read_calibration(folder)
        clip = load_clip(model.config.clip, device=device)
        trained_on = model.config.clip_fingerprint
        if trained_on not in (None, clip.fingerprint()):
            raise UserError(
                f"{folder} was trained on features of CLIP {trained_on}, {model.config.clip} is"
                f" {clip.fingerprint()}; put the right CLIP there"
            )
        long_models = [load_model(run, device=device) for run in long_runs]
        engines: dict[str, Engine] = {"dense": DenseEngine(model, budget_mb=BUDGET_MB)}
        levels = _add_long(engines, long_models)
        return cls(
            engines,
            model.config,
            clip,
            run=folder.name,
            feature_fps=model.config.feature_fps,
            calibration=fitted,
            long_levels=levels,
            shape=llm_shape(model, [long_model.config for long_model in long_models]),
            device=model.device.type,
        )

    # --- films -----------------------------------------------------------------------------------

    def open_film(
        self,
        video_path: str | os.PathLike,
        *,
        features_dir: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> Film:
        """Read a video's features, extracting those that `features_dir` does not hold yet.

        Raises:
            UserError: not a readable video, or the disk is full.
        """
        return film_of(
            video_path,
            self.clip,
            self.feature_fps,
            features_dir=features_dir,
            progress=progress,
        )

    # --- search ----------------------------------------------------------------------------------

    def plans(
        self,
        duration_s: float,
        search: str = "planned",
        keep: float = DEFAULT_KEEP,
        budget: int = DEFAULT_BUDGET,
    ) -> list:
        """What a search may choose from.

        "exhaustive": every dense window. "recursive": every level, coarse to fine: cosine, those
        of the long runs, dense. "planned": these, and those with less levels. "pruned": as planned,
        but for "exhaustive".
        """
        if search not in (*SEARCHES, "pruned"):
            raise UserError(f"search {search!r} is not one of {', '.join(SEARCHES)}")
        if self.is_foreign:
            most = None if search == "exhaustive" else budget
            return [budget_plan(self.config, most, duration_s, self.long_levels)]
        plans = search_plans(
            self.config,
            duration_s,
            keep=keep,
            long_levels=self.long_levels,
            long_keep=LONG_KEEP,
            cosine_weight=COSINE_WEIGHT,
        )
        some = {"exhaustive": plans[:1], "recursive": plans[-1:], "pruned": plans[1:]}
        return some.get(search, plans)

    def ground(
        self,
        film: Film,
        sentences: Sequence[str],
        *,
        search: str = "planned",
        keep: float = DEFAULT_KEEP,
        budget: int = DEFAULT_BUDGET,
        threshold: float = 0.5,
        top_k: int = 50,
        verbose: bool = False,
        hints: Sequence[Sequence[tuple[float, float]]] | None = None,
    ) -> list:
        """Find every sentence in the film.

        Args:
            search: "planned" (the cheapest of `plans`), "recursive" (all levels, coarse to fine)
                or "exhaustive" (every dense window).
            keep: segments that the cosine level keeps before dense windows, times the root of their
                number; before other levels more (`search_plans`).
            budget: dense windows per sentence at most, for a foreign grounder that does not read
                every window.
            threshold: a sentence is found if its best moment scores at least this.
            top_k: moments per sentence at most.
            verbose: say on stderr which plan was taken, and why.
            hints: per sentence spans that dense windows look at in any case, best first.

        Returns:
            One `records.predictions.Prediction` per sentence, in order. Work that sentences share
            (window prefixes) is divided evenly among their costs.

        Raises:
            UserError: an empty sentence, or one longer than CLIP's text encoder takes.
        """
        from revisionllm.records.films import Query
        from revisionllm.search.plans import Planner
        from revisionllm.search.searcher import Searcher, SearchOptions

        check_sentences(sentences)
        if film.coarse is not None and search == "planned":
            search = (
                "pruned"  # its frames are read where the search looks; that is most of the work
            )
        words, features = self.clip.encode_texts(list(sentences))
        searcher = Searcher(
            self.engines,
            self.config,
            SearchOptions(threshold=threshold, top_k=top_k, calibration=self.calibration),
            Planner(
                lambda duration_s: self.plans(duration_s, search, keep, budget),
                self._shape,
                self.device,
                quiet=not verbose,
            ),
            run=self.run,
        )
        queries = [
            Query(f"{film.vid}_{number:03d}", sentence, None, word.numpy(), feature, tuple(hint))
            for number, (sentence, word, feature, hint) in enumerate(
                zip(sentences, words, features.numpy(), hints or [()] * len(words), strict=True)
            )
        ]
        found = searcher.ground(film, queries)
        for prediction in found if self.is_foreign else ():  # known once it has answered
            prediction.run = self.engine.signature
        return found


def _add_long(engines: dict[str, Engine], models: Sequence) -> list[Level]:
    """Add the long models' engines; returns their levels (raises UserError)."""
    from revisionllm.engine.segments import SegmentEngine

    levels = []
    for model in models:
        config = model.config
        if config.stage != "long":
            raise UserError(
                f"a coarse level needs a run of stage long, not {config.stage};"
                " scripts/demo/train_all.sh shows how they are made"
            )
        level = long_level(config)
        if level.name in engines:
            raise UserError(
                f"two long runs read {config.num_segments} segments at once; give one run for each"
                " number"
            )
        levels.append(level)
        listing = long_listing(config)
        engines[level.name] = SegmentEngine(model, budget_mb=BUDGET_MB, **listing)
    return levels
