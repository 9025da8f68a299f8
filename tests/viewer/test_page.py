"""The page: well formed, self-contained, escaped, deterministic, complete."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from revisionllm.viewer.page import write_view
from revisionllm.viewer.thumbnails import SHOWN_MOMENTS, thumbnail_times

DURATION_S = 600.0
VOID = {"meta", "input", "img", "link", "br"}
EVIL = """<script>alert("x")</script> & 'quotes' </style> $title "><img src=x onerror=alert(1)>"""


class Page(HTMLParser):
    """Collects elements; fails on tags that do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]

    def of_tag(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.elements if tag == name]


@pytest.fixture
def view(tmp_path):
    def write(predictions, **options):
        defaults = {"video_path": tmp_path / "film.mp4", "duration_s": DURATION_S, "thumbnails": {}}
        path = tmp_path / "view.html"
        write_view(path, predictions=predictions, **{**defaults, **options})
        assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
        return path.read_text("utf-8")

    return write


def test_every_span_of_every_sentence_is_on_the_timeline(view, predictions):
    page = Page(view(predictions))
    spans = [s for s in page.of_class("span") if "truth" not in s["class"]]
    assert len(spans) == sum(len(p.moments) for p in predictions) == 12
    assert len(page.of_class("row")) == len(page.of_class("card")) == len(predictions)
    assert len([s for s in page.of_class("truth") if "span" in s["class"]]) == 3
    assert spans[0]["data-start-s"] == "120.000" and spans[0]["data-end-s"] == "124.000"
    assert "left:20.0000%;width:0.6667%" in spans[0]["style"]
    assert "score 0.90, presence 0.95" in spans[0]["aria-label"]


def test_each_row_is_one_tab_stop(view, predictions):
    page = Page(view(predictions))
    stops = [s["data-query"] for s in page.of_class("span") if s["tabindex"] == "0"]
    assert stops == ["0", "1", "2", "3", "4", "6"]  # 5 failed: nothing to stop at


def test_not_present_is_said_with_its_confidence(view, predictions):
    html = view(predictions, num_windows=19)
    page = Page(html)
    assert "not present, confidence 0.60" in page.texts["span"]
    assert "failed: no memory" in page.texts["span"]
    assert len(page.of_class("candidate")) == 7 + 1 + 1  # two sentences and the legend
    assert "3 of 19 windows visited" in html and "(16%)" in html
    assert "7 sentences: 4 found, 2 not present, 1 failed" in html


def test_moments_beyond_the_shown_ones_are_listed(view, predictions):
    page = Page(view(predictions))
    assert page.texts["summary"] == [f"{len(predictions[3].moments) - SHOWN_MOMENTS} more"]


def test_nothing_is_fetched(view, predictions):
    uri = "data:image/jpeg;base64,/9j/"
    html = view(predictions, thumbnails=dict.fromkeys(thumbnail_times(predictions), uri))
    page = Page(html)
    assert re.findall(r"(?:https?:|url\(|@import|//[a-z0-9.-]+\.[a-z]{2,})", html) == []
    assert page.of_tag("link") == [] and page.of_tag("script") == [{}]
    assert {img["src"] for img in page.of_tag("img")} == {uri}
    sources = {attrs["src"] for _, attrs in page.elements if "src" in attrs} - {uri}
    assert sources == {"film.mp4"}


def test_the_policy_allows_the_script_of_the_page(view, predictions):
    html = view(predictions)
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m["content"] for m in Page(html).of_tag("meta") if "http-equiv" in m)
    assert f"script-src 'sha256-{digest}';" in policy
    assert "connect-src 'none'" in policy and "img-src data:" in policy


def test_texts_are_escaped(view, make):
    moments = make("q").moments
    moments[0].parts = {"<b>": 0.5}
    evil = [
        make(EVIL, moments=moments),
        make("failing", status="failed", reason=EVIL, found=False),
    ]
    html = view(evil, title=EVIL, video_path=None)
    page = Page(html)
    assert page.of_tag("script") == [{}] and page.of_tag("img") == [] and page.of_tag("b") == []
    assert "".join(page.texts["title"]) == EVIL and "".join(page.texts["h1"]) == EVIL
    assert EVIL in page.of_class("label")[0]["title"]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_the_film_is_named_relative_to_the_page_and_quoted(view, predictions, tmp_path):
    html = view(predictions, video_path=tmp_path / "sub" / 'a #1 "film".mp4')
    assert Page(html).of_tag("video")[0]["src"] == "sub/a%20%231%20%22film%22.mp4"
    assert str(tmp_path) not in html


def test_a_missing_film_is_explained(view, predictions):
    with_film, without = (Page(view(predictions, **film)) for film in ({}, {"video_path": None}))
    assert "hidden" in with_film.of_class("hint")[0]  # the script shows it when loading fails
    assert "hidden" not in without.of_class("hint")[0]
    assert "src" not in without.of_tag("video")[0]
    assert "hidden" not in without.of_class("pick")[0]


def test_axis_is_labelled_in_clock_time(view, predictions):
    page = Page(view(predictions, duration_s=3600.0))
    assert {"0:00:00", "0:05:00", "0:15:00", "1:00:00"} <= set(page.texts["span"])


def test_same_input_same_bytes(view, predictions):
    assert view(predictions) == view(predictions)


def test_no_sentences(view):
    assert "No sentence was asked" in view([])


def test_texts_and_names_that_are_no_utf8_do_not_stop_the_page(view, make, tmp_path):
    html = view([make("caf\udce9 \u00e9")], video_path=tmp_path / "caf\udce9.mp4")
    assert "caf \u00e9" in html
    assert Page(html).of_tag("video")[0]["src"] == "caf%E9.mp4"
