"""A video-LLM behind an OpenAI-compatible server: vLLM, SGLang, `transformers serve`, llama.cpp.

https://platform.openai.com/docs/api-reference/chat. The package `openai` waits and tries again
where that may help (429, 5xx, lost connections).
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence

from revisionllm.engine.foreign import Lost, Prompt, Reply
from revisionllm.errors import UserError, check_installed

TIMEOUT_S = 120.0
RETRIES = 4
IN_FLIGHT = 8
KEY_VARIABLE = "OPENAI_API_KEY"
TOP_LOGPROBS = 20


class ServerAsker:
    """Asks a server; see `foreign.Asker`.

    Args:
        url: of the API, such as http://127.0.0.1:8000/v1.
        model: as the server names it.

    Raises:
        UserError: `openai` is not installed, or no server answers there.
    """

    batch = 1

    def __init__(
        self, url: str, model: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        check_installed("a grounder behind a server needs a package", "openai")
        import openai

        self.name, self.in_flight = f"{url}#{model}", IN_FLIGHT
        self._model, self._openai = model, openai
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY_VARIABLE, "none"),
            timeout=timeout_s,
            max_retries=retries,
        )
        self._tells_logprobs = True
        try:
            self._client.with_options(timeout=10.0, max_retries=1).models.list()
        except openai.APIConnectionError as error:
            raise UserError(f"no server answers at {url}; start it, or mend --grounder") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{url} wants a key; put it into ${KEY_VARIABLE}") from error
        except (openai.OpenAIError, ValueError):
            pass  # a server without a list of models; the first question will tell

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, yes_no: bool) -> list[Reply]:
        """Ask the server, one prompt after the other."""
        return [self._ask(prompt, tokens, yes_no) for prompt in prompts]

    def _ask(self, prompt: Prompt, tokens: int, yes_no: bool) -> Reply:
        openai = self._openai
        options = {}
        if yes_no and self._tells_logprobs:
            options = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        try:
            made = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": _content(prompt)}],
                max_tokens=tokens,
                temperature=0.0,
                seed=0,
                **options,
            )
            choice = made.choices[0]
            text = choice.message.content or ""
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not options:
                raise Lost(_line(error)) from error
            reply = self._ask(prompt, tokens, False)
            self._tells_logprobs = False  # without them it answers: never ask for them again
            return reply
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{self.name} wants a key; put it into ${KEY_VARIABLE}") from error
        except openai.NotFoundError as error:
            raise UserError(f"{self.name}: {_line(error)}") from error
        except (openai.OpenAIError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise Lost(_line(error)) from error  # the last four: half an answer, or another shape
        if not isinstance(text, str):
            raise Lost("the answer is no text")
        return Reply(text, _yes(choice) if options else None)


def _content(prompt: Prompt) -> list[dict]:
    parts: list[dict] = []
    for stamp, jpeg in zip(prompt.stamps, prompt.jpegs, strict=True):
        address = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        parts += [
            {"type": "text", "text": stamp},
            {"type": "image_url", "image_url": {"url": address}},
        ]
    return [*parts, {"type": "text", "text": prompt.text}]


def _yes(choice) -> float | None:
    """P("yes") against "no" by the first token's probabilities; None: they are not told."""
    told = getattr(choice.logprobs, "content", None)
    if not told:
        return None
    chances = {"yes": 0.0, "no": 0.0}
    for one in told[0].top_logprobs or ():
        word = str(one.token).strip().lower()
        if word in chances and isinstance(one.logprob, int | float) and one.logprob <= 0:
            chances[word] += math.exp(one.logprob)
    total = sum(chances.values())
    return chances["yes"] / total if total > 0 else None


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
