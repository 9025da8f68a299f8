"""One film file searched for sentences: by an encoder alone or by the levels below it, and by what
is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.data.video import probe
from revisionllm.library.model_file import ModelFile, open_levels
from revisionllm.library.words import AUTO, hints_of, merge, words_of

if TYPE_CHECKING:
    from revisionllm.records.films import Film
    from revisionllm.records.predictions import Prediction


class FilmSearch:
    """A loaded model, for one film after the other.

    Args:
        model: what searches.
        features_dir: where features, words and another model's answers are kept; None:
            `grounder.default_features_dir`.
        words: see `words.open_words`.
        run: what predictions of an encoder alone are signed with.
        snap: moments, and windows of another model, begin and end with shots (`shots.snap`).
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        device: str = "auto",
        features_dir: Path | None = None,
        words: str = AUTO,
        run: str | None = None,
        snap: bool = False,
    ) -> None:
        from revisionllm.grounder import default_features_dir

        self._folder = features_dir or default_features_dir()
        self._device, self._words, self._snap = device, words, snap
        self._run = run or f"clip:{model.encoder}"
        self._grounder = self._calibration = None
        if not model.is_alone:
            self._grounder = open_levels(model, device=device, kept_in=self._folder, snap=snap)
            self._clip = self._grounder.clip
            return
        from revisionllm.library.frames import read_frames_calibration
        from revisionllm.model.clip import load_clip

        self._calibration = read_frames_calibration(model.encoder)
        self._clip = load_clip(model.encoder, device=device)

    def find(
        self,
        video: Path,
        sentences: Sequence[str],
        *,
        threshold: float = 0.5,
        top_k: int = 5,
        **options: Any,
    ) -> tuple[Film, list[Prediction]]:
        """The film, and a prediction per sentence.

        Args:
            options: of `Grounder.ground`, for levels below the encoder.

        Raises:
            UserError: not a readable film, a sentence is too long, or the disk is full.
        """
        from revisionllm.grounder import film_of
        from revisionllm.library.frames import FEATURE_FPS

        probe(video)
        _, features = self._clip.encode_texts(sentences)  # one that is too long is told first
        grounder = self._grounder
        rate = grounder.feature_fps if grounder else FEATURE_FPS
        film = film_of(video, self._clip, rate, features_dir=self._folder)
        words = words_of(
            film.video_path, film.duration_s, self._folder, self._words, device=self._device
        )
        said = words.search(sentences) if words else [[] for _ in sentences]
        ranking = {"threshold": threshold, "top_k": top_k}
        if grounder:
            options |= ranking | {"hints": [hints_of(row) for row in said]}
            predictions = grounder.ground(film, sentences, **options)
        else:
            predictions = self._by_frames(film, sentences, features.numpy(), ranking)
        # an uncalibrated presence is a probability, too, as the model tells it
        is_calibrated = grounder is not None or self._calibration is not None
        for prediction, row in zip(predictions, said, strict=True):
            if words:
                merge(prediction, row, is_calibrated=is_calibrated, **ranking)
            if self._snap:
                from revisionllm.library.shots import snap

                snap(video, prediction.moments)
        return film, predictions

    def _by_frames(self, film: Film, sentences, features, ranking: dict) -> list[Prediction]:
        from revisionllm.library.frames import ground_frames

        return ground_frames(
            film,
            sentences,
            features,
            calibration=self._calibration,
            tokens_per_word=self._clip.tokens_per_word(sentences),
            run=self._run,
            **ranking,
        )

    def num_windows(self, film: Film) -> int | None:
        """Dense windows of a film; None where an encoder is alone."""
        from revisionllm.grounding.windows import dense_windows

        if self._grounder is None:
            return None
        config = self._grounder.config
        return len(
            dense_windows(film.duration_s, window_s=config.window_s, stride_s=config.stride_s)
        )
