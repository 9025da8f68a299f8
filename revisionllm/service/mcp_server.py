"""The tools of `revisionllm mcp`, over a library's `Offers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.service.offers import Offers

try:  # renamed in mcp 2
    from mcp.server.mcpserver import Image, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp import Image
    from mcp.server.fastmcp.exceptions import ToolError


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a call is told to who made it."""
    try:
        yield
    except UserError as error:
        raise ToolError(str(error)) from error


def make_server(offers: Offers, clips: Path) -> MCPServer:
    """The server with its four tools.

    Args:
        clips: folder that clips are written to.
    """
    server = MCPServer(
        "revisionllm", instructions="Find when something happens in a library of long films."
    )

    @server.tool()
    def list_films() -> list[dict[str, Any]]:
        """The library's films: film_id, path, length in seconds, whether it is still there."""
        return offers.films()

    @server.tool()
    def find(
        sentences: list[str], films: list[str] | None = None, top_k: int = 5
    ) -> list[list[dict[str, Any]]]:
        """When does it happen? Per sentence (one event, as one would describe it) the films that
        hold it, the best first, with moments in seconds and their scores, 0 to 1. `found` false
        means that it is probably in none of them. `films`: ids to search in; unset: all."""
        with _told():
            return offers.find(sentences, films=films, top_k=top_k)

    @server.tool(structured_output=False)
    def frames(film_id: str, times_s: list[float]) -> list[Any]:
        """Look: the pictures on screen at some seconds of a film (16 at most)."""
        with _told():
            return [Image(data=jpeg, format="jpeg") for jpeg in offers.frames(film_id, times_s)]

    @server.tool()
    def cut(film_id: str, start_s: float, end_s: float) -> str:
        """Cut a part of a film (600 seconds at most) into a new MP4 file; returns its path."""
        with _told():
            clips.mkdir(parents=True, exist_ok=True)
            return str(offers.clip(film_id, start_s, end_s, clips).resolve())

    return server
