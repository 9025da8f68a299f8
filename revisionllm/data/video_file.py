"""Open a video file with PyAV, or say in one line why it is none. Used by `video.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg reads these as "video" too: text rendered as a picture, and lists that open other files.
NOT_FILMS = ("tty", "concat", "hls", "dash", "lavfi", "sdp")


@contextmanager
def open_video(path: str | os.PathLike) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a local video file; yields (container, its first video stream that is no cover picture).

    Raises:
        UserError: missing, unreadable, empty, no video, or cut so short that its index is missing.
    """
    import av
    from av.stream import Disposition

    _check_readable_file(path)
    try:
        # "file:" and the whitelist: a name with a colon or a playlist must not open anything else.
        container = av.open(
            f"file:{os.fspath(path)}",
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(_why_unreadable(path, error)) from error
    with container:
        if set(container.format.name.split(",")) & set(NOT_FILMS):
            raise UserError(f"not a video file ({container.format.long_name}): {path}")
        pictures = Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & pictures]
        if not streams:
            kinds = sorted({stream.type for stream in container.streams} - {"video"})
            raise UserError(f"no video stream, only {', '.join(kinds) or 'nothing'}: {path}")
        if streams[0].codec_context is None:
            raise UserError(f"this FFmpeg does not know the video's codec: {path}")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


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
