"""From a video file and sentences to ranked moments in seconds: the whole path as a library.

    grounder = Grounder.from_checkpoint("checkpoints/demo/dense")
    film = grounder.open_film("film.mp4", features_dir="out/features")
    for prediction in grounder.ground(film, ["a red ball bounces on the beach"]):
        print(prediction.found, prediction.moments[:3])

decode -> CLIP features -> windows -> adapter -> LLM -> answers -> search -> moments. The search
here is coarse to fine over two levels: text-frame cosine of short segments (no model pass), then
dense windows where segments survived. Paper: https://arxiv.org/abs/2411.14901, section 3.
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
from revisionllm.grounding.levels import Level, SearchResult
from revisionllm.grounding.windows import Window, frame_feature_indices

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "demo" / "dense"
SEARCHES = ("planned", "exhaustive")
SEGMENTS_PER_WINDOW = 4  # the cosine level cuts a window into this many segments
DEFAULT_KEEP = 0.15  # share of the film's segments that survive the cosine level


@dataclass(frozen=True)
class Film:
    """A film ready to be searched: frame features with their rate and clock.

    Attributes:
        vid: name used in predictions.
        features: [T, D]; row i is the frame at i / feature_fps seconds.
        duration_s: length in seconds.
        video_path: the file, if there is one.
    """

    vid: str
    features: np.ndarray
    feature_fps: float
    duration_s: float
    video_path: Path | None = None


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
        return Film(path.stem, rows, fps, file.duration_s, path)

    def window_features(self, film: Film, window: Window) -> np.ndarray:
        """The frames the model sees of a window: float32 [F, D]."""
        config = self.model.config
        indices = frame_feature_indices(
            window.start_s,
            window_s=config.window_s,
            frames_per_window=config.frames_per_window,
            feature_fps=film.feature_fps,
            num_features=len(film.features),
            time_mapping=config.time_mapping,
        )
        return np.asarray(film.features[indices], dtype=np.float32)

    # --- search ----------------------------------------------------------------------------------

    def levels(self, search: str = "planned", keep: float = DEFAULT_KEEP) -> list[Level]:
        """Coarse to fine: cosine over short segments unless exhaustive, then dense windows."""
        config = self.model.config
        segment_s = config.window_s / SEGMENTS_PER_WINDOW
        cosine = Level(
            "cosine", "cosine", segment_s, segment_s / 2, keep_fraction=keep, margin_s=0.0
        )
        dense = Level("dense", "dense", config.window_s, config.stride_s)
        return [dense] if search == "exhaustive" else [cosine, dense]

    def ground(
        self,
        film: Film,
        sentences: Sequence[str],
        *,
        search: str = "planned",
        keep: float = DEFAULT_KEEP,
        threshold: float = 0.5,
        top_k: int = 50,
    ) -> list:
        """Find every sentence in the film.

        Args:
            search: "planned" (cosine first) or "exhaustive" (every dense window).
            keep: share of segments that survive the cosine level.
            threshold: a sentence is found if its best moment scores at least this.
            top_k: moments per sentence at most.

        Returns:
            One `eval.predictions.Prediction` per sentence, in order. Work that sentences share
            (window prefixes) is divided evenly among their costs.

        Raises:
            UserError: an empty sentence, or one longer than CLIP's text encoder takes.
        """
        import time

        from revisionllm.grounding.recursion import search_many
        from revisionllm.grounding.scores import frame_cosines, span_cosine_of

        check_sentences(sentences)
        started, tokens = time.perf_counter(), self.engine.cost.llm_tokens
        features = np.asarray(film.features, dtype=np.float32)
        texts = self.clip.encode_texts(list(sentences))[1].numpy()
        results = search_many(
            len(sentences),
            film.duration_s,
            self.levels(search, keep),
            lambda level, questions: self.engine.answer(
                questions, sentences, lambda window: self.window_features(film, window)
            ),
            cosine=span_cosine_of(frame_cosines(features, texts), film.feature_fps),
            calibration=self.calibration,
            threshold=threshold,
            top_k=top_k,
        )
        share = 1 / len(sentences)
        tokens = round((self.engine.cost.llm_tokens - tokens) * share)
        seconds = (time.perf_counter() - started) * share
        return [
            self._prediction(film, number, sentence, result, tokens, seconds)
            for number, (sentence, result) in enumerate(zip(sentences, results, strict=True))
        ]

    def _prediction(
        self,
        film: Film,
        number: int,
        sentence: str,
        result: SearchResult,
        tokens: int,
        seconds: float,
    ):
        from revisionllm.eval import predictions as schema

        looked_at = [
            schema.WindowAnswer(a.index, a.start_s, a.end_s, a.answer, a.presence, a.entropy)
            for a in sorted(result.answers.get("dense", []), key=lambda answer: answer.index)
        ]
        moments = [
            schema.Moment(m.start_s, m.end_s, m.score, m.parts, m.level) for m in result.moments
        ]
        cost = schema.Cost(result.cost.dense_windows, result.cost.segments, tokens, seconds)
        return schema.Prediction(
            qid=f"{film.vid}_{number:03d}",
            vid=film.vid,
            query=sentence,
            duration_s=film.duration_s,
            found=result.found,
            moments=moments,
            cost=cost,
            run=self.run,
            windows=looked_at,
        )
