"""The PNG: marks where they belong, readable at an hour, deterministic."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from revisionllm.grounding.levels import Moment
from revisionllm.viewer.timeline import DOTS_PER_INCH, FOUND, ROW_INCHES, TRUTH, write_timeline


def colour_columns(image: Image.Image, colour: str) -> np.ndarray:
    """Columns of the figure that hold pixels close to an "#rrggbb" colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.flatnonzero((np.abs(pixels - wanted).max(axis=-1) < 40).any(axis=0))


def test_four_seconds_of_an_hour_can_be_seen(make, tmp_path):
    path = tmp_path / "t.png"
    prediction = make("q", moments=[Moment(1798.0, 1802.0, 1.0)], gt=[(899.0, 903.0)])
    write_timeline(path, duration_s=3600.0, predictions=[prediction])
    image = Image.open(path)
    width = image.size[0]
    film_left, film_width = 0.225 * width, 0.45 * width
    body = image.crop((0, int(0.5 * DOTS_PER_INCH), int(film_left + film_width), image.size[1]))
    for colour, at_s in ((FOUND, 1800.0), (TRUTH, 901.0)):
        columns = colour_columns(body, colour)
        assert columns.mean() == pytest.approx(film_left + film_width * at_s / 3600, abs=2)
        assert len(columns) >= 8


def test_a_row_per_sentence(predictions, tmp_path):
    sizes = []
    for count in (1, 4):
        write_timeline(tmp_path / "t.png", duration_s=600.0, predictions=predictions[:count])
        sizes.append(Image.open(tmp_path / "t.png").size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] == pytest.approx(3 * ROW_INCHES * DOTS_PER_INCH, abs=2)


def test_any_sentence_is_drawn_without_a_warning(predictions, make, tmp_path):
    odd = [make("costs $5 and $\\frac{", qid="1"), make("", qid="2"), make("word " * 99, qid="3")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_timeline(tmp_path / "t.png", duration_s=600.0, predictions=[*predictions, *odd])


def test_same_input_same_bytes_and_nothing_beside_the_file(predictions, tmp_path):
    drawn = []
    for _ in range(2):
        write_timeline(
            tmp_path / "t.png",
            duration_s=600.0,
            predictions=predictions,
            title="film.mp4",
            num_windows=19,
        )
        drawn.append((tmp_path / "t.png").read_bytes())
    assert drawn[0] == drawn[1]
    assert [p.name for p in tmp_path.iterdir()] == ["t.png"]


def test_no_predictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_timeline(tmp_path / "t.png", duration_s=600.0, predictions=[])


def test_of_thousands_of_sentences_the_first_are_drawn(tmp_path):
    from revisionllm.files import is_ours
    from revisionllm.records.predictions import Prediction
    from revisionllm.viewer.timeline import MAX_ROWS

    one = Prediction("q", "v", "a dog", 60.0, True, [Moment(1.0, 3.0, 0.9)])
    write_timeline(tmp_path / "a.png", duration_s=60.0, predictions=[one] * 2000, title="Film")
    picture = Image.open(tmp_path / "a.png")
    assert picture.height < (MAX_ROWS + 6) * ROW_INCHES * DOTS_PER_INCH
    assert is_ours(tmp_path / "a.png")
