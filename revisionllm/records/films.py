"""A film's features and the sentences to find in it: what every search is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revisionllm.grounding.windows import Window, WindowClock


@dataclass(frozen=True)
class Film:
    """A film's features [T, D]; row i is the frame at i / feature_fps seconds.

    Attributes:
        vid: name used in predictions.
        key: names these very features; engines keep work for the next queries about the same key.
            None: nothing is kept.
        video_path: the file, if there is one.
        coarse: other features of the whole film and their rate, which text-frame cosine is taken
            from; None: from `features`. With it `features` may be rows that are read on demand.
    """

    vid: str
    features: np.ndarray
    feature_fps: float
    duration_s: float
    key: str | None = None
    video_path: Path | None = None
    coarse: tuple[np.ndarray, float] | None = None

    def window_frames(self, window: Window, config) -> np.ndarray:
        """What a run's model sees of a window: float32 [F, D]."""
        clock = WindowClock(
            window.end_s - window.start_s,
            config.frames_per_window,
            self.feature_fps,
            config.time_mapping,
        )
        indices = clock.feature_indices(window.start_s, len(self.features))
        return np.asarray(self.features[indices], dtype=np.float32)


@dataclass(frozen=True)
class Query:
    """A sentence to find in a film.

    Attributes:
        gt: true spans in seconds; None: not known.
        words: word features [L, D]; None where no level needs them.
        feature: sentence feature [D]; None: no text-frame cosine.
        hints: spans that something else proposes, such as what is said, best first.
    """

    qid: str
    sentence: str
    gt: list[tuple[float, float]] | None = None
    words: np.ndarray | None = None
    feature: np.ndarray | None = None
    hints: Sequence[tuple[float, float]] = ()

    def rows_for(self, config) -> np.ndarray:
        """What the adapter of a run reads of the query; see `query_rows`."""
        return query_rows(self.words, self.feature, reads_sentence=config.adapter.reads_sentence)


def query_rows(
    words: np.ndarray, sentence: np.ndarray | None, *, reads_sentence: bool
) -> np.ndarray:
    """Rows of a query for an adapter: its words, and behind them the sentence if it is read.

    Args:
        words: word features [L, D].
        sentence: sentence feature [D]; None: there is none.
        reads_sentence: see `model.clip_adapter.ClipAdapter`.

    Returns:
        [L, D], or [L + 1, D] with `reads_sentence`.

    Raises:
        ValueError: the sentence is to be read, and there is none.
    """
    if not reads_sentence:
        return words
    if sentence is None:
        raise ValueError("the adapter of this run reads sentence features, and the query has none")
    return np.concatenate([words, np.asarray(sentence, dtype=words.dtype).reshape(1, -1)])
