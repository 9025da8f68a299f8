"""From a video file and sentences to ranked moments in seconds: the whole path as a library.

    grounder = Grounder.from_checkpoint("checkpoints/demo/dense")
    film = grounder.open_film("film.mp4", features_dir="out/features")
    for prediction in grounder.ground(film, ["a red ball bounces on the beach"]):
        print(prediction.found, prediction.moments[:3])

decode -> CLIP features -> windows -> adapter -> LLM -> answers -> search -> moments. The search
here is coarse to fine: text-frame cosine of short segments (no model pass), then dense windows
where segments survived, or every dense window if that is less work for so many sentences.
Paper: https://arxiv.org/abs/2411.14901, section 3.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revisionllm.errors import UserError
from revisionllm.eval.plans import DEFAULT_KEEP, film_plans, llm_shape

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "demo" / "dense"
SEARCHES = ("planned", "exhaustive")


@dataclass(frozen=True)
class Film:
    """A film ready to be searched: frame features with their rate and clock.

    Attributes:
        vid: name used in predictions.
        features: [T, D]; row i is the frame at i / feature_fps seconds.
        duration_s: length in seconds.
        video_path: the file, if there is one.
        key: names these very features; what was computed for them is kept for the next sentences.
            None: nothing is kept.
    """

    vid: str
    features: np.ndarray
    feature_fps: float
    duration_s: float
    video_path: Path | None = None
    key: str | None = None


def default_features_dir() -> Path:
    """Where features are kept between calls: $XDG_CACHE_HOME/revisionllm/features."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "revisionllm" / "features"


def check_sentences(sentences: Sequence[str]) -> None:
    """Raises:
    UserError: there is none, or one of them is empty.
    """
    if not sentences:
        raise UserError("no sentence given: what should be found? e.g. 'a red ball bounces'")
    for number, sentence in enumerate(sentences, 1):
        if not any(character.isalnum() for character in sentence):
            raise UserError(f"sentence {number} has no words: {sentence!r}; describe one event")


class Grounder:
    """Searches films with one model and its CLIP.

    Args:
        model: `model.llama.GroundingModel` of the dense stage.
        clip: `model.clip.ClipFeatures` that its config names.
        run: what predictions are signed with.
        calibration: see `grounding.calibration`; None: the score is the presence.
        budget_mb: memory of the engine's batches in MiB.
    """

    def __init__(self, model, clip, *, run: str, calibration=None, budget_mb: int = 1024) -> None:
        from revisionllm.engine.dense import DenseEngine

        self.model, self.clip, self.run, self.calibration = model, clip, run, calibration
        self.engine = DenseEngine(model, budget_mb=budget_mb)
        self._shape = llm_shape(model)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike, *, device: str = "auto") -> Grounder:
        """Load a run folder of the dense stage, its CLIP and its calibration.

        Raises:
            UserError: no run folder there, or it names no CLIP.
        """
        from revisionllm.grounding import calibration
        from revisionllm.model.clip import load_clip
        from revisionllm.model.loading import load_model

        folder = Path(checkpoint)
        if not folder.exists():
            raise UserError(
                f"no checkpoint at {folder}; see checkpoints/README.md for what there is"
            )
        model = load_model(folder, device=device)
        if model.config.clip is None:
            raise UserError(
                f"{folder}/config.json names no CLIP; set its entry clip to the CLIP's folder"
            )
        stored = folder / "calibration.json"
        fitted = calibration.from_dict(json.loads(stored.read_text())) if stored.is_file() else None
        clip = load_clip(model.config.clip, device=device)
        return cls(model, clip, run=folder.name, calibration=fitted)

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
        from revisionllm.data.feature_extraction.frames import extract_features

        path = Path(video_path).resolve()
        folder = Path(features_dir) if features_dir else default_features_dir()
        fps = self.model.config.feature_fps
        key = f"{path} {self.clip.fingerprint()} {fps}"
        out = folder / f"{path.stem[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.npy"
        file = extract_features(path, self.clip, feature_fps=fps, out_path=out, progress=progress)
        rows = np.load(file.path, mmap_mode="r", allow_pickle=False)
        kept = f"{file.path} {os.stat(file.path).st_mtime_ns}"
        return Film(path.stem, rows, fps, file.duration_s, path, kept)

    # --- search ----------------------------------------------------------------------------------

    def plans(self, duration_s: float, search: str = "planned", keep: float = DEFAULT_KEEP) -> list:
        """What a search may choose from: every dense window, and unless exhaustive also cosine over
        short segments first, then the dense windows of those that survive."""
        plans = film_plans(self.model.config, duration_s, keep=keep)
        return plans[:1] if search == "exhaustive" else plans

    def ground(
        self,
        film: Film,
        sentences: Sequence[str],
        *,
        search: str = "planned",
        keep: float = DEFAULT_KEEP,
        threshold: float = 0.5,
        top_k: int = 50,
        verbose: bool = False,
    ) -> list:
        """Find every sentence in the film.

        Args:
            search: "planned" (the cheapest of `plans`) or "exhaustive" (every dense window).
            keep: segments that the cosine level keeps, times the root of their number.
            threshold: a sentence is found if its best moment scores at least this.
            top_k: moments per sentence at most.
            verbose: say on stderr which plan was taken, and why.

        Returns:
            One `eval.predictions.Prediction` per sentence, in order. Work that sentences share
            (window prefixes) is divided evenly among their costs.

        Raises:
            UserError: an empty sentence, or one longer than CLIP's text encoder takes.
        """
        from revisionllm.eval.film_search import EvalFilm, EvalQuery, PlannedSearcher

        check_sentences(sentences)
        texts = self.clip.encode_texts(list(sentences))[1].numpy()
        searcher = PlannedSearcher(
            (),
            {"dense": self.engine},
            self.run,
            {"calibration": self.calibration, "threshold": threshold, "top_k": top_k},
            plans=lambda duration_s: self.plans(duration_s, search, keep),
            shape=self._shape,
            quiet=not verbose,
        )
        rows = np.asarray(film.features, dtype=np.float32)
        queries = [
            EvalQuery(f"{film.vid}_{number:03d}", sentence, feature=text)
            for number, (sentence, text) in enumerate(zip(sentences, texts, strict=True))
        ]
        return searcher.ground(
            EvalFilm(film.vid, rows, film.feature_fps, film.duration_s, film.key), queries
        )
