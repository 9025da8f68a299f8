"""Samples to tensors, without state: what a batch holds depends on its samples alone.

Plain batches are the arguments of `GroundingModel.forward`, one row per question. Packed ones have
one row per window: tokens before the video and the words that all questions share once, then the
rest of every question with its answer, one behind the other (see `model/packing.py`).

Legend: B rows, S segments, F frames, D feature dim, L words, P prompt tokens, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from revisionllm.constants import IGNORE_INDEX, NO_OWNER
from revisionllm.engine.dense import PROBES, shared_tokens
from revisionllm.formats.questions import question_text
from revisionllm.model.prompts import (
    VICUNA,
    Tokenizer,
    encode_answer,
    prompt_pieces,
    training_ids,
)
from revisionllm.train.dataset import Sample

PAD_ID = 0  # masked everywhere, so any id will do
PADDING = {"ids": PAD_ID, "owners": NO_OWNER, "positions": 0, "visible": 0, "labels": IGNORE_INDEX}


class PlainCollator:
    """Samples to the arguments of `GroundingModel.forward`, a row per question.

    Returns of a call: input_ids, labels [B, P] (right-padded), attention_mask bool [B, P]; images
    [B, F, D] for dense, [B, S, F, D] otherwise, or a list of [S, F, D] where rows differ in S;
    query_features [B, L, D] and query_mask bool [B, L], or None; adapter_output "frames" or
    "segment", None if the adapter does not read queries. Besides: query_ids, num_questions, and
    present, bool [B], false where the answer is `Not Present` or no.
    """

    def __init__(self, tokenizer: Tokenizer, template: str = VICUNA) -> None:
        self.tokenizer, self.template = tokenizer, template

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        output = _common_output(samples)
        rows = [(s, number) for s in samples for number in range(len(s.questions))]
        questions = [s.questions[number] for s, number in rows]
        encoded = [training_ids(self.tokenizer, q.text, q.answer, self.template) for q in questions]
        reads_query = samples[0].query_features is not None
        words = [s.query_features[number] for s, number in rows] if reads_query else None
        batch = {
            "input_ids": _padded([ids for ids, _ in encoded], PAD_ID),
            "labels": _padded([labels for _, labels in encoded], IGNORE_INDEX),
            "attention_mask": _padded([[1] * len(ids) for ids, _ in encoded], 0).bool(),
            "images": _images([s for s, _ in rows]),
            "query_features": None,
            "query_mask": None,
            "adapter_output": output if reads_query else None,
            "query_ids": [q.query_id for q in questions],
            "num_questions": len(questions),
            "present": _present(samples),
        }
        if words is not None:
            batch["query_features"], batch["query_mask"] = _padded_words(words)
        return batch


class PackedCollator:
    """Dense samples to packed rows, a row per window; for an adapter that does not read queries.

    Attributes:
        before, shared: tokens before the video, and words behind it that questions share.

    Returns of a call: images [B, F, D]; before_ids [K], tokens before the video; shared_ids [C],
    words behind it that all questions share; and [B, N] each: ids, owners (`NO_OWNER` at the end),
    positions (counted from the start of the row), visible (prefix tokens seen: K + F + C) and
    labels, where labels[b, n] is what position n is to predict, `IGNORE_INDEX` where nothing.
    Besides: query_ids (a list per row), num_questions, present (bool, one per question).
    """

    def __init__(self, tokenizer: Tokenizer, template: str = VICUNA) -> None:
        self.tokenizer, self.template = tokenizer, template
        pieces = [
            prompt_pieces(tokenizer, question_text(probe, "frames"), template) for probe in PROBES
        ]
        self.before, self.shared = pieces[0][0], shared_tokens([after for _, after in pieces])

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        import torch

        if _common_output(samples) != "frames":
            raise ValueError("only dense samples can be packed")
        asked = [[(q.text, q.answer) for q in sample.questions] for sample in samples]
        rows = [self.pack(questions, samples[0].features.shape[1]) for questions in asked]
        return {
            "images": _images(samples),
            "before_ids": torch.tensor(self.before),
            "shared_ids": torch.tensor(self.shared),
            **padded_rows(rows),
            "query_ids": [[q.query_id for q in sample.questions] for sample in samples],
            "num_questions": sum(len(sample.questions) for sample in samples),
            "present": _present(samples),
        }

    def pack(self, questions: Sequence[tuple[str, str]], num_frames: int) -> dict[str, list[int]]:
        """The packed tokens of a window's questions, and `ask`: where each one's prompt ends.

        A question in other words than the shared ones sees the prefix without these.

        Args:
            questions: texts and answers.
            num_frames: F.
        """
        row: dict[str, list[int]] = {name: [] for name in (*PADDING, "ask")}
        common = len(self.shared)
        for owner, (text, answer) in enumerate(questions):
            before, after = prompt_pieces(self.tokenizer, text, self.template)
            if before != self.before:
                raise ValueError(f"{text!r} stands behind other words than the other questions")
            skipped = common if after[:common] == self.shared and len(after) > common else 0
            start = len(self.before) + num_frames + skipped
            rest = after[skipped:]
            said = [
                *encode_answer(self.tokenizer, answer, self.template),
                self.tokenizer.eos_token_id,
            ]
            size = len(rest) + len(said)
            row["ask"].append(len(row["ids"]) + len(rest) - 1)
            row["ids"] += rest + said
            # position i predicts token i + 1: the answer's labels move one to the left
            row["labels"] += [IGNORE_INDEX] * (len(rest) - 1) + said + [IGNORE_INDEX]
            row["owners"] += [owner] * size
            row["positions"] += range(start, start + size)
            row["visible"] += [start] * size
        return row


def padded_rows(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Rows of `PackedCollator.pack` as int64 tensors [B, N]."""
    return {name: _padded([row[name] for row in rows], pad) for name, pad in PADDING.items()}


def _common_output(samples: Sequence[Sample]) -> str:
    """The one adapter output of a batch; the sampler never mixes them."""
    outputs = {sample.plan.adapter_output for sample in samples}
    if len(outputs) != 1:
        raise ValueError(f"a batch must have one adapter output, got {sorted(outputs)}")
    return outputs.pop()


def _present(samples: Sequence[Sample]) -> Any:
    """bool [Q]: is what is asked there? Question by question, as the losses are."""
    import torch

    return torch.tensor([t.span is not None for sample in samples for t in sample.plan.targets])


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
    if samples[0].plan.adapter_output == "frames":
        return torch.stack([image[0] for image in images])
    same = len({image.shape for image in images}) == 1
    return torch.stack(images) if same else images
