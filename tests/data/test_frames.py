"""Extraction: right rows, same bytes after any interruption, nothing half taken for whole."""

from __future__ import annotations

import errno
import fcntl
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_films as films
import torch

from revisionllm.data.feature_extraction import frames as extraction
from revisionllm.data.feature_extraction.frames import extract_features, read_ahead
from revisionllm.data.stores.feature_store import open_features
from revisionllm.errors import UserError


class GreyClip:
    """Stands in for CLIP: features are the frame's mean grey and its place in the batch."""

    dim = 3

    def __init__(self, *, dies_at_call: int | None = None, name: str = "grey"):
        self.name = name
        self.calls = 0
        self.dies_at_call = dies_at_call

    def fingerprint(self) -> str:
        return self.name

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        return 16, 12

    def encode_images(self, batch: np.ndarray, *, batch_size: int) -> torch.Tensor:
        if self.calls == self.dies_at_call:
            raise KeyboardInterrupt
        self.calls += 1
        grey = batch.astype(np.float32).mean(axis=(1, 2, 3))
        place = np.arange(len(batch), dtype=np.float32)  # makes rows depend on the batching
        return torch.from_numpy(np.stack([grey, place, np.ones_like(grey)], axis=1))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    return films.write_film(path, films.constant_rate(120, 25))


def extract(film, out_path, clip=None, **options):
    options = {"feature_fps": 10, "batch_size": 8, "dtype": "float32", "progress": False} | options
    return extract_features(film, clip or GreyClip(), out_path=out_path, **options)


def test_one_row_per_grid_time_and_a_description(film, tmp_path):
    made = extract(film, tmp_path / "new" / "film.npy")
    rows = np.load(made.path, allow_pickle=False)
    assert rows.shape == (48, 3) == (made.num_frames, made.about["dim"])
    numbers = [round((grey - 5) / 4) for grey in rows[:, 0]]
    assert numbers == [(index * 25 // 10) % 60 for index in range(48)]
    np.testing.assert_array_equal(rows[:, 1], np.arange(48) % 8)
    store = open_features(tmp_path / "new")
    assert store.keys() == ["film"]
    about = store.metadata("film")
    assert about == made.about
    assert (about["feature_fps"], about["clip_fingerprint"]) == (10.0, "grey")
    assert about["duration_s"] == pytest.approx(4.8, abs=0.05)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["film.json", "film.npy"]


@pytest.mark.parametrize("dies_at", [0, 1, 3, 5])
@pytest.mark.parametrize("torn_bytes", [0, 5, 200])
def test_interrupted_and_continued_gives_the_same_bytes(film, tmp_path, dies_at, torn_bytes):
    whole = extract(film, tmp_path / "whole.npy").path.read_bytes()
    out_path = tmp_path / "film.npy"
    with pytest.raises(KeyboardInterrupt):
        extract(film, out_path, GreyClip(dies_at_call=dies_at))
    assert not out_path.exists()
    partial = tmp_path / "film.npy.partial"
    data = partial.read_bytes()
    partial.write_bytes(data[: max(0, len(data) - torn_bytes)])  # a kill in the middle of a write
    clip = GreyClip()
    made = extract(film, out_path, clip)
    assert out_path.read_bytes() == whole
    assert not made.reused
    if not torn_bytes:
        assert clip.calls == 6 - dies_at  # what was done is not done again
    assert not partial.exists() and len(list(tmp_path.iterdir())) == 4


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Four slides for five seconds each, a pointer that moves on the third; compressed."""
    rng = np.random.default_rng(1)
    sheets = [np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((16, 16, 1))) for _ in range(4)]
    pictures = []
    for number in range(20 * 5):
        picture = sheets[number // 25].astype(np.uint8)
        if 50 <= number < 75:
            picture[40:46, number : number + 6] = 255
        pictures.append(picture)
    path = tmp_path_factory.mktemp("films") / "slides.mp4"
    starts = films.constant_rate(100, 5)
    options = {"crf": "28", "g": "7"}
    return films.write_film(path, starts, size=(128, 96), pictures=pictures, codec_options=options)


class SharpClip(GreyClip):
    """Sees all pixels, and counts the pictures that it was shown."""

    seen = 0

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        return 128, 96

    def encode_images(self, batch: np.ndarray, *, batch_size: int) -> torch.Tensor:
        self.seen += len(batch)
        return super().encode_images(batch, batch_size=batch_size)


def test_what_stands_still_is_encoded_once(slides, tmp_path):
    whole, some = SharpClip(), SharpClip()
    every = np.load(extract(slides, tmp_path / "a.npy", whole, feature_fps=5).path)
    made = extract(slides, tmp_path / "b.npy", some, feature_fps=5, skip_same=True)
    rows = np.load(made.path)
    assert rows.shape == every.shape and whole.seen == 100
    # once per batch of eight and slide, and every picture of the one with the pointer
    assert some.seen <= 13 + 3 + 25
    np.testing.assert_allclose(rows[:, 0], every[:, 0], atol=1.0)
    moving = np.abs(np.diff(rows[51:74, 0]))
    assert (np.abs(rows[50:75, 0] - every[50:75, 0]) == 0).all() and moving.max() > 0
    # they are not taken for one another, and go on as they began
    assert not extract(slides, tmp_path / "a.npy", whole, feature_fps=5, skip_same=True).reused
    with pytest.raises(KeyboardInterrupt):
        clip = SharpClip(dies_at_call=5)
        extract(slides, tmp_path / "c.npy", clip, feature_fps=5, skip_same=True)
    again = extract(slides, tmp_path / "c.npy", SharpClip(), feature_fps=5, skip_same=True)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_a_run_killed_before_the_rename_computes_nothing_again(film, tmp_path, monkeypatch):
    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction, "_finish", killed)
        extract(film, tmp_path / "film.npy")
    clip = GreyClip()
    assert extract(film, tmp_path / "film.npy", clip).num_frames == 48
    assert clip.calls == 0


def test_a_finished_file_is_reused_only_if_it_is_the_same_work(film, tmp_path):
    out_path = tmp_path / "film.npy"
    extract(film, out_path)
    clip = GreyClip()
    assert extract(film, out_path, clip).reused and clip.calls == 0
    for change in ({"feature_fps": 5}, {"clip": GreyClip(name="other")}, {"dtype": "float16"}):
        assert not extract(film, out_path, **change).reused
        assert extract(film, out_path, **change).reused
    other = films.write_film(tmp_path / "other.mp4", films.constant_rate(120, 25, start_s=1))
    assert not extract(other, out_path).reused
    data = out_path.read_bytes()
    out_path.write_bytes(data[:-1])
    assert not extract(other, out_path).reused
    assert out_path.read_bytes() == data


def test_a_partial_file_of_other_work_starts_again(film, tmp_path):
    out_path = tmp_path / "film.npy"
    with pytest.raises(KeyboardInterrupt):
        extract(film, out_path, GreyClip(dies_at_call=2), feature_fps=5)
    whole = extract(film, tmp_path / "whole.npy").path.read_bytes()
    assert extract(film, out_path).path.read_bytes() == whole


@pytest.mark.parametrize(
    ("step", "call"), [("unlink", 0), ("unlink", 1), ("replace", 0), ("replace", 1)]
)
def test_a_kill_while_finishing_is_mended(film, tmp_path, monkeypatch, step, call):
    out_path = tmp_path / "film.npy"
    extract(film, out_path, feature_fps=5)  # an older file that the new one replaces
    original, calls = getattr(Path, step), []

    def killed(self, *args, **options):
        calls.append(self)
        if len(calls) > call:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, step, killed)
        extract(film, out_path)
    clip = GreyClip()
    made = extract(film, out_path, clip)
    assert clip.calls == 0
    assert np.load(out_path).shape == (48, 3)
    assert open_features(tmp_path).metadata("film") == made.about
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.json", "film.npy"]


def test_a_json_file_of_the_users_is_not_replaced(film, tmp_path):
    (tmp_path / "film.json").write_text('{"subtitles": []}')
    with pytest.raises(UserError, match=r"film\.json was not made by this command"):
        extract(film, tmp_path / "film.npy")
    assert (tmp_path / "film.json").read_text() == '{"subtitles": []}'


def test_features_from_elsewhere_are_not_overwritten(film, tmp_path):
    np.save(tmp_path / "film.npy", np.zeros((3, 3), np.float32))
    with pytest.raises(UserError, match="not made by this command"):
        extract(film, tmp_path / "film.npy")
    assert np.load(tmp_path / "film.npy").shape == (3, 3)


def test_a_full_disk_says_what_is_needed_and_can_be_continued(film, tmp_path, monkeypatch):
    out_path = tmp_path / "film.npy"
    append, calls = extraction._append, []

    def full_disk(file, rows):
        calls.append(rows)
        if len(calls) > 3:  # header and two batches fit
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, rows)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_append", full_disk)
        with pytest.raises(UserError, match=rf"disk full.*film\.npy needs {32 * 12} more bytes"):
            extract(film, out_path)
    clip = GreyClip()
    extract(film, out_path, clip)
    assert clip.calls == 4
    assert out_path.read_bytes() == extract(film, tmp_path / "w.npy").path.read_bytes()


def test_places_that_cannot_be_written(film, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        extract(film, tmp_path / "file" / "film.npy")


def test_two_processes_do_not_write_one_file(film, tmp_path):
    with open(tmp_path / "film.npy.partial", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            extract(film, tmp_path / "film.npy")


def test_a_cut_film_leaves_no_features(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    path = films.write_film(
        tmp_path / "a.mp4",
        films.constant_rate(100, 25),
        pictures=pictures,
        container_options={"movflags": "faststart"},
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="are readable"):
        extract(path, tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


def test_read_ahead_is_bounded_ordered_and_stops():
    started = []

    def source():
        for number in range(100):
            started.append(number)
            yield number

    items = read_ahead(source(), depth=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.1)
    assert len(started) <= 3 + 2 + 1
    threads = threading.active_count()
    items.close()
    assert threading.active_count() == threads - 1
    assert list(read_ahead(iter(range(20)), depth=1)) == list(range(20))


def test_read_ahead_hands_over_errors():
    def source():
        yield 1
        raise UserError("cut")

    items = read_ahead(source(), depth=2)
    assert next(items) == 1
    with pytest.raises(UserError, match="cut"):
        next(items)


def test_sidecar_is_plain_json(film, tmp_path):
    extract(film, tmp_path / "film.npy")
    about = json.loads((tmp_path / "film.json").read_text())
    assert about["video"]["name"] == "film.mp4"
    assert set(about["video"]) == {"name", "bytes", "sha256_of_ends"}


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_rows_with_flipped_bytes_are_made_again(film, tmp_path, capsys):
    made = extract(film, tmp_path / "film.npy")
    whole = made.path.read_bytes()
    flipped(made.path, -5)
    store = open_features(tmp_path)
    assert "others than those that were written" in store.bad_rows("film")
    again = extract(film, tmp_path / "film.npy")
    assert not again.reused and made.path.read_bytes() == whole
    assert "has changed since it was made" in capsys.readouterr().err
    assert store.bad_rows("film") is None


def test_unfinished_rows_with_flipped_bytes_are_made_again(film, tmp_path):
    whole = extract(film, tmp_path / "whole" / "film.npy").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        extract(film, tmp_path / "film.npy", GreyClip(dies_at_call=4))
    flipped(tmp_path / "film.npy.partial", -12 * 8 * 2)  # in the third of four batches
    clip = GreyClip()
    assert extract(film, tmp_path / "film.npy", clip).path.read_bytes() == whole
    assert clip.calls == 4  # batches 3 to 6 of 6


def test_a_film_replaced_by_another_of_the_same_name_size_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "END_BYTES", 64)
    path = films.write_film(tmp_path / "film.mp4", films.constant_rate(120, 25))
    clip = GreyClip()
    extract(path, tmp_path / "film.npy", clip)
    status = path.stat()
    assert extract(path, tmp_path / "film.npy", clip).reused
    path.touch()  # copied or touched: read once, found to be the same
    assert extract(path, tmp_path / "film.npy", clip).reused
    data = path.read_bytes()
    middle = data.index(b"mdat") + 400
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert path.stat().st_size == status.st_size
    assert extraction.video_identity(path)["bytes"] == len(data)
    assert not extract(path, tmp_path / "film.npy", clip).reused
