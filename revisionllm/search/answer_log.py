"""Answers of a batch of queries while it is being asked, on disk, so that a kill loses little.

A search asks level by level; the log cuts each level's questions into pieces, and writes every
piece's answers at once. The search is deterministic: started again, it asks for the same pieces in
the same order and gets the written ones back. Once the batch's predictions are written, the log is
cleared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import BadRecord, json_digest, lock_file, parse_json
from revisionllm.grounding.levels import Question, SpanCandidate, WindowAnswer

# So many questions a piece: minutes of a 7B model, and enough that packing loses nothing.
PIECE_QUESTIONS = 1024

Ask = Callable[[Sequence[Question]], Sequence[WindowAnswer]]


class AnswerLog:
    """The pieces of the running batch.

    Args:
        path: the file; it appears with the first piece and goes when a batch is done.
        made_with: everything the answers depend on besides film and queries; answers that were made
            with something else are not taken up.
    """

    def __init__(self, path: Path, made_with: Any) -> None:
        self.path = path
        self._made_with = made_with
        self._file = None
        self._known: list[dict[str, Any]] = []
        self._batch = ""
        self.progress: Callable[[str, int, int], None] | None = None

    def start_batch(self, film_key: Any, qids: Sequence[str]) -> None:
        """Begin, or go on with, a batch of queries about one film."""
        self._batch = json_digest([self._made_with, film_key, list(qids)])
        self._known = []
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                piece = parse_json(line)
            except BadRecord:  # torn by a kill: it was the last one
                break
            if not isinstance(piece, dict) or piece.get("batch") != self._batch:
                break
            self._known.append(piece)
        kept = "".join(json.dumps(piece) + "\n" for piece in self._known)
        self.path.write_text(kept, encoding="utf-8")

    def ask(
        self, level: str, questions: Sequence[Question], ask: Ask, tokens: Callable[[], int]
    ) -> tuple[list[WindowAnswer], int]:
        """All answers, asked for piece by piece as far as they are not written.

        Args:
            tokens: LLM tokens so far.

        Returns:
            The answers in order, and the LLM tokens that the written ones had taken.
        """
        order = sorted(range(len(questions)), key=lambda i: questions[i].windows[0].index)
        answers: list[WindowAnswer | None] = [None] * len(questions)
        spared = 0
        for first in range(0, len(order), PIECE_QUESTIONS):
            places = order[first : first + PIECE_QUESTIONS]
            piece = [questions[place] for place in places]
            asked = [[q.query, q.repeat, *map(str, q.windows)] for q in piece]
            digest = json_digest([level, asked])
            if self._known and self._known[0].get("questions") == digest:
                known = self._known.pop(0)
                found, spared = _answers(known, self.path), spared + known["tokens"]
            else:
                self._known = []
                before = tokens()
                found = list(ask(piece))
                self._write(digest, found, tokens() - before)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
            if self.progress is not None:
                self.progress(level, first + len(places), len(order))
        return answers, spared

    def _write(self, digest: str, answers: Sequence[WindowAnswer], tokens: int) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
            lock_file(self._file, f"writes {self.path}")
        rows = [asdict(answer) for answer in answers]
        record = {"batch": self._batch, "questions": digest, "tokens": tokens, "answers": rows}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def clear(self) -> None:
        """The batch is done and written elsewhere."""
        self._close()
        self._known = []
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()


def _answers(piece: dict[str, Any], path: Path) -> list[WindowAnswer]:
    try:
        return [
            WindowAnswer(**(row | {"spans": tuple(SpanCandidate(**s) for s in row["spans"])}))
            for row in piece["answers"]
        ]
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; remove it, its answers are asked for again") from error
