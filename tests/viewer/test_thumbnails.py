"""Frames are taken from the film at the seconds that the page names."""

from __future__ import annotations

import base64
import io
import re

import av
import numpy as np
import pytest
from PIL import Image

from revisionllm.errors import UserError
from revisionllm.grounding.levels import Moment
from revisionllm.viewer.page import write_view
from revisionllm.viewer.thumbnails import film_thumbnails, thumbnail_times

FPS = 5
GREY_PER_S = 20


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Ten seconds; second t is a uniform grey of 20 * t."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index in range(10 * FPS):
            grey = np.full((180, 320, 3), GREY_PER_S * (index // FPS), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_best_moment_has_three_frames_others_one(make):
    prediction = make("q", moments=[Moment(0.0, 6.0, 0.9), Moment(8.0, 9.0, 0.1)], gt=[(2.0, 4.0)])
    assert thumbnail_times([prediction]) == pytest.approx([1.0, 3.0, 5.0, 8.5])


def test_frames_are_those_of_their_second(film, make):
    prediction = make("q", moments=[Moment(0.5, 9.5, 0.9)], gt=[(8.2, 20.0)])
    frames = film_thumbnails(film, [prediction], 10.0)
    assert list(frames) == pytest.approx([2.0, 5.0, 8.0])  # 14.1 lies past the end
    for time_s, uri in frames.items():
        head, data = uri.split(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == "data:image/jpeg;base64" and image.size == (192, 108)
        assert np.asarray(image).mean() == pytest.approx(GREY_PER_S * (time_s // 1), abs=3)


def test_page_takes_them_from_the_film_and_is_deterministic(film, make, tmp_path):
    predictions = [make("q", duration_s=10.0, moments=[Moment(2.0, 5.0, 0.9)])]
    pages = []
    for name in ("a.html", "b.html"):
        write_view(tmp_path / name, video_path=film, duration_s=10.0, predictions=predictions)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert len(re.findall(rb'<img src="data:image/jpeg;base64,', pages[0])) == 3


def test_missing_film_is_a_user_error_and_leaves_no_page(make, tmp_path):
    with pytest.raises(UserError, match=r"gone\.mp4"):
        write_view(
            tmp_path / "v.html",
            video_path=tmp_path / "gone.mp4",
            duration_s=600.0,
            predictions=[make("q")],
        )
    assert list(tmp_path.iterdir()) == []
