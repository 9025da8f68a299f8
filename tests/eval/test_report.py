"""`eval report`: one page that needs nothing else, with every run and the chosen queries."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from prediction_files import make, write

from revisionllm.cli import main
from revisionllm.eval.report import figures
from revisionllm.eval.report.comparison import best_and_worst, find_film, frames_around
from revisionllm.metrics.scoring import score
from revisionllm.records.rankings import LabelledQuery, Ranking

NASTY = '<b>"$x_{" & done'


@pytest.fixture
def runs(tmp_path):
    worse = [make("1", [(10, 20), (50, 60)]), make("2", [(500, 510)])]
    better = [make("1", [(11, 20)]), make("2", [(10, 20)])]
    worse[1].query = better[1].query = NASTY
    return write(tmp_path / "first.jsonl", *worse), write(tmp_path / "second.jsonl", *better)


class Tags(HTMLParser):
    """Open tags minus closed ones, and everything that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained(runs, tmp_path, capsys):
    out = tmp_path / "report"
    words = [*map(str, runs), "--output", str(out), "--queries", "2", "--resamples", "50"]
    assert main(["eval", "report", *words]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    page = (out / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and len(tags.loads) == 3
    assert all(load.startswith("data:image/png;base64,") for load in tags.loads)
    assert NASTY not in page and "&lt;b&gt;" in page
    assert "second - first" in page and "+45.00" in page  # mIoU 50 -> 95
    text = (out / "report.md").read_text()
    assert all((out / name).is_file() for name in re.findall(r"\]\((\S+\.png)\)", text))
    assert "| second - first | +45.00" in text


def test_the_same_command_writes_the_same_bytes(runs, tmp_path):
    pages = []
    for name in ("a", "b"):
        words = [*map(str, runs), "--output", str(tmp_path / name), "--resamples", "50"]
        assert main(["eval", "report", *words]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--queries", "99"], "no such query: 99"),
        (["--names", "one"], "as many different --names"),
        (["--gt", "missing.json"], "missing.json"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, words, message, capsys):
    command = [*map(str, runs), "--output", str(tmp_path / "out"), *words]
    assert main(["eval", "report", *command]) == 2
    assert message in capsys.readouterr().err


def test_runs_on_different_queries_are_not_compared(runs, tmp_path, capsys):
    other = write(tmp_path / "other.jsonl", make("1", [(10, 20)], gt=((0, 5),)))
    assert main(["eval", "report", str(runs[0]), str(other)]) == 2
    assert "different ground truth" in capsys.readouterr().err


def test_best_and_worst_queries():
    queries = [LabelledQuery(str(i), "v", "q", 100.0, np.array([[0.0, 10.0]])) for i in range(4)]
    spans = [(0, 10), (50, 60), (0, 5), (70, 80)]
    scores = [0.5, 0.6, 0.9, 0.8]
    rankings = [
        Ranking(str(i), np.array([s], float), np.array([p]))
        for i, (s, p) in enumerate(zip(spans, scores, strict=True))
    ]
    best, worst = best_and_worst(score(queries, rankings, num_resamples=0), 2)
    assert best == [0, 2] and worst == [3, 1]  # of two misses the more confident one is worse


def test_close_up_stays_inside_the_film():
    bars = [("truth", "green", np.array([[57.0, 60.0]]))]
    assert figures.near_range(bars, 60.0) == (47.0, 60.0)
    assert figures.near_range([("truth", "green", np.array([[1.0, 11.0]]))], None) == (0.0, 31.0)


def test_frames_of_a_film_at_hand(tmp_path):
    import av

    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(50):
            frame = np.full((48, 64, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert find_film(tmp_path, "nothing") is None
    frames = frames_around(find_film(tmp_path, "film"), (2.0, 8.0))
    assert len(frames) == 8 and frames[0][1].shape == (120, 160, 3)
    for time_s, rgb in frames:
        assert rgb.mean() == pytest.approx(25 * time_s, abs=8)
    bars = [("truth", "green", np.array([[3.0, 4.0]])), ("$run", "blue", np.zeros((0, 2)))]
    assert figures.qualitative(NASTY * 20, 10.0, bars, frames)[:4] == b"\x89PNG"
