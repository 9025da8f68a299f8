"""What adapters read of a query."""

from __future__ import annotations

import numpy as np


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
