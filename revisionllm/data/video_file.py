"""Open a video file with PyAV, or say in one line why it is none. Used by `video.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg reads these as "video" too: text rendered as a picture, lists that open other files, and
# pictures (so are all demuxers whose names end in PICTURE_SUFFIX).
NOT_FILMS = ("tty", "concat", "hls", "dash", "lavfi", "sdp", "image2", "ico", "webp", "txd")
PICTURE_SUFFIX = "_pipe"
PICTURE_BRANDS = ("avif", "heic", "heix", "mif1")  # of mp4's family, which holds one picture there
# PyAV 19 decodes metadata leniently by itself and refuses the argument that older ones need for it.
QUIET = -8  # FFmpeg's AV_LOG_QUIET
LENIENT = {"metadata_errors": "replace"}


@lru_cache(maxsize=1)
def pyav():
    """The module `av`, its log silenced.

    PyAV's own log callback wants Python's lock in FFmpeg's threads, while closing a codec holds it
    and waits for them: the process then stands still for ever (seen with PyAV 15).
    """
    import av
    import av.logging

    av.logging.restore_default_callback()
    av.logging.set_libav_level(QUIET)
    return av


@contextmanager
def open_video(
    path: str | os.PathLike, *, threads: int = 0
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a local video file; yields (container, the video stream that players show).

    Which stream that is FFmpeg says, by flags, size and cover pictures.

    Args:
        threads: of the decoder; 0: as many as there are cores.

    Raises:
        UserError: missing, unreadable, empty, no video, or cut so short that its index is missing.
    """
    from av.stream import Disposition

    av = pyav()
    lenient = LENIENT if int(av.__version__.split(".")[0]) < 19 else {}
    _check_readable_file(path)
    try:
        # "file:" and the whitelist: a name with a colon or a playlist must not open anything else.
        container = av.open(
            f"file:{os.fspath(path)}",
            container_options={"protocol_whitelist": "file"},  # `options`: a crash in PyAV < 17
            **lenient,
        )
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise UserError(_why_unreadable(path, error)) from error
    with container:
        _check_is_film(container, path)
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            kinds = sorted({stream.type for stream in container.streams} - {"video"})
            raise UserError(f"no video stream, only {', '.join(kinds) or 'nothing'}: {path}")
        if stream.codec_context is None:
            raise UserError(f"this FFmpeg does not know the video's codec: {path}")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        yield container, stream


def film_comment(path: str | os.PathLike) -> str:
    """What the file says about itself in its comment tag; the demo's films name their maker there.

    Raises:
        UserError: not a readable video.
    """
    with open_video(path) as (container, _):
        return container.metadata.get("comment", "")


def is_rendered(path: str | os.PathLike) -> bool:
    """Whether the demo's renderer made a film; it says so in the film's comment.

    Raises:
        UserError: not a readable video.
    """
    comment = film_comment(path)
    return comment.startswith("made_by: revisionllm") and " demo, world" in comment


def is_film(path: str | os.PathLike) -> bool:
    """Whether FFmpeg opens the file as a video; nothing is decoded."""
    try:
        with open_video(path):
            return True
    except UserError:
        return False


def _check_is_film(container: InputContainer, path: str | os.PathLike) -> None:
    names = container.format.name.split(",")
    picture = names[0].endswith(PICTURE_SUFFIX) or (
        container.metadata.get("major_brand", "").strip() in PICTURE_BRANDS
    )
    if picture or set(names) & set(NOT_FILMS):
        raise UserError(f"not a video file ({container.format.long_name}): {path}")
    if "mp4" in names and _num_movies(path) > 1:
        raise UserError(
            f"two mp4 files copied into one, players see the first alone: {path}; join them with"
            " ffmpeg's concat demuxer"
        )


def _num_movies(path: str | os.PathLike) -> int:
    """Movie boxes (moov) at the top of an mp4 that is not fragmented; 1 for one that is."""
    movies, end = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        at = 0
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8 or kind == b"moof":
                break
            movies += kind == b"moov"
            at += size
    return movies


def _check_readable_file(path: str | os.PathLike) -> None:
    if Path(path).is_dir():
        raise UserError(f"a folder, not a video file: {path}")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UserError(f"the file is empty: {path}")
    except FileNotFoundError as error:
        raise UserError(f"video file not found: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read the video file ({error.strerror}): {path}") from error


def _why_unreadable(path: str | os.PathLike, error: Exception) -> str:
    """One line on why FFmpeg refused the file."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return (
            f"the mp4 has no readable index (moov): {path}; the download or recording was cut,"
            " fetch or record it again"
        )
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"not a video file that FFmpeg can read ({reason}): {path}"
