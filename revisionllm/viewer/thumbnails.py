"""Small JPEG frames of the film at the predicted moments, as data URIs that a page can carry."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from revisionllm.grounding.levels import Moment
    from revisionllm.records.predictions import Prediction

SHOWN_MOMENTS = 4  # of each sentence; the others are marks on the timeline and lines of text
THUMBNAIL_WIDTH = 192  # pixels; twice the 96 it is shown at on small screens


def moment_times(moment: Moment, rank: int) -> tuple[float, ...]:
    """Seconds to show of a moment: start, middle and end of the best one, the middle of others.

    "Start" and "end" lie a sixth of the length inside, so that a frame shows the event and not the
    cut before or after it.
    """
    length_s = moment.end_s - moment.start_s
    parts = (1 / 6, 1 / 2, 5 / 6) if rank == 0 else (1 / 2,)
    return tuple(moment.start_s + part * length_s for part in parts)


def truth_time(start_s: float, end_s: float) -> float:
    """Second to show of a true span: its middle."""
    return (start_s + end_s) / 2


def thumbnail_times(predictions: Iterable[Prediction]) -> list[float]:
    """List every second that the page shows a frame of, sorted, each once."""
    times: set[float] = set()
    for prediction in predictions:
        for rank, moment in enumerate(prediction.moments[:SHOWN_MOMENTS]):
            times.update(moment_times(moment, rank))
        times.update(truth_time(start_s, end_s) for start_s, end_s in prediction.gt or ())
    return sorted(times)


def film_thumbnails(
    video_path: Path, predictions: Iterable[Prediction], duration_s: float
) -> dict[float, str]:
    """Decode the frames that the page shows.

    Args:
        video_path: the film.
        predictions: as given to `write_view`.
        duration_s: length of the film in seconds; a span that reaches past it has no frame there.

    Returns:
        Data URI (``data:image/jpeg;base64,...``) by second of the film.

    Raises:
        UserError: the film cannot be decoded.
    """
    from revisionllm.data.video import encode_jpeg, read_frame

    times = [time_s for time_s in thumbnail_times(predictions) if time_s < duration_s]
    if not times:
        return {}
    size = picture_size(video_path)
    return {
        time_s: jpeg_data_uri(encode_jpeg(read_frame(video_path, time_s, size=size)))
        for time_s in times
    }


def picture_size(video_path: Path) -> tuple[int, int]:
    """Width and height of a film's thumbnails.

    Raises:
        UserError: the film cannot be read.
    """
    from revisionllm.data.video import probe

    info = probe(video_path)
    width = min(THUMBNAIL_WIDTH, info.width)
    return width, max(1, round(info.height * width / info.width))


def jpeg_data_uri(jpeg: bytes) -> str:
    """Wrap a JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
