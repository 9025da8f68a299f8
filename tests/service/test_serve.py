"""`revisionllm serve`: what it answers, what it refuses, fuzzed through its own OpenAPI page."""

from __future__ import annotations

import io
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import av
import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from PIL import Image  # noqa: E402

from revisionllm.cli import main  # noqa: E402
from revisionllm.service import http_app  # noqa: E402
from revisionllm.service.offers import Offers, open_offers  # noqa: E402
from revisionllm.service.serve import TOKEN  # noqa: E402

HERE = "http://127.0.0.1"
FILM_S = 60.0


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("films")
    for seed in (3, 4):
        write_film(plan_film(seed, FILM_S, "test"), folder / f"film {seed}.mp4")
    (folder / "film 3.srt").write_text("1\n00:00:20,000 --> 00:00:24,000\nThe bank is closed.\n")
    place = tmp_path_factory.mktemp("library") / "library"
    assert main(["index", str(folder), "--library", str(place), "--model", "demo"]) == 0
    return place


@pytest.fixture(scope="session")
def offers(library) -> Offers:
    from argparse import Namespace

    return open_offers(Namespace(library=library, model=None, films=3, device="cpu"))


@pytest.fixture
def client(offers, tmp_path) -> TestClient:
    return TestClient(http_app.make_app(offers, tmp_path), base_url=HERE)


@pytest.fixture
def film_id(offers) -> str:
    return next(film["film_id"] for film in offers.films() if "film 3" in film["film"])


def test_films_find_frame_clip(client, film_id, tmp_path) -> None:
    assert [film["duration_s"] for film in client.get("/films").json()] == [FILM_S, FILM_S]
    (row,) = client.post("/find", json={"sentences": ["the bank is closed"]}).json()
    assert row[0]["film_id"] == film_id and row[0]["moments"][0]["said"] == "The bank is closed."
    asked = {"sentences": ["a red ball", "a blue box"], "films": [film_id], "top_k": 2}
    rows = client.post("/find", json=asked).json()
    assert [row[0]["query"] for row in rows] == asked["sentences"]
    assert all(one["film_id"] == film_id for row in rows for one in row)
    shown = client.get(f"/films/{film_id}/frame", params={"at_s": 20})
    assert Image.open(io.BytesIO(shown.content)).size == (128, 128) or shown.status_code == 200
    made = client.get(f"/films/{film_id}/clip", params={"start_s": 20, "end_s": 24})
    assert made.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(made.content)) as clip:
        assert clip.duration / 1e6 == pytest.approx(4.0, abs=0.3)
    assert not list(tmp_path.iterdir())  # what was sent is gone


@pytest.mark.parametrize(
    "path, params, status",
    [
        ("/films/0123456789abcdef/frame", {"at_s": 1}, 404),
        ("/films/..%2f..%2fetc/frame", {"at_s": 1}, 404),
        ("/films/%2e%2e/clip", {"start_s": 1, "end_s": 2}, 422),
        ("/films/{film}/frame", {"at_s": 1000}, 422),
        ("/films/{film}/frame", {"at_s": "nan"}, 422),
        ("/films/{film}/clip", {"start_s": 5, "end_s": 1}, 422),
        ("/films/{film}/clip", {"start_s": 0, "end_s": 9999}, 422),
    ],
)
def test_what_is_refused(client, film_id, path, params, status) -> None:
    answer = client.get(path.format(film=film_id), params=params)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"sentences": []},
        {"sentences": ["..."]},
        {"sentences": ["a"] * 21},
        {"sentences": ["x" * 100_000]},
        {"sentences": ["a"], "films": []},
        {"sentences": ["a"], "top_k": 0},
        {"sentences": ["a"], "other": 1},
        {"sentences": ["word " * 100]},
    ],
)
def test_questions_that_are_none(client, body) -> None:
    answer = client.post("/find", json=body)
    assert answer.status_code == 422 and answer.json()["detail"]


def test_names_tokens_and_lengths(offers, tmp_path) -> None:
    here = http_app.make_app(offers, tmp_path)
    assert TestClient(here, base_url="http://evil.example").get("/films").status_code == 421
    assert TestClient(here, base_url="http://localhost:99").get("/films").status_code == 200
    assert TestClient(here, base_url="http://[::1]:99").get("/films").status_code == 200
    client = TestClient(http_app.make_app(offers, tmp_path, token="s", is_here=False))
    assert client.get("/films").status_code == 401
    assert client.get("/films", headers={"Authorization": "Bearer t"}).status_code == 401
    assert client.get("/films", headers={"Authorization": "Bearer s"}).status_code == 200
    client = TestClient(here, base_url=HERE)
    large = b"x" * (http_app.LARGEST_BODY + 1)
    assert client.post("/find", content=large).status_code == 413
    pieces = (b"x" * 1024 for _ in range(http_app.LARGEST_BODY // 1024 + 2))
    assert client.post("/find", content=pieces).status_code == 413  # of no length told before


def test_queue_and_time(offers, tmp_path, monkeypatch) -> None:
    """So much waits, and so long; what comes too late is dropped."""
    go = threading.Event()

    class Slow(Offers):
        def find(self, *words, **options):
            go.wait(30)
            return []

    monkeypatch.setattr(http_app, "WAITING", 2)
    monkeypatch.setattr(http_app, "WAIT_S", 0.5)
    with TestClient(http_app.make_app(Slow(offers.searching), tmp_path), base_url=HERE) as client:
        told: list[int] = []
        asked = {"sentences": ["a"]}

        def ask() -> None:
            told.append(client.post("/find", json=asked).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [503, 503, 503, 503, 504, 504]
        go.set()
        time.sleep(0.2)
        assert client.post("/find", json=asked).status_code == 200


def test_a_thousand_requests_in_bounded_memory(client, film_id) -> None:
    def ask(count: int) -> int:
        for number in range(count):
            asked = {"sentences": [f"a red ball {number % 7}"]}
            answer = client.get("/films") if number % 4 else client.post("/find", json=asked)
            assert answer.status_code == 200
            if number % 50 == 0:
                where = {"start_s": 1, "end_s": 2}
                assert client.get(f"/films/{film_id}/clip", params=where).status_code == 200
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = ask(100)
    assert ask(1000) - before < 100_000  # KiB


def test_fuzzed_through_its_openapi(offers, tmp_path) -> None:
    """No 5xx, and nothing that the page does not tell."""
    app = http_app.make_app(offers, tmp_path)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "127.0.0.1"})
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 4
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case) -> None:
            # a schema cannot say what a sentence is, and what is in a film
            refused = [schemathesis.checks.positive_data_acceptance]
            case.call_and_validate(headers={"Host": "127.0.0.1"}, excluded_checks=refused)

        check()


# --- the command ----------------------------------------------------------------------------------


def test_wrong_input_is_one_line(library, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert main(["serve", str(library), "--host", "0.0.0.0"]) == 2
    assert f"set ${TOKEN}" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 2
    assert "is no library" in capsys.readouterr().err
    assert main(["serve", str(library), "--model", "clip:x"]) == 2
    assert "names an encoder alone" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", str(library), "--port", port, "--device", "cpu"]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


def test_the_command_serves(library, film_id) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "revisionllm.cli", "serve", str(library)]
    server = subprocess.Popen(
        [*command, "--port", str(port)], env=os.environ | {TOKEN: ""}, stderr=subprocess.PIPE
    )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{HERE}:{port}/films", timeout=5) as answer:
                    assert film_id.encode() in answer.read()
                break
            except urllib.error.URLError:
                assert server.poll() is None
                time.sleep(0.1)
        with urllib.request.urlopen(f"{HERE}:{port}/docs", timeout=5) as answer:
            assert b"swagger" in answer.read()
    finally:
        server.terminate()
        _, told = server.communicate(timeout=30)
    assert f"{HERE}:{port}/docs".encode() in told and b"Traceback" not in told
