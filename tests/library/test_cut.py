"""Moments as clips and as markers: read back by decoders and by other people's readers."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_films import FPS, number_of, write

from revisionllm.cli import main
from revisionllm.data import video
from revisionllm.errors import UserError
from revisionllm.library.clips import cut_clip
from revisionllm.library.markers import Mark, write_markers

SENTENCE = 'a "red" ball & a <box>; #1'


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def answers(path: Path, film: Path | None, *spans: tuple[float, float]) -> Path:
    """A file as `find --json` writes it: two sentences, the second not found."""
    moments = [
        {"start_s": a, "end_s": b, "score": 0.9 - 0.1 * n, "parts": {}, "level": "frames"}
        for n, (a, b) in enumerate(spans)
    ]
    record = {"schema": 1, "qid": "q0", "vid": "v", "query": SENTENCE, "duration_s": 8.0}
    lines = [record | {"found": True, "moments": moments}]
    lines += [record | {"qid": "q1", "query": "nothing", "found": False, "moments": moments[:1]}]
    if film is not None:
        lines = [line | {"film": str(film)} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("late_s", [0.0, 5.0])
def test_encoded_clips_start_and_end_at_the_very_frame(tmp_path, suffix, late_s) -> None:
    film = write(tmp_path / f"film{suffix}", range(200), options={"g": "60"}, late_s=late_s)
    out = tmp_path / "clip.mp4"
    assert cut_clip(film, 3.0, 4.0, out, reencode=True) == 3.0
    assert numbers(out) == list(range(75, 100))
    with av.open(str(out)) as container:
        assert container.streams.video[0].start_time == 0
        assert abs(container.duration / 1e6 - 1.0) < 0.01


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_copied_clips_start_at_the_key_frame_before(tmp_path, suffix) -> None:
    """With pictures that are stored in another order than they are shown in."""
    options = {"g": "50", "keyint_min": "50", "bf": "3", "sc_threshold": "0"}
    film = write(tmp_path / f"film{suffix}", range(250), options=options)
    for start_s, key in ((5.0, 100), (3.96, 50), (4.0, 100), (0.3, 0), (9.0, 200)):
        out = tmp_path / f"clip{start_s}{suffix}"
        began_s = cut_clip(film, start_s, start_s + 0.8, out)
        assert began_s == pytest.approx(key / FPS, abs=0.002)
        shown = numbers(out)
        wanted = list(range(key, round((start_s + 0.8) * FPS)))
        assert shown[: len(wanted)] == wanted
        assert len(shown) <= len(wanted) + 6  # stored before the last wanted ones


def test_sound_is_cut_with_the_picture(tmp_path) -> None:
    """A click at every second of the film."""
    film = tmp_path / "film.mkv"
    rate = 48_000
    with av.open(str(film), "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"g": "50", "sc_threshold": "0"})
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("flac", rate=rate, layout="mono")
        packets = []
        for number in range(250):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), "rgb24")
            frame.pts = number
            packets += picture.encode(frame)
        packets += picture.encode()
        samples = np.zeros((1, 10 * rate), np.int16)
        samples[0, ::rate] = 30_000
        for start in range(0, 10 * rate, 4000):
            frame = av.AudioFrame.from_ndarray(
                samples[:, start : start + 4000].copy(), "s16", "mono"
            )
            frame.sample_rate, frame.pts = rate, start
            packets += sound.encode(frame)
        packets += sound.encode()
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            container.mux(packet)
    for reencode, first_s in ((True, 4.5), (False, 4.0)):
        out = tmp_path / f"clip{reencode}{'.mp4' if reencode else '.mkv'}"
        began_s = cut_clip(film, 4.5, 7.25, out, reencode=reencode)
        assert began_s == pytest.approx(first_s, abs=0.002)
        heard = np.zeros(5 * rate)
        with av.open(str(out)) as container:
            for frame in container.decode(audio=0):
                at = round(float(frame.pts * frame.time_base) * rate)
                values = frame.to_ndarray().astype(float).reshape(-1)[max(0, -at) :]
                heard[max(0, at) : max(0, at) + len(values)] = np.abs(values)
        clicks = [second for second in (5, 6, 7) if second < 7.25]
        for second in clicks:
            at = round((second - began_s) * rate)
            near = heard[max(0, at - rate // 4) : at + rate // 4]
            assert abs(int(near.argmax()) + max(0, at - rate // 4) - at) <= 2


def test_rotated_films_are_cut_upright(tmp_path) -> None:
    film, turned = write(tmp_path / "film.mp4", range(50)), tmp_path / "turned.mp4"
    one = (1 << 16).to_bytes(4, "big")
    matrix = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(4)
    data = film.read_bytes()
    at = data.index(one + bytes(12) + one, data.index(b"tkhd"))
    turned.write_bytes(data[:at] + matrix + data[at + len(matrix) :])
    assert video.probe(turned).width == 32
    for reencode in (True, False):
        out = tmp_path / f"clip{reencode}.mp4"
        cut_clip(turned, 1.0, 1.5, out, reencode=reencode)
        assert (video.probe(out).width, video.probe(out).height) == (32, 192)


def test_the_command_names_and_refuses(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    film = write(tmp_path / "my film.mp4", range(200), options={"g": "50", "sc_threshold": "0"})
    moments = answers(tmp_path / "moments.jsonl", film, (5.0, 6.0), (1.0, 2.0))
    words = ["cut", str(moments), "--clips", "clips", "--top-k", "2"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out == "" and "from 0:00:04.0, from the key frame 1.0 s before" in told.err
    names = sorted(path.name for path in Path("clips").iterdir())
    assert names == [
        "01-01_my-film_0-00-05.0_a-red-ball-a-box-1.mp4",
        "01-02_my-film_0-00-01.0_a-red-ball-a-box-1.mp4",
    ]
    assert main([*words, "--reencode", "--padding", "0.2"]) == 0  # over its own files
    assert numbers(Path("clips", names[0])) == list(range(120, 155))
    Path("clips", names[0]).write_bytes(b"mine")
    assert main(words) == 2
    assert "was not made by this project" in capsys.readouterr().err
    for wrong, said in (
        (["cut", str(moments)], "nothing to write"),
        (["cut", str(moments), "--markers", "a.doc"], "markers are .csv, .edl"),
        (["cut", "nowhere", "--clips", "c"], "no such file: nowhere"),
        (["cut", str(answers(tmp_path / "b", None)), "--clips", "c"], "names no film"),
        (["cut", str(moments), "--clips", "c", "--film", "gone.mp4"], "not found: gone.mp4"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err


def test_moments_come_through_a_pipe(tmp_path) -> None:
    film = write(tmp_path / "film.mp4", range(100))
    text = answers(tmp_path / "moments.jsonl", film, (1.0, 2.0)).read_text()
    out = tmp_path / "m.vtt"
    command = [sys.executable, "-m", "revisionllm.cli", "cut", "-", "--markers", str(out)]
    subprocess.run(command, input=text, text=True, check=True)
    assert "00:00:01.000 --> 00:00:02.000" in out.read_text()


@pytest.fixture
def marks(tmp_path) -> list[Mark]:
    film = write(tmp_path / "film.mp4", range(250))
    return [
        Mark(film, SENTENCE, 1, 1, 5.2, 6.44, 0.9),
        Mark(film, SENTENCE, 1, 2, 1.0, 2.0, 0.7),
        Mark(film, "two\nlines", 2, 1, 3.0, 3.001, 0.5),
    ]


def test_editors_read_the_markers(tmp_path, marks) -> None:
    """OpenTimelineIO's own readers of the three formats."""
    opentimelineio = pytest.importorskip("opentimelineio")
    for name in ("m.edl", "m.otio", "m.fcpxml"):
        write_markers(tmp_path / name, marks)
    cuts = opentimelineio.adapters.read_from_file(str(tmp_path / "m.edl"), rate=FPS)
    spans = [clip.source_range for clip in cuts.find_clips()]
    assert [span.start_time.value for span in spans] == [130, 25, 75]
    assert [span.duration.value for span in spans] == [31, 25, 1]
    assert [clip.name for clip in cuts.find_clips()] == ["film.mp4"] * 3
    assert SENTENCE in str(cuts.find_clips()[0].markers)
    timeline = opentimelineio.adapters.read_from_file(str(tmp_path / "m.otio"))
    clips = list(timeline.find_clips())
    assert [clip.markers[0].name for clip in clips] == [SENTENCE, SENTENCE, "two lines"]
    assert [clip.source_range.start_time.value for clip in clips] == [130, 25, 75]
    assert clips[0].media_reference.target_url.startswith("file:///")
    assert clips[0].source_range.start_time.to_seconds() == pytest.approx(5.2)
    (project,) = opentimelineio.adapters.read_from_file(str(tmp_path / "m.fcpxml"))
    (whole,) = project.find_clips()
    assert whole.source_range.duration.value == 250
    assert [marker.name for marker in whole.markers] == [SENTENCE, "two lines", SENTENCE]
    assert [marker.marked_range.start_time.value for marker in whole.markers] == [25, 75, 130]


def test_chapters_and_subtitles(tmp_path, marks) -> None:
    for suffix in ("srt", "vtt", "ffmeta", "txt", "csv"):
        write_markers(tmp_path / f"m.{suffix}", marks)
        write_markers(tmp_path / f"m.{suffix}", marks)  # over its own
    with av.open(str(tmp_path / "m.srt")) as container:  # FFmpeg's reader
        packets = [p for p in container.demux() if p.size]
        assert [float(p.pts * p.time_base) for p in packets] == pytest.approx([1.0, 3.0, 5.2])
        assert SENTENCE in bytes(packets[0]).decode()
    assert (tmp_path / "m.txt").read_text().splitlines() == [
        "0:00:00 Start",
        f"0:00:01 {SENTENCE}",
        "0:00:03 two lines",
        f"0:00:05 {SENTENCE}",
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "m.csv").read_text())))
    assert [row["sentence"] for row in rows] == [SENTENCE, SENTENCE, "two lines"]
    assert float(rows[0]["start_s"]) == 5.2 and rows[0]["film"] == str(marks[0].film)
    with av.open(str(tmp_path / "m.ffmeta")) as container:
        if not hasattr(container, "chapters"):
            pytest.skip("this PyAV reads no chapters")
        chapters = container.chapters()
    assert [chapter["metadata"]["title"] for chapter in chapters] == [
        SENTENCE,
        "two lines",
        SENTENCE,
    ]


def test_formats_of_one_film_refuse_two(tmp_path, marks) -> None:
    other = write(tmp_path / "other.mp4", range(30))
    both = [*marks, Mark(other, "x", 3, 1, 0.0, 1.0, 0.5)]
    with pytest.raises(UserError, match="is of one film"):
        write_markers(tmp_path / "m.srt", both)
    write_markers(tmp_path / "m.edl", both)


def test_find_writes_clips_and_markers(tmp_path, capsys) -> None:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film
    from revisionllm.grounder import DEMO_WEIGHTS

    film = tmp_path / "film.mp4"
    write_film(plan_film(3, 60.0, "test"), film)
    words = ["find", str(film), "a red ball", "--model", f"clip:{DEMO_WEIGHTS / 'clip'}", "--json"]
    words += ["--features-dir", str(tmp_path), "--threshold", "0", "--top-k", "2"]
    assert main([*words, "--cut", str(tmp_path / "c"), "--markers", str(tmp_path / "m.csv")]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["film"] == str(film)
    assert len(list((tmp_path / "c").iterdir())) == len(record["moments"]) == 2
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 3
