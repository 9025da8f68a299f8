"""The model class that lmms-eval loads (see lmms_plugin.py); importing it needs lmms-eval."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.model import lmms

from revisionllm.errors import UserError
from revisionllm.eval.predictions import Prediction
from revisionllm.interop.lmms_answers import query_of_prompt, sentence_of

Grounder = Callable[[str, str], Prediction]  # (video path, query) -> prediction


class ReVisionLLM(lmms):
    """Answers temporal grounding questions by searching the whole video file.

    Args:
        run: run folder or released checkpoint, as in `revisionllm find --run`.
        device: auto, cpu or cuda.
        batch_size: accepted because lmms-eval passes it; the engine packs queries by itself.
        ground: the search to use instead of the one `run` names.
    """

    is_simple = True

    def __init__(
        self,
        run: str = "checkpoints/demo/dense",
        device: str = "auto",
        batch_size: int | str = 1,
        ground: Grounder | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        if ground is None:
            from revisionllm.find import open_grounder

            ground = open_grounder(run, device=device)
        self._ground = ground

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One sentence per request, in the order of the requests."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> str:
        prompt, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], str):
            raise UserError(f"task {task}, document {doc_id}: expected the path of one video")
        prediction = self._ground(visuals[0], query_of_prompt(prompt))
        if prediction.status == "failed":
            print(f"{task} document {doc_id}: {prediction.reason}", file=sys.stderr)
        return sentence_of(prediction)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not a grounding task. Raises NotImplementedError."""
        raise NotImplementedError("ReVisionLLM answers with time spans; it scores no given text")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not a grounding task. Raises NotImplementedError."""
        raise NotImplementedError("ReVisionLLM answers each question on its own")
