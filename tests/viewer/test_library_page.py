"""The page of a library's answer: many films, nothing from the network, escaped, deterministic."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_page import EVIL, Page

from revisionllm.grounding.levels import Moment
from revisionllm.records.predictions import Prediction
from revisionllm.viewer.library_page import write_library_view


def answer(query: str, found: bool, *spans) -> Prediction:
    moments = [Moment(start, end, score, {}, "frames") for start, end, score in spans]
    return Prediction("q", "v", query, 60.0, found, moments)


@pytest.fixture
def page(tmp_path) -> Path:
    """Two films, one of which has gone; three sentences."""
    from tiny_films import constant_rate, write_film

    folder = tmp_path / "my films"
    folder.mkdir()
    film = write_film(folder / "a #1?.mp4", constant_rate(100, 5.0))
    gone = folder / "gone.mp4"
    rows = [
        [
            (film, answer("a dog", True, (2.0, 4.5, 0.9), (10.0, 12.0, 0.3))),
            (gone, answer("a dog", True, (1.0, 2.0, 0.7))),
        ],
        [(film, answer(EVIL, False, (5.0, 6.0, 0.2)))],
        [(film, answer("nothing", False))],
    ]
    path = tmp_path / "out" / "view.html"
    write_library_view(path, rows, num_films=2)
    first = path.read_bytes()
    write_library_view(path, rows, num_films=2)
    assert path.read_bytes() == first
    return path


def test_moments_are_links_in_the_order_of_their_scores(page) -> None:
    read = Page(page.read_text("utf-8"))
    links = read.of_class("hit")
    assert [float(link["data-start-s"]) for link in links] == [2.0, 1.0, 10.0, 5.0]
    place, _, part = links[0]["href"].partition("#")
    assert (page.parent / unquote(place)).resolve().is_file() and part == "t=2.000,4.500"
    assert "http" not in "".join(link["href"] for link in links)
    pictures = [e for e in read.of_tag("img") if e["src"].startswith("data:image/jpeg")]
    assert len(pictures) == 3  # none of the film that has gone
    assert read.texts["p"][0] == "2 films \N{MIDDLE DOT} 3 sentences: 1 found"
    badges = [text for text in read.texts["span"] if "not present" in text]
    assert badges == ["not present; best candidates", "not present"]


def test_sentences_cannot_run(page) -> None:
    html = page.read_text("utf-8")
    read = Page(html)
    assert len(read.of_tag("script")) == 1 and "<img src=x" not in html
    assert any(EVIL in text for text in read.texts["h2"])


def wait_until(is_so, timeout_s: float = 10.0) -> None:
    """Wait without code in the page, which its content security policy would refuse."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_browser_plays_the_moment(page, tmp_path) -> None:
    """In a real one: a click loads the film at its second; the picture is kept to be looked at."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())
        tab.keyboard.press("Tab")  # the film's controls come first
        tab.locator(".hit").first.focus()
        tab.keyboard.press("Enter")
        wait_until(lambda: tab.evaluate("document.querySelector('.film').currentTime") >= 2)
        assert tab.locator(".hit[aria-current=true]").count() == 1
        assert "a #1?.mp4" in tab.locator(".playing").inner_text()
        tab.locator(".hit").nth(1).click()
        tab.locator(".playing", has_text="not there").wait_for(timeout=10_000)
        tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        browser.close()
    assert not errors


def test_find_writes_it(tmp_path, capsys) -> None:
    from revisionllm.cli import main
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    write_film(plan_film(3, 60.0, "test"), tmp_path / "film.mp4")
    library, out = str(tmp_path / "library"), tmp_path / "view.html"
    assert main(["index", str(tmp_path / "film.mp4"), "--library", library]) == 0
    assert main(["find", library, "a red ball", "a star", "--view", str(out)]) == 0
    assert len(Page(out.read_text("utf-8")).of_class("card")) == 2
    out.write_text("mine")
    assert main(["find", library, "a red ball", "--view", str(out)]) == 2
    assert "was not made by this project" in capsys.readouterr().err
