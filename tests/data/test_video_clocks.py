"""Films whose clocks are odd: every row is the picture on screen at that second, as players count.

Pictures show their number as bars; where each one belongs is known by construction, or read by
ffprobe (best-effort time minus the container's start) where that is installed.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess

import av
import pytest
from numbered_films import BAR_WIDTH, BARS, FPS, number_of, picture, write
from PIL import Image

from revisionllm.data import video
from revisionllm.data.video_file import is_film
from revisionllm.errors import UserError


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def rows(path, fps=FPS, **options) -> list[int]:
    return [number_of(rgb) for _, _, rgb in video.iter_frames(path, fps, **options)]


def oracle(path) -> list[int] | None:
    """Row numbers by ffprobe's times, the pictures being numbered from 0; None without ffprobe."""
    if shutil.which("ffprobe") is None:
        return None
    asked = "format=start_time:frame=best_effort_timestamp_time"
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", asked]
    out = subprocess.run([*command, "-of", "json", str(path)], capture_output=True, check=True)
    found = json.loads(out.stdout)
    zero_s = float(found["format"].get("start_time", 0))
    starts_s, last_s = [], 0.0
    for frame in found["frames"]:
        last_s = float(frame.get("best_effort_timestamp_time", last_s + 1 / FPS))
        starts_s.append(last_s - zero_s)
    num = video.probe(path).num_samples(FPS)
    return [
        max([n for n, s in enumerate(starts_s) if s <= i / FPS + 0.5 / FPS], default=0)
        for i in range(num)
    ]


def assert_shown(path, wanted: list[int]) -> None:
    """Each row is the wanted picture, within half a frame of time; and ffprobe says the same."""
    found = rows(path)
    assert len(found) == len(wanted)
    for index, number in enumerate(found):
        near = wanted[max(0, index - 1) : index + 2]
        assert number in near, (index, number, near)
    by_ffprobe = oracle(path)
    if by_ffprobe is not None:
        off = [abs(a - b) for a, b in zip(found, by_ffprobe, strict=True)]
        assert max(off) <= 1


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3", "b-adapt": "0"}])
def test_joined_transport_streams_go_on(tmp_path, caplog, options):
    first = write(tmp_path / "a.ts", range(60), options=options)
    second = write(tmp_path / "b.ts", range(60, 150), options=options)
    third = write(tmp_path / "c.ts", range(150, 200), options=options, sound_s=None)
    path = join(tmp_path / "abc.ts", first, second, third)
    with caplog.at_level(logging.WARNING):
        found = rows(path)
    assert found == list(range(200))
    (line,) = [r.getMessage() for r in caplog.records if "clock" in r.getMessage()]
    assert "2.4, 6.0 s" in line
    assert rows(path, start_s=3.0, end_s=4.0) == list(range(75, 100))
    assert number_of(video.read_frame(path, 7.01)) == 175


def test_a_transport_stream_that_jumps_ahead_goes_on(tmp_path):
    first = write(tmp_path / "a.ts", range(50))
    late = write(tmp_path / "b.ts", range(50, 100), late_s=50_000)
    assert rows(join(tmp_path / "ab.ts", first, late)) == list(range(100))


def test_joined_program_streams_and_their_length(tmp_path):
    codec = {"bf": "2", "qmin": "2", "qmax": "2"}
    options = {"codec": "mpeg2video", "form": "vob", "options": codec}
    first = write(tmp_path / "a.mpg", range(60), **options)
    assert video.probe(first).duration_s == pytest.approx(60 / FPS, abs=0.01)
    assert rows(first) == list(range(60))
    second = write(tmp_path / "b.mpg", range(60, 100), **options)
    assert rows(join(tmp_path / "ab.mpg", first, second)) == list(range(100))


def test_joined_matroska_files_go_on(tmp_path):
    first, second = write(tmp_path / "a.mkv", range(60)), write(tmp_path / "b.mkv", range(60, 100))
    assert rows(join(tmp_path / "ab.mkv", first, second)) == list(range(100))


def test_joined_mp4_files_are_refused(tmp_path):
    first = write(tmp_path / "a.mp4", range(10))
    with pytest.raises(UserError, match="two mp4 files"):
        rows(join(tmp_path / "aa.mp4", first, first))


def test_what_ffmpeg_does_not_read_is_told(tmp_path, caplog):
    noisy = {"codec": "flv", "options": {"qmin": "2", "qmax": "2"}}
    first = write(tmp_path / "a.flv", range(200), **noisy)
    with caplog.at_level(logging.WARNING):
        rows(join(tmp_path / "aa.flv", first, first))
    assert any("reads only the first" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_picture_may_stand_for_long(tmp_path, suffix):
    with av.open(str(tmp_path / f"slides{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = BARS * BAR_WIDTH, 32, "yuv420p"
        for number, second in enumerate([0, 1800, 5400]):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = second * FPS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = rows(tmp_path / f"slides{suffix}", 1 / 60)
    assert found == [0] * 30 + [1] * 60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("late_s", [0.2, 3.2])
def test_sound_before_the_first_picture_counts(tmp_path, suffix, late_s):
    path = write(tmp_path / f"late{suffix}", range(50), sound_s=late_s + 2, late_s=late_s)
    held = round(late_s * FPS)
    assert_shown(path, [0] * held + list(range(50)))
    assert number_of(video.read_frame(path, late_s + 1.01)) in (24, 25)
    assert number_of(video.read_frame(path, 0.1)) == 0


def test_matroska_pictures_before_zero(tmp_path):
    path = write(tmp_path / "film.mkv", range(100), options={"g": "25", "bf": "0"})
    whole = path.read_bytes()
    # SimpleBlocks of the first cluster: times relative to it, 16 bits; all 1.02 s earlier
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps[:2] == [0, 40]
    cluster = whole.index(b"\x1f\x43\xb6\x75")
    data = bytearray(whole)
    at, moved = cluster, 0
    for stamp in stamps:
        mark = b"\x81" + stamp.to_bytes(2, "big", signed=True)
        at = data.find(mark, at)
        if at < 0:
            break
        data[at + 1 : at + 3] = (stamp - 1020).to_bytes(2, "big", signed=True)
        at, moved = at + 3, moved + 1
    assert moved > 30
    early = tmp_path / "early.mkv"
    early.write_bytes(bytes(data))
    found = rows(early, end_s=0.2)  # picture 25 is at -0.02 s, 26 at 0.02 s: half a frame
    assert found in (list(range(25, 30)), list(range(26, 31)))


def test_avi_holds_decoding_times(tmp_path):
    path = write(tmp_path / "b.avi", range(50), options={"bf": "3", "b-adapt": "0"})
    found = rows(path)
    assert found == sorted(found) and len(set(found)) >= 48
    delay = found.index(1) - 1
    assert 0 <= delay <= 3 and found[10] == 10 - delay
    by_ffprobe = oracle(path)
    if by_ffprobe is not None:
        assert max(abs(a - b) for a, b in zip(found, by_ffprobe, strict=True)) <= 1


def test_the_stream_that_players_show(tmp_path):
    from av.stream import Disposition

    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for _ in range(2):
            stream = container.add_stream("libx264", rate=FPS, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = BARS * BAR_WIDTH, 32, "yuv420p"
            streams.append(stream)
        streams[0].disposition = 0
        streams[1].disposition = Disposition.default.value
        for number in range(20):
            for first, stream in zip((0, 100), streams, strict=True):
                frame = av.VideoFrame.from_ndarray(picture(first + number), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert rows(path) == list(range(100, 120))


@pytest.mark.parametrize("name", ["still.jpg", "still.png", "still.bmp", "still.webp", "still.gif"])
def test_a_picture_is_no_film(tmp_path, name):
    Image.fromarray(picture(5)).save(tmp_path / name)
    if name.endswith(".gif"):  # may be a film
        assert rows(tmp_path / name) == [5] * len(rows(tmp_path / name))
        return
    assert not is_film(tmp_path / name)
    with pytest.raises(UserError, match="not a video file"):
        rows(tmp_path / name)
