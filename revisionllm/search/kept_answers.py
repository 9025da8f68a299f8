"""An engine that asks its model about everything once, and may keep the answers on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from revisionllm.errors import UserError
from revisionllm.grounding.levels import Level, Question, SpanCandidate, WindowAnswer
from revisionllm.model.clip import weights_digest
from revisionllm.records.films import Film, Query
from revisionllm.records.jsonl import Problem, iter_json_lines, write_json_lines


class MemoEngine:
    """An engine that asks its model about every (film, sentence, window) once.

    `change` rewrites an answer before the search sees it. `shown` counts what questions showed,
    remembered ones too: (questions, positions).
    """

    def __init__(self, engine, memory: dict | KeptAnswers, change=None) -> None:
        self.engine, self.memory, self.change = engine, memory, change
        self.model, self.cost = engine.model, engine.cost
        self.shown = (0, 0)

    def answer(
        self, level: Level, questions: Sequence[Question], film: Film, queries: Sequence[Query]
    ) -> list[WindowAnswer]:
        """As the engine's own `answer`; the film must have a key."""
        positions = sum(question.num_positions for question in questions)
        self.shown = (self.shown[0] + len(questions), self.shown[1] + positions)
        keys = [
            (film.key, queries[q.query].sentence, q.windows, q.repeat, level.narrow)
            for q in questions
        ]
        new = [i for i, key in enumerate(keys) if key not in self.memory]
        asked = [questions[i] for i in new]
        if asked:
            answers = self.engine.answer(level, asked, film, queries)
            self.memory.update(dict(zip((keys[i] for i in new), answers, strict=True)))
        found = [self.memory[key] for key in keys]
        return [self.change(answer) for answer in found] if self.change else found


class KeptAnswers:
    """Answers by key, as a dict holds them, each update a JSONL file of its own in a folder.

    The folder is named after the weights, the run's config and the CLIP, so that others never meet
    them. Whoever changes how the engine answers has to begin a new folder.

    Args:
        clip: fingerprint of the CLIP whose features the model was shown.

    Raises:
        UserError: a file in the folder cannot be read.
    """

    def __init__(self, folder: Path, model, clip: str) -> None:
        self.folder = folder / weights_digest(model, f"{model.config} {clip}")
        self._answers: dict[str, WindowAnswer] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for _, row in iter_json_lines(path):
                if isinstance(row, Problem):
                    raise UserError(f"{row}; delete the file and its answers are asked for again")
                key, spans = row.pop("key"), row.pop("spans")
                spans = tuple(SpanCandidate(*span) for span in spans)
                self._answers[key] = WindowAnswer(spans=spans, **row)

    def __contains__(self, key: Hashable) -> bool:
        return _digest(key) in self._answers

    def __getitem__(self, key: Hashable) -> WindowAnswer:
        return self._answers[_digest(key)]

    def update(self, answers: Mapping[Hashable, WindowAnswer]) -> None:
        """Keep more; they are on disk when this returns."""
        new = {_digest(key): answer for key, answer in answers.items()}
        rows = [{"key": key, **asdict(answer)} for key, answer in new.items()]
        for row in rows:
            row["spans"] = [list(span.values()) for span in row["spans"]]
        write_json_lines(self.folder / f"{_digest(sorted(new))}.jsonl", rows)
        self._answers |= new


def _digest(key: Hashable | list) -> str:
    """32 hex digits over a key; equal keys have equal text."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]
