"""`revisionllm mcp`, spoken to by the protocol's own client over stdin and stdout."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from PIL import Image

from revisionllm.cli import main
from revisionllm.data.video import probe


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("films")
    write_film(plan_film(3, 60.0, "test"), folder / "film.mp4")
    (folder / "film.srt").write_text("1\n00:00:20,000 --> 00:00:24,000\nThe bank is closed.\n")
    place = tmp_path_factory.mktemp("library") / "library"
    assert main(["index", str(folder), "--library", str(place), "--model", "demo"]) == 0
    return place


def test_an_agent_finds_looks_and_cuts(library, tmp_path) -> None:
    import anyio

    command = ["-m", "revisionllm.cli", "mcp", str(library), "--clips", str(tmp_path)]
    server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))

    async def talk() -> None:
        with (tmp_path / "log").open("w") as log:
            async with (
                stdio_client(server, errlog=log) as streams,
                ClientSession(*streams) as session,
            ):
                await session.initialize()
                tools = {tool.name: tool for tool in (await session.list_tools()).tools}
                assert set(tools) == {"list_films", "find", "frames", "cut"}
                assert all(tool.description for tool in tools.values())
                (film,) = _objects(await session.call_tool("list_films", {}))
                asked = {"sentences": ["the bank is closed"]}
                answered = _objects(await session.call_tool("find", asked))
                moment = _flat(answered)[0]["moments"][0]
                assert moment["said"] == "The bank is closed." and moment["start_s"] == 20.0
                look = {"film_id": film["film_id"], "times_s": [20.0, 22.0]}
                shown = (await session.call_tool("frames", look)).content
                assert [part.type for part in shown] == ["image", "image"]
                Image.open(io.BytesIO(base64.b64decode(shown[0].data))).verify()
                part = {"film_id": film["film_id"], "start_s": 20.0, "end_s": 24.0}
                made = (await session.call_tool("cut", part)).content[0].text
                assert Path(made).parent == tmp_path
                assert probe(made).duration_s == pytest.approx(4.0, abs=0.3)
                for name, wrong in (
                    ("frames", look | {"film_id": "../../etc/passwd"}),
                    ("frames", look | {"times_s": [1000.0]}),
                    ("cut", part | {"end_s": 5000.0}),
                    ("find", {"sentences": ["..."]}),
                ):
                    answer = await session.call_tool(name, wrong)
                    told = answer.content[0].text
                    assert getattr(answer, "is_error", getattr(answer, "isError", None)), told
                    assert "Traceback" not in told

    anyio.run(talk)


def _objects(answer) -> list:
    """A tool's answer, as one JSON text or one per item."""
    found = [json.loads(part.text) for part in answer.content]
    return found[0] if len(found) == 1 and isinstance(found[0], list) else found


def _flat(rows: list) -> list[dict]:
    return [one for row in rows for one in (row if isinstance(row, list) else [row])]


def test_wrong_input_is_one_line(library, tmp_path, capsys, monkeypatch) -> None:
    assert main(["mcp", str(tmp_path)]) == 2
    assert "is no library" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main(["mcp", str(library)]) == 2
    assert "pip install mcp" in capsys.readouterr().err
