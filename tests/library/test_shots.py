"""`--snap shots`: cuts by the film's clock, and moments that begin and end with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_films import write_film

from revisionllm.cli import main
from revisionllm.engine.foreign import ForeignEngine, Profile, Reply
from revisionllm.grounder import DEMO_WEIGHTS
from revisionllm.grounding.levels import Level, Moment, Question
from revisionllm.library.shots import cuts_between, snap, snap_window
from revisionllm.library.words import LEVEL
from revisionllm.records.films import Film, Query

pytest.importorskip("scenedetect")
CUTS_S = (4.0, 9.2, 15.6)
FILM_S = 20.0


@pytest.fixture(scope="module", params=["even", "uneven"])
def film(request, tmp_path_factory) -> Path:
    """Shots of unlike colours; frames at 5 per second, or at uneven times."""
    times_s = np.arange(0, FILM_S, 0.2)
    if request.param == "uneven":  # a film whose frame rate says nothing
        times_s = times_s[(times_s < 10) | (np.arange(len(times_s)) % 3 == 0)]
    colours = [(220, 220, 220), (20, 20, 20), (200, 40, 40), (20, 20, 120)]
    pictures = []
    for time_s in times_s:
        colour = np.array(colours[sum(round(time_s, 3) >= cut for cut in CUTS_S)])
        pictures.append(np.broadcast_to(colour, (48, 64, 3)).astype(np.uint8))
    path = tmp_path_factory.mktemp("film") / f"{request.param}.mp4"
    starts = [round(1000 * time_s) for time_s in times_s]
    return write_film(path, starts, pictures=pictures, codec_options={"g": "25"})


def test_cuts_are_told_in_seconds_of_the_film(film) -> None:
    found = cuts_between(film, 0.0, FILM_S)
    assert len(found) == 3
    for cut_s, wanted_s in zip(found, CUTS_S, strict=True):
        assert wanted_s - 1e-3 <= cut_s <= wanted_s + 0.61  # the first frame behind it
    assert cuts_between(film, 5.0, 8.0) == []
    assert cuts_between(film, 8.0, 10.0) == [found[1]]


def test_ends_move_to_the_nearest_cut(film) -> None:
    first, second, third = cuts_between(film, 0.0, FILM_S)
    moments = [Moment(5.0, 8.5, 0.9), Moment(11.5, 13.0, 0.8), Moment(3.5, 4.5, 0.7)]
    moments.append(Moment(14.0, 17.5, 0.6))
    snap(film, moments)
    spans = [(moment.start_s, moment.end_s) for moment in moments]
    assert spans[0] == (first, second)
    assert spans[1] == (11.5, 13.0)  # no cut within two seconds
    assert spans[2] == (3.5, 4.5)  # both ends at one cut would leave nothing
    assert spans[3] == (14.0, third) or spans[3] == (third, 17.5) or spans[3] == (14.0, 17.5)


def test_what_is_said_keeps_its_times(film) -> None:
    moments = [Moment(5.0, 8.5, 0.9, {}, LEVEL)]
    snap(film, moments)
    assert (moments[0].start_s, moments[0].end_s) == (5.0, 8.5)


def test_windows_of_another_model_begin_and_end_with_shots(film) -> None:
    """Its pictures, its seconds and its answers are of the window that was shown."""
    first, second, third = cuts_between(film, 0.0, FILM_S)
    asked = []

    class Asker:
        name, in_flight, batch = "told", 1, 1

        def ask(self, prompts, *, tokens, yes_no):
            asked.extend(prompts)
            return [Reply("from 1.0 to 2.0 seconds") for _ in prompts]

    profile = Profile((), 5.0, 5.0, 10, 32, "{second:.2f}", "when {query}?")
    opened = Film("film", np.zeros((1, 1)), 1.0, FILM_S, video_path=film)
    grid = Level("dense", "dense", 5.0, 5.0).grid(FILM_S)
    questions = [Question(0, (window,)) for window in grid]
    answers = ForeignEngine(Asker(), profile, place=snap_window).answer(
        Level("dense", "dense", 5.0, 5.0), questions, opened, [Query("q", "a thing")]
    )
    shown = [(answer.start_s, answer.end_s) for answer in answers]
    assert shown == [(0.0, first), (first, second), (second, third), (third, FILM_S)]
    spans = [(span.start_s, span.end_s) for answer in answers for span in answer.spans]
    assert spans == [(start_s + 1.0, start_s + 2.0) for start_s, _ in shown]
    middles = (np.arange(10) + 0.5) * (second - first) / 10
    assert [float(stamp) for stamp in asked[1].stamps] == pytest.approx(middles, abs=0.006)


def test_find_snaps(tmp_path, capsys) -> None:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film as render

    plan = plan_film(33, 120.0, "test")
    render(plan, tmp_path / "film.mp4")
    cuts = [shot.start_s for shot in plan.shots]
    model = f"clip:{DEMO_WEIGHTS / 'clip'}"
    words = ["find", str(tmp_path / "film.mp4"), "a blue square", "--model", model, "--json"]
    words += ["--features-dir", str(tmp_path), "--threshold", "0", "--top-k", "3"]
    told = []
    for option in ([], ["--snap", "shots"]):
        assert main([*words, *option]) == 0
        record = json.loads(capsys.readouterr().out)
        told.append([(m["start_s"], m["end_s"]) for m in record["moments"]])
    plain, snapped = told
    assert len(plain) == len(snapped) and plain != snapped
    for before, after in zip(plain, snapped, strict=True):
        for old, new in zip(before, after, strict=True):
            assert new == old or min(abs(new - cut) for cut in cuts) < 0.21


def test_without_the_package(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main(["find", str(tmp_path / "x.mp4"), "a", "--snap", "shots"]) == 2
    assert "pip install scenedetect" in capsys.readouterr().err
