"""Samples to tensors, without state: what a batch holds depends on its samples alone.

Plain batches are the arguments of `GroundingModel.forward`, one row per question. Packed ones have
one row per window: tokens before the video and the words that all questions share once, then the
rest of every question with its answer, one behind the other (see `model/packing.py`).

Legend: B rows, S segments, F frames, D feature dim, L words, P prompt tokens, N packed tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from revisionllm.constants import IGNORE_INDEX
from revisionllm.formats.questions import QUESTIONS, question_text
from revisionllm.model.prompts import (
    Tokenizer,
    encode_answer,
    encode_chunks,
    prompt_pieces,
    prompt_text,
    training_ids,
)
from revisionllm.train.dataset import Sample

PAD_ID = 0  # masked everywhere, so any id will do


class PlainCollator:
    """Samples to the arguments of `GroundingModel.forward`, a row per question.

    Returns of a call: input_ids, labels [B, P] (right-padded), attention_mask bool [B, P]; images
    [B, F, D] for dense, [B, S, F, D] otherwise, or a list of [S, F, D] where rows differ in S;
    query_features [B, L, D] and query_mask bool [B, L], or None; adapter_output "frames" or
    "segment", None if the adapter does not read queries. Besides: query_ids, num_questions.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        mode = _common_mode(samples)
        rows = [(s, number) for s in samples for number in range(len(s.questions))]
        questions = [s.questions[number] for s, number in rows]
        encoded = [training_ids(self.tokenizer, q.text, q.answer) for q in questions]
        reads_query = samples[0].query_features is not None
        words = [s.query_features[number] for s, number in rows] if reads_query else None
        batch = {
            "input_ids": _padded([ids for ids, _ in encoded], PAD_ID),
            "labels": _padded([labels for _, labels in encoded], IGNORE_INDEX),
            "attention_mask": _padded([[1] * len(ids) for ids, _ in encoded], 0).bool(),
            "images": _images([s for s, _ in rows]),
            "query_features": None,
            "query_mask": None,
            "adapter_output": mode if reads_query else None,
            "query_ids": [q.query_id for q in questions],
            "num_questions": len(questions),
        }
        if words is not None:
            batch["query_features"], batch["query_mask"] = _padded_words(words)
        return batch


class PackedCollator:
    """Dense samples to packed rows, a row per window; for an adapter that does not read queries.

    Returns of a call: images [B, F, D]; before_ids [K], tokens before the video; shared_ids [C],
    words behind it that all questions share; and [B, N] each: ids, owners (`NO_OWNER` at the end),
    positions (counted from the start of the row), visible (prefix tokens seen: K + F + C) and
    labels, where labels[b, n] is what position n is to predict, `IGNORE_INDEX` where nothing.
    Besides: query_ids (a list per row), num_questions.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # The words in front of the query, without the space: that may be a part of its first token.
        stem = QUESTIONS["frames"].split("{query}")[0].rstrip()
        prompt = prompt_text(stem).removesuffix(" ASSISTANT:")
        self._before, words = encode_chunks(tokenizer, prompt)
        _, whole = prompt_pieces(tokenizer, question_text("x", "frames"))
        pairs = zip(words, whole, strict=False)
        self._shared = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        import torch

        from revisionllm.model.packing import NO_OWNER

        if _common_mode(samples) != "frames":
            raise ValueError("only dense samples can be packed")
        prefix_length = len(self._before) + samples[0].features.shape[1] + len(self._shared)
        rows = [self._row(sample, prefix_length) for sample in samples]
        padding = {"ids": PAD_ID, "owners": NO_OWNER, "labels": IGNORE_INDEX}
        padding |= {"positions": 0, "visible": 0}
        packed = {name: _padded([row[name] for row in rows], pad) for name, pad in padding.items()}
        return {
            "images": _images(samples),
            "before_ids": torch.tensor(self._before),
            "shared_ids": torch.tensor(self._shared),
            **packed,
            "query_ids": [[q.query_id for q in sample.questions] for sample in samples],
            "num_questions": sum(len(sample.questions) for sample in samples),
        }

    def _row(self, sample: Sample, prefix_length: int) -> dict[str, list[int]]:
        """The packed tokens of a window's questions."""
        row: dict[str, list[int]] = {
            name: [] for name in ("ids", "owners", "positions", "visible", "labels")
        }
        for owner, question in enumerate(sample.questions):
            before, after = prompt_pieces(self.tokenizer, question.text)
            common = len(self._shared)
            if before != self._before or after[:common] != self._shared or len(after) <= common:
                raise ValueError(
                    f"query {question.query_id}: tokens of {question.text!r} do not begin as those"
                    " of other questions"
                )
            answer = [*encode_answer(self.tokenizer, question.answer), self.tokenizer.eos_token_id]
            rest = after[common:]
            size = len(rest) + len(answer)
            row["ids"] += rest + answer
            row["labels"] += [IGNORE_INDEX] * (len(rest) - 1) + answer + [IGNORE_INDEX]
            row["owners"] += [owner] * size
            row["positions"] += range(prefix_length, prefix_length + size)
            row["visible"] += [prefix_length] * size
        return row


def _common_mode(samples: Sequence[Sample]) -> str:
    """The one adapter output of a batch; the sampler never mixes them."""
    modes = {sample.plan.mode for sample in samples}
    if len(modes) != 1:
        raise ValueError(f"a batch must have one adapter output, got {sorted(modes)}")
    return modes.pop()


def _padded(rows: Sequence[Sequence[int]], value: int):
    """int64 [B, longest], padded on the right."""
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _padded_words(words: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Word features float32 [B, L, D], zero-padded, and their mask."""
    import torch

    features = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in words], True)
    lengths = torch.tensor([len(w) for w in words])
    return features, torch.arange(features.shape[1]) < lengths[:, None]


def _images(samples: Sequence[Sample]):
    """Features of the rows: one tensor, or a list where they differ in the number of segments."""
    import torch

    images = [torch.from_numpy(sample.features) for sample in samples]
    if samples[0].plan.kind == "dense":
        return torch.stack([image[0] for image in images])
    same = len({image.shape for image in images}) == 1
    return torch.stack(images) if same else images
