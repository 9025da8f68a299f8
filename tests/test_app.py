"""`revisionllm app`, in a real browser where one is installed."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from revisionllm.cli import main
from revisionllm.data.video import probe


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Two rendered films, the second with a green ring on a beach."""
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("films")
    for seed in (3, 4):
        write_film(plan_film(seed, 120.0, "test"), folder / f"film {seed}.mp4")
    place = tmp_path_factory.mktemp("library") / "library"
    assert main(["index", str(folder), "--library", str(place), "--model", "demo"]) == 0
    return place


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_wrong_input_is_one_line(library, tmp_path, capsys, monkeypatch) -> None:
    assert main(["app", str(tmp_path / "nowhere")]) == 2
    assert "is no library" in capsys.readouterr().err
    assert main(["app", str(library), "--model", "clip:ViT-B-32:x"]) == 2
    assert "names an encoder alone" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main(["app", str(library)]) == 2
    assert "pip install gradio" in capsys.readouterr().err


def test_in_a_browser(library, tmp_path) -> None:
    """Type, see where, play, move an end, take the clip; by keyboard up to the choice."""
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium is installed")
    from revisionllm.app import build, serve
    from revisionllm.library.find import LibrarySearch
    from revisionllm.library.store import Library

    page = build(LibrarySearch(Library(library), device="cpu"), tmp_path)
    port = free_port()
    serve(page, port, prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path)])
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--no-proxy-server"]
            )
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            tab.goto(f"http://127.0.0.1:{port}")
            box = tab.get_by_label("What happens?")
            box.fill("a green ring on the beach")
            box.press("Enter")
            moments = tab.locator("input[type=radio]")
            moments.first.wait_for(timeout=60_000)
            assert moments.count() == 5
            assert tab.locator(".films .mark").count() == 5
            tab.wait_for_function("document.querySelector('video')?.duration > 0", timeout=60_000)
            first = tab.evaluate("document.querySelector('video').src")
            moments.nth(1).focus()
            tab.keyboard.press("Space")
            tab.wait_for_function(
                f"document.querySelector('video')?.src != {first!r}"
                " && document.querySelector('video')?.duration > 0",
                timeout=60_000,
            )
            tab.locator("input[aria-label='number input for End later by, seconds']").fill("2")
            tab.get_by_role("button", name="Cut the clip").click()
            tab.locator("a[href*='.mp4']").first.wait_for(timeout=60_000)
            tab.screenshot(path=str(tmp_path / "app.png"))
            box.fill("?!")
            box.press("Enter")
            tab.get_by_text("has no words").first.wait_for(timeout=60_000)
            browser.close()
    finally:
        page.close()
    clips = sorted(tmp_path.glob("*.mp4"))
    ends = [clip.stem.rsplit("-", 1)[1] for clip in clips if clip.name.startswith("01-02_")]
    assert len(ends) == 2 and abs(abs(float(ends[1]) - float(ends[0])) - 2) < 0.11
    for clip in clips:
        first, end = clip.stem.rsplit("_", 1)[1].split("-")
        assert probe(clip).duration_s == pytest.approx(float(end) - float(first), abs=0.1)
