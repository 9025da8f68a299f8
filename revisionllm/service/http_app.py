"""The HTTP application over a library's `Offers`; FastAPI's page of it is at /docs."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from revisionllm import __version__
from revisionllm.constants import MAX_SENTENCE
from revisionllm.errors import UserError
from revisionllm.service.offers import MOST_MOMENTS, MOST_SENTENCES, NoSuchFilm, Offers
from revisionllm.service.serve import is_here as is_this_machine

LARGEST_BODY = 256 * 1024  # bytes
WAITING, WAIT_S = 16, 120.0  # requests that work or wait, and for how long
MOST_SECONDS = 1e7  # a time in a film, for the schema

Sentence = Annotated[str, Field(min_length=1, max_length=MAX_SENTENCE)]
FilmId = Annotated[str, InPath(pattern="^[0-9a-f]{16}$")]
Seconds = Annotated[float, Query(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


class Told(BaseModel):
    """What is wrong, in a line, or field by field."""

    detail: str | list[dict[str, Any]]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "no JSON"},
    401: {"description": "no token, or a wrong one"},
    404: {"description": "no such film"},
    413: {"description": "the question is too long"},
    421: {"description": "asked under another machine's name"},
    422: {"description": "no question that can be answered", "model": Told},
    503: {"description": "too many requests wait"},
    504: {"description": "it takes too long"},
}


class Question(BaseModel):
    """Sentences to find."""

    model_config = ConfigDict(extra="forbid")
    sentences: Annotated[list[Sentence], Field(min_length=1, max_length=MOST_SENTENCES)]
    films: Annotated[list[str] | None, Field(min_length=1, description="ids; unset: all films")] = (
        None
    )
    top_k: Annotated[int, Field(ge=1, le=MOST_MOMENTS)] = 5
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5


def make_app(offers: Offers, folder: Path, *, token: str = "", is_here: bool = True) -> FastAPI:
    """The application.

    Args:
        folder: where clips are written until they are sent.
        token: what callers must send; "": nothing.
        is_here: it answers this machine alone, under its own names.
    """
    app = FastAPI(
        title="ReVisionLLM", version=__version__, description="When things happen in long films."
    )
    app.add_middleware(_Guard, token=token, is_here=is_here)

    @app.exception_handler(UserError)
    async def told(request, error):
        status = 404 if isinstance(error, NoSuchFilm) else 422
        return JSONResponse({"detail": str(error)}, status)

    _add_routes(app, offers, folder, _Queue())
    return app


def _add_routes(app: FastAPI, offers: Offers, folder: Path, queue: _Queue) -> None:
    @app.get("/films", responses=ERRORS)
    def films() -> list[dict[str, Any]]:
        """The library's films."""
        return offers.films()

    @app.post("/find", responses=ERRORS)
    async def find(question: Question) -> list[list[dict[str, Any]]]:
        """Per sentence its films, the best first; fields as in docs/json.md."""
        return await queue.work(
            lambda: offers.find(
                question.sentences,
                films=question.films,
                top_k=question.top_k,
                threshold=question.threshold,
            )
        )

    @app.get("/films/{film_id}/frame", responses=ERRORS, response_class=Response)
    async def frame(film_id: FilmId, at_s: Seconds) -> Response:
        """What is on screen, as JPEG."""
        (jpeg,) = await queue.work(lambda: offers.frames(film_id, [at_s]))
        return Response(jpeg, media_type="image/jpeg")

    @app.get("/films/{film_id}/clip", responses=ERRORS, response_class=FileResponse)
    async def clip(film_id: FilmId, start_s: Seconds, end_s: Seconds) -> FileResponse:
        """A part of a film, as MP4."""
        path = await queue.work(
            lambda: offers.clip(film_id, start_s, end_s, folder), drop=lambda made: made.unlink()
        )
        name = f"{film_id}_{start_s:.1f}-{end_s:.1f}.mp4"
        return FileResponse(
            path, media_type="video/mp4", filename=name, background=BackgroundTask(path.unlink)
        )


class _Queue:
    """Work off the event loop; so much may wait, and so long."""

    def __init__(self) -> None:
        self._waiting = 0

    async def work(self, make: Callable, drop: Callable | None = None) -> Any:
        """What `make` returns.

        Args:
            drop: what to do with a result that comes too late.
        """
        if self._waiting >= WAITING:
            raise HTTPException(503, "too many requests wait", {"Retry-After": "5"})
        self._waiting += 1
        task = asyncio.ensure_future(asyncio.to_thread(make))
        task.add_done_callback(self._leave)
        try:
            return await asyncio.wait_for(asyncio.shield(task), WAIT_S)
        except asyncio.TimeoutError as error:
            if drop is not None:
                task.add_done_callback(lambda done: done.exception() or drop(done.result()))
            raise HTTPException(504, "it takes too long; ask for less") from error

    def _leave(self, task: asyncio.Future) -> None:
        self._waiting -= 1
        if not task.cancelled():
            task.exception()  # looked at, also where nobody waits any more


class _Guard:
    """Before anything is read: whose name is asked under, the token, and how long the body is."""

    def __init__(self, app, token: str, is_here: bool) -> None:
        self.app, self.token, self.is_here = app, token, is_here

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        # a page from elsewhere may reach this machine under its own name (DNS rebinding)
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
        if self.is_here and not is_this_machine(host):
            return await _refuse(send, 421, "ask under this machine's own name")
        sent = headers.get(b"authorization", b"")
        if self.token and not hmac.compare_digest(sent, f"Bearer {self.token}".encode()):
            return await _refuse(send, 401, "no token, or a wrong one")
        if not headers.get(b"content-length", b"0").isdigit():
            return await _refuse(send, 400, "a length that is no number")
        if int(headers.get(b"content-length", b"0")) > LARGEST_BODY:
            return await _refuse(send, 413, "the question is too long")
        taken = 0

        async def counted():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > LARGEST_BODY:
                raise HTTPException(413, "the question is too long")
            return message

        return await self.app(scope, counted, send)


async def _refuse(send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
