"""Pictures that no wanted time shows are not decoded, and nothing else changes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from revisionllm.data import readers, video
from revisionllm.data.shown import at_times, needed_packets, on_grid
from revisionllm.data.video import frames_at, iter_frames, read_frame
from revisionllm.data.video_file import open_video
from revisionllm.errors import UserError

FILM_FRAMES, FPS = 260, 25
# codec, suffix, its options; what of it may be left out, where it is known
CODECS = {
    "pyramid": ("libx264", "mp4", {"bf": "8", "b-pyramid": "normal", "g": "60"}),
    "open gop": ("libx264", "mkv", {"bf": "3", "x264-params": "open-gop=1:keyint=30"}),
    "intra refresh": ("libx264", "ts", {"x264-params": "intra-refresh=1:keyint=50"}),
    "interlaced": ("libx264", "mp4", {"flags": "+ilme+ildct", "x264-params": "tff=1:bframes=3"}),
    "baseline": ("libx264", "mp4", {"profile": "baseline"}),
    "all key": ("libx264", "mp4", {"g": "1"}),
    "short groups": ("libx264", "mp4", {"g": "10", "bf": "3"}),
    "short groups ts": ("libx264", "ts", {"g": "20", "bf": "3"}),
    "short groups hevc": (
        "libx265",
        "mkv",
        {"x265-params": "open-gop=0:log-level=none:keyint=12:bframes=3"},
    ),
    "hevc": ("libx265", "mp4", {"x265-params": "bframes=4:log-level=none:keyint=50"}),
    "hevc open": ("libx265", "mkv", {"x265-params": "open-gop=1:log-level=none:keyint=25"}),
    "mpeg2": ("mpeg2video", "ts", {"bf": "2", "g": "15"}),
    "mpeg4": ("mpeg4", "mp4", {"bf": "2", "g": "40"}),
    "mpeg4 avi": ("mpeg4", "avi", {"bf": "2", "g": "40"}),
    "vp8": ("libvpx", "webm", {"deadline": "realtime", "auto-alt-ref": "0"}),
    "vp9": (
        "libvpx-vp9",
        "webm",
        {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16", "g": "20"},
    ),
    "av1": ("libsvtav1", "mp4", {"preset": "12", "g": "20"}),
    "mjpeg": ("mjpeg", "mov", {}),
    "prores": ("prores_ks", "mov", {}),
}


def picture(number: int) -> np.ndarray:
    """A bright bar that moves over a slope."""
    rows, columns = np.mgrid[0:48, 0:64]
    grey = (rows * 2 + columns + number) % 200
    grey[:, (3 * number) % 60 : (3 * number) % 60 + 4] = 250
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def write(
    path: Path, codec: str, options: dict[str, str], starts_ms: list[int], muxer=None
) -> Path:
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height = 64, 48
        wide = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
        stream.pix_fmt = wide.get(codec, "yuv420p")
        base = Fraction(1, 1000) if len(set(np.diff(starts_ms))) > 1 else Fraction(1, FPS)
        stream.codec_context.time_base = base
        for number, start_ms in enumerate(starts_ms):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(start_ms / 1000 / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module", params=CODECS)
def film(request, tmp_path_factory) -> Path:
    codec, suffix, options = CODECS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} in this FFmpeg")
    path = tmp_path_factory.mktemp("film") / f"film.{suffix}"
    starts = [40 * number for number in range(FILM_FRAMES)]
    return write(path, codec, options, starts)


def decoding_all(monkeypatch, read):
    """What `read()` gives where every picture is decoded."""
    with monkeypatch.context() as patch:
        patch.setattr(video, "needed_packets", lambda packets, *_: packets)
        return read()


@pytest.mark.parametrize("fps", [0.4, 1.0, 3.3, 25.0])
def test_the_grid_shows_the_same_pictures(film, fps, monkeypatch) -> None:
    def read():
        return [(index, rgb.copy()) for index, _, rgb in iter_frames(film, fps)]

    told = read()
    wanted = decoding_all(monkeypatch, read)
    assert [index for index, _ in told] == [index for index, _ in wanted]
    for (_, one), (_, other) in zip(told, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_single_times_show_the_same_pictures(film, monkeypatch) -> None:
    times = [0.0, 0.3, 0.301, 2.24, 5.0, 5.04, 9.99, 10.39, 99.0]

    def read():
        return [read_frame(film, time_s) for time_s in times], frames_at(film, times)

    for one, other in zip(read(), decoding_all(monkeypatch, read), strict=True):
        for picture_, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(picture_, wanted)


@pytest.mark.parametrize("start_s", [0.0, 3.2])
def test_several_readers_show_the_same_pictures(film, start_s, monkeypatch) -> None:
    """Parts of a second and more, whatever the groups of pictures are like."""
    monkeypatch.setattr(readers, "PART_S", 1.0)
    monkeypatch.setattr(readers, "GROUPS", 1)
    monkeypatch.setattr(readers.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for fps in (1.0, 6.0):
        told = list(readers.frames_in_order(film, fps, size=(64, 48), start_s=start_s))
        wanted = list(iter_frames(film, fps, size=(64, 48), start_s=start_s))
        assert [one[:2] for one in told] == [one[:2] for one in wanted]
        for (*_, one), (*_, other) in zip(told, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_film_is_read_in_parts_where_it_pays(tmp_path, monkeypatch) -> None:
    starts = [40 * number for number in range(FILM_FRAMES)]
    near = write(tmp_path / "near.mp4", "libx264", {"g": "25"}, starts)
    far = write(tmp_path / "far.mp4", "libx264", {"g": "1000", "sc_threshold": "0"}, starts)
    with open_video(near) as (_, stream):
        if not hasattr(stream, "index_entries"):
            pytest.skip("this PyAV does not tell where key frames are")
    assert readers._part_s(video.probe(near)) == readers.PART_S
    assert readers._part_s(video.probe(far)) is None
    monkeypatch.setattr(readers, "PART_S", 2.0)
    monkeypatch.setattr(readers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    spans = []

    def noted(*args, **options):
        spans.append((options["start_s"], options.get("end_s")))
        return iter_frames(*args, **options)

    monkeypatch.setattr(readers, "iter_frames", noted)
    assert len(list(readers.frames_in_order(near, 2.0, size=(64, 48)))) == 21
    (first, until), (then, end_s) = sorted(spans)
    assert (first, end_s) == (0.0, None) and until == then == pytest.approx(4.0)


def test_a_film_that_was_cut_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "PART_S", 1.0)
    monkeypatch.setattr(readers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    starts = [40 * number for number in range(FILM_FRAMES)]
    options = {"movflags": "faststart"}
    film = write(tmp_path / "film.mp4", "libx264", {"g": "10"}, starts, options)
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match="are readable"):
        list(readers.frames_in_order(film, 2.0, size=(64, 48)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times(tmp_path, suffix, monkeypatch) -> None:
    """Pictures that stay for seconds, among B-frames that stay for 20 ms."""
    rng = np.random.default_rng(3)
    steps = rng.choice([20, 40, 700, 2500], p=[0.5, 0.4, 0.07, 0.03], size=200)
    starts = np.concatenate([[0], np.cumsum(steps)]).tolist()
    film = write(tmp_path / f"film.{suffix}", "libx264", {"bf": "5"}, starts)

    def read():
        return [rgb.copy() for _, _, rgb in iter_frames(film, 1.0)]

    for one, other in zip(read(), decoding_all(monkeypatch, read), strict=True):
        np.testing.assert_array_equal(one, other)


def counted(film: Path, fps: float) -> int:
    with open_video(film) as (container, stream):
        packets = needed_packets(container.demux(stream), stream, on_grid(fps, 0.002), 0.0)
        return sum(len(packet.decode()) for packet in packets)


def test_less_is_decoded(tmp_path) -> None:
    starts = [40 * number for number in range(FILM_FRAMES)]
    between = write(tmp_path / "a.mp4", "libx264", {"bf": "3", "b-pyramid": "none"}, starts)
    assert counted(between, 25.0) == FILM_FRAMES
    assert counted(between, 1.0) < 0.75 * FILM_FRAMES
    groups = write(tmp_path / "c.mp4", "libx264", {"g": "10", "bf": "0"}, starts)
    assert counted(groups, 1.0) < 0.55 * FILM_FRAMES  # what is not looked ahead at is decoded
    assert counted(groups, 0.2) < 0.3 * FILM_FRAMES
    alone = write(tmp_path / "b.mov", "mjpeg", {}, starts)
    assert counted(alone, 1.0) < 0.4 * FILM_FRAMES  # two neighbours, and what is read ahead


def test_wanted_times() -> None:
    grid = on_grid(2.0, 0.002)
    assert grid(0.0, 0.1) and grid(0.4, 0.6) and grid(0.501, 0.6)
    assert not grid(0.51, 0.99) and not grid(0.4, 0.5)
    times = at_times([1.0, 4.0], 0.002)
    assert times(0.9, 1.01) and times(1.001, 1.1) and times(3.0, 9.0)
    assert not times(1.01, 3.9) and not times(0.0, 1.0) and not times(4.1, 9.0)
