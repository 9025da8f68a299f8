"""The model class that lmms-eval loads (see lmms_plugin.py); importing it needs lmms-eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from revisionllm.errors import UserError
from revisionllm.grounder import DEFAULT_BUDGET, DEFAULT_CHECKPOINT
from revisionllm.interop.lmms_answers import query_of_prompt, sentence_of
from revisionllm.library.model_file import ModelFile, read_model
from revisionllm.records.predictions import Prediction

PASSED_BY_LMMS_EVAL = {"max_batch_size"}  # beside batch_size and device
Ground = Callable[[str, Sequence[str]], Sequence[Prediction]]  # video path, queries -> answers


class ReVisionLLM(lmms):
    """Answers temporal grounding questions by searching the whole video file.

    Args:
        checkpoint: run folder, as in `revisionllm find --checkpoint`; empty: the demo's.
        model: demo, clip:NAME:TAG, hf:owner/name or a folder with a `model.json`: `find --model`.
        grounder, grounder_profile, budget: another model for dense windows, as in `find`.
        words: what is said is found, too, as in `find --words`; tasks without subtitles need none.
        device: auto, cpu or cuda.
        batch_size: accepted because lmms-eval passes it; the engine packs queries by itself.
        ground: the search to use instead of the checkpoint's.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str = "",
        model: str = "",
        grounder: str = "",
        grounder_profile: str = "",
        budget: int | str = DEFAULT_BUDGET,
        words: str = "none",
        device: str | None = "auto",
        batch_size: int | str = 1,
        ground: Ground | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        if unused.keys() - PASSED_BY_LMMS_EVAL:
            raise UserError(f"unknown --model_args: {', '.join(unused)}")
        self.batch_size = batch_size
        self._ground = ground or open_ground(
            chosen(checkpoint, model, grounder, grounder_profile),
            device=device or "auto",
            budget=int(budget),
            words=words,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One sentence per request, in their order; the queries on one video are asked together."""
        asked = [self._video_and_query(request) for request in requests]
        sentences = [""] * len(asked)
        for path in dict.fromkeys(path for path, _ in asked):
            rows = [row for row, (other, _) in enumerate(asked) if other == path]
            answers = self._ground(path, [asked[row][1] for row in rows])
            for row, prediction in zip(rows, answers, strict=True):
                sentences[row] = sentence_of(prediction)
        return sentences

    def _video_and_query(self, request: Any) -> tuple[str, str]:
        prompt, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], str):
            raise UserError(f"task {task}, document {doc_id}: expected the path of one video")
        return visuals[0], query_of_prompt(prompt)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not a grounding task. Raises NotImplementedError."""
        raise NotImplementedError("ReVisionLLM answers with time spans; it scores no given text")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not a grounding task. Raises NotImplementedError."""
        raise NotImplementedError("ReVisionLLM answers each question on its own")


def chosen(checkpoint: str, model: str, grounder: str, grounder_profile: str) -> ModelFile:
    """What searches.

    Raises:
        UserError: the arguments contradict each other, or a place is empty.
    """
    if checkpoint and (model or grounder):
        raise UserError("--model_args: checkpoint, or model and grounder")
    if grounder_profile and not grounder:
        raise UserError("--model_args: grounder_profile is of a grounder")
    if grounder:
        profile = Path(grounder_profile) if grounder_profile else None
        return read_model(model or "demo").above(grounder, profile)
    return read_model(model) if model else ModelFile("", checkpoint or str(DEFAULT_CHECKPOINT))


def open_ground(model: ModelFile, *, device: str, budget: int, words: str) -> Ground:
    """The search of a model: opens a video (features are kept between calls), then asks."""
    from revisionllm.library.film_search import FilmSearch

    searching = FilmSearch(model, device=device, words=words)
    return lambda path, queries: searching.find(Path(path), list(queries), budget=budget)[1]
