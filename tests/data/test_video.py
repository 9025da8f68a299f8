"""Frames by timestamps: rates, offsets, seeks and broken files."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tiny_films as films

from revisionllm.data import video
from revisionllm.errors import UserError


def shown_numbers(starts_ms: list[int], fps: float, num: int) -> list[int]:
    """Naive oracle: the last frame that starts at or before each grid time, origin at frame 0."""
    starts_s = [(start - starts_ms[0]) / 1000 for start in starts_ms]
    return [
        max(n for n, start_s in enumerate(starts_s) if start_s <= index / fps + 2e-3)
        for index in range(num)
    ]


def read_numbers(path, fps, **options) -> list[int]:
    items = list(video.iter_frames(path, fps, **options))
    assert [index for index, _, _ in items] == list(
        range(items[0][0], items[0][0] + len(items)) if items else []
    )
    assert all(time_s == index / fps for index, time_s, _ in items)
    return [films.number_of(rgb) for _, _, rgb in items]


VARIABLE_MS = [0, 40, 80, 500, 520, 540, 1300, 1340, 2000, 2700, 2740]


@pytest.mark.parametrize("fps", [5, 2, 25, 40, 1 / 3, 12.5])
@pytest.mark.parametrize(
    "starts_ms",
    [
        films.constant_rate(50, 25),
        films.constant_rate(50, 25, start_s=5.0),
        films.constant_rate(45, 30),
        VARIABLE_MS,
    ],
    ids=["cfr", "late start", "30fps", "vfr"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_frame_on_screen_at_each_grid_time(tmp_path, starts_ms, fps, suffix):
    path = films.write_film(tmp_path / f"film{suffix}", starts_ms)
    info = video.probe(path)
    numbers = read_numbers(path, fps)
    assert len(numbers) == info.num_samples(fps)
    assert numbers == shown_numbers(starts_ms, fps, len(numbers))


def test_probe_of_a_film_that_starts_late(tmp_path):
    info = video.probe(films.write_film(tmp_path / "a.mp4", films.constant_rate(50, 25, start_s=5)))
    assert (info.width, info.height, info.codec) == (64, 48, "h264")
    assert info.start_s == pytest.approx(5.0)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert info.fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize(
    ("duration_s", "fps", "count"),
    [(60.0, 5, 300), (60.00001, 5, 300), (60.1, 5, 301), (0.04, 5, 1), (7200.0, 2, 14400)],
)
def test_count_samples(duration_s, fps, count):
    assert video.count_samples(duration_s, fps) == count


def test_b_frames_come_in_display_order(tmp_path):
    options = {"bf": "3", "b-adapt": "0", "qp": "4", "g": "12"}
    path = films.write_film(tmp_path / "b.mp4", films.constant_rate(50, 25), codec_options=options)
    assert read_numbers(path, 25) == list(range(50))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("offset.ts", {}),
        ("live.webm", {"codec": "libvpx", "container_options": {"live": "1"}}),
        ("bare.h264", {"container_format": "h264"}),
        ("old.avi", {"codec": "mpeg4", "codec_options": {"qmin": "2", "qmax": "2"}}),
    ],
)
def test_containers_that_state_little(tmp_path, name, options):
    if "codec" not in options:
        options = {"codec_options": {"bf": "0", "qp": "4"}, **options}
    path = films.write_film(tmp_path / name, films.constant_rate(50, 25), **options)
    numbers = read_numbers(path, 5)
    assert len(numbers) == video.probe(path).num_samples(5) == 10
    assert np.abs(np.array(numbers) - np.arange(0, 50, 5)).max() <= 1


def test_a_part_has_the_indices_of_the_whole(tmp_path):
    path = films.write_film(
        tmp_path / "a.mp4", films.constant_rate(55, 25), codec_options={"g": "10", "qp": "4"}
    )
    whole = list(video.iter_frames(path, 10))
    for first, last in [(0, 22), (7, 12), (13, 22), (21, 22)]:
        part = list(video.iter_frames(path, 10, start_s=first / 10, end_s=last / 10))
        assert [item[0] for item in part] == list(range(first, last))
        for got, want in zip(part, whole[first:last], strict=True):
            np.testing.assert_array_equal(got[2], want[2])
    assert list(video.iter_frames(path, 10, start_s=99)) == []


def test_read_frame_seeks_to_the_same_frame(tmp_path):
    path = films.write_film(
        tmp_path / "a.mp4",
        films.constant_rate(55, 25, start_s=3),
        codec_options={"g": "10", "qp": "4"},
    )
    for number in (0, 1, 9, 10, 33, 54):
        assert films.number_of(video.read_frame(path, number / 25 + 0.01)) == number
    assert films.number_of(video.read_frame(path, 99.0)) == 54
    assert films.number_of(video.read_frame(path, -1.0)) == 0


def quadrants(size: tuple[int, int]) -> np.ndarray:
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[: size[1] // 2, : size[0] // 2] = 200  # bright top left
    return picture


def test_size_is_width_height_and_rotation_is_applied(tmp_path):
    size = (64, 48)
    path = films.write_film(
        tmp_path / "a.mp4", films.constant_rate(5, 25), size=size, pictures=[quadrants(size)] * 5
    )
    _, _, rgb = next(video.iter_frames(path, 5, size=(32, 16)))
    assert rgb.shape == (16, 32, 3) and rgb.dtype == np.uint8
    assert rgb[4, 8].min() > 150 > 60 > rgb[12, 24].max()

    upright = (1 << 16).to_bytes(4, "big")
    identity = upright + bytes(12) + upright
    quarter = (
        bytes(4) + upright + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(4)
    )
    data = path.read_bytes()
    at = data.index(identity, data.index(b"tkhd"))  # the track's display matrix: 90 degrees
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:at] + quarter + data[at + len(quarter) :])
    assert (video.probe(turned).width, video.probe(turned).height) == (48, 64)
    _, _, rgb = next(video.iter_frames(turned, 5))
    assert rgb.shape == (64, 48, 3)
    assert rgb[16, 36].min() > 150 > 60 > rgb[16, 12].max()  # clockwise: bright is top right
    _, _, rgb = next(video.iter_frames(turned, 5, size=(24, 32)))
    assert rgb.shape == (32, 24, 3)


@pytest.mark.parametrize("size", [None, (16, 12), (48, 40)])
def test_greys_keep_their_level(tmp_path, size):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(60, 25))
    for index, _, rgb in video.iter_frames(path, 25, size=size):
        assert np.abs(rgb.astype(int) - films.grey_of(index)).max() <= 1


def test_jpeg(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(5, 25))
    assert video.encode_jpeg(video.read_frame(path, 0)).startswith(b"\xff\xd8")


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        list(video.iter_frames(path, 5))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_files_that_are_no_films(tmp_path):
    assert "not found" in refusal(tmp_path / "absent.mp4")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("I am a text file.\n" * 50)
    assert "not a video file" in refusal(tmp_path / "text.mp4")
    (tmp_path / "letter.txt").write_text("Dear reader\n" * 50)
    assert "not a video file" in refusal(tmp_path / "letter.txt")
    assert "no video stream, only audio" in refusal(films.write_sound(tmp_path / "sound.mp4"))


def test_a_playlist_opens_nothing_else(tmp_path):
    films.write_film(tmp_path / "a.mp4", films.constant_rate(5, 25))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    assert "not a video file" in refusal(tmp_path / "list.mp4")


def test_odd_file_names(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(5, 25))
    odd = path.rename(tmp_path / "http:what? 50% - \u00e9.mp4")
    assert len(read_numbers(odd, 5)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(5, 25))
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_permission_is_told_apart(tmp_path, monkeypatch):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(5, 25))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in refusal(path)


def test_a_film_without_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with films.av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    refusal(path)


def test_damage_in_the_middle_is_reported_and_bridged(tmp_path, caplog):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(100, 25), pictures=pictures)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 20_000] = bytes(20_000)
    path.write_bytes(bytes(data))
    items = list(video.iter_frames(path, 5))
    assert [index for index, _, _ in items] == list(range(20))
    assert "could not be decoded" in caplog.text


def test_an_mp4_without_its_index(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", films.constant_rate(50, 25))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 8])
    assert "moov" in refusal(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_film_cut_in_the_middle_says_how_far_it_goes(tmp_path, suffix):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(200)]
    path = films.write_film(
        tmp_path / f"a{suffix}",
        films.constant_rate(200, 25),
        pictures=pictures,
        container_options={"movflags": "faststart"} if suffix == ".mp4" else {},
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    got = []
    with pytest.raises(UserError, match=r"only [34]\.\d of 8\.0 s are readable") as caught:
        got.extend(video.iter_frames(path, 5))
    assert str(path) in str(caught.value)


def test_the_rate_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="fps"):
        list(video.iter_frames(tmp_path / "a.mp4", 0))
