"""Foreign grounders: what is shown and asked, faults of a server, kept answers, profiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stub_grounder import KEY, Stub, serving
from tiny_films import write_film

from revisionllm.cli import main
from revisionllm.data.video import frames_at, read_frame
from revisionllm.engine.foreign import ForeignEngine, Profile, make_engine, to_answer
from revisionllm.engine.server import KEY_VARIABLE, ServerAsker
from revisionllm.errors import UserError
from revisionllm.grounder import DEMO_WEIGHTS
from revisionllm.grounding.levels import Level, Question
from revisionllm.grounding.windows import Window
from revisionllm.library.model_file import read_model
from revisionllm.records.films import Film, Query

FILM_S, EVENT_S = 400.0, (250.0, 270.0)
PROFILE = """
names = ["stub"]
window_s = 40.0
stride_s = 20.0
frames_per_window = 20
image_side = 32
stamp = "{second:.1f} s:"
question = "When does this happen: {query}?"
presence = "Does this happen: {query}? Answer yes or no."
"""


@pytest.fixture(scope="module")
def film_path(tmp_path_factory) -> Path:
    """Grey, white during EVENT_S, black before it."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pictures = []
    for second in range(round(FILM_S)):
        grey = 250 if EVENT_S[0] <= second < EVENT_S[1] else 20 + second % 90
        pictures.append(np.full((48, 64, 3), grey, np.uint8))
    starts = [1000 * second for second in range(round(FILM_S))]
    return write_film(path, starts, pictures=pictures, codec_options={"g": "25"})


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "stub.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture
def stub():
    with serving(Stub()) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def engine_of(stub: Stub, profile: Path, kept: Path | None = None, **options) -> ForeignEngine:
    asker = ServerAsker(stub.url, "stub", **{"timeout_s": 0.5, "retries": 2} | options)
    return ForeignEngine(asker, Profile.read(profile), kept)


def ask(engine: ForeignEngine, film_path: Path, count: int = 19, sentence: str = "it is white"):
    level = Level("dense", "dense", engine.profile.window_s, engine.profile.stride_s)
    windows = level.grid(FILM_S)[:count]
    film = Film("film", np.zeros((1, 1)), 1.0, FILM_S, key="film", video_path=film_path)
    questions = [Question(0, (window,)) for window in windows]
    return engine.answer(level, questions, film, [Query("q", sentence)])


def found(answers) -> list[tuple[int, float, float]]:
    return [(a.index, c.start_s, c.end_s) for a in answers for c in a.spans]


RIGHT = [(11, 250.0, 260.0), (12, 250.0, 270.0), (13, 260.0, 270.0)]


@pytest.mark.parametrize("way", ["logprobs", "yes_no", "answer"])
def test_windows_are_read_by_a_server(stub, profile, film_path, way):
    """Frames by the film's clock, seconds within the window, spans in the film, presence."""
    if way != "logprobs":
        stub.tells_logprobs = False
    if way == "answer":
        profile.write_text(PROFILE.replace("presence =", "#"))
    engine = engine_of(stub, profile)
    answers = ask(engine, film_path)
    assert [a.index for a in answers] == list(range(19))
    assert found(answers) == RIGHT
    assert engine.how == {way: 19} and engine.signature.endswith(f"#stub (presence: {way})")
    presences = {round(a.presence, 6) for a in answers if a.spans}
    assert presences == ({0.9} if way == "logprobs" else {1.0})
    assert engine.cost.prefixes == 19 and stub.most_at_once <= 8
    assert stub.stamps[0] == [1.0 + 2 * number for number in range(20)]
    assert set(stub.prompts) <= {
        "When does this happen: it is white?",
        "Does this happen: it is white? Answer yes or no.",
    }


def test_the_last_window_shows_no_frames_behind_the_end(stub, profile, film_path):
    profile.write_text(PROFILE.replace("stride_s = 20.0", "stride_s = 30.0"))
    engine = engine_of(stub, profile)
    assert found(ask(engine, film_path))[0][1:] == (250.0, 270.0)
    assert min(map(len, stub.stamps)) >= 5


@pytest.mark.parametrize("fault", ["429", "500", "half", "other", "stall", "die", "empty", "400"])
def test_a_fault_costs_a_window_at_most(stub, profile, film_path, tmp_path, fault, capsys):
    """One request fails for good: its window is lost, the rerun asks for that one alone."""
    first = 3 if fault in ("429", "500", "stall", "die") else 1  # which are tried again
    bad = set(range(2, 2 + first))
    stub.misbehave = lambda number: fault if number in bad else None
    kept = tmp_path / "kept.sqlite"
    engine = engine_of(stub, profile, kept)
    engine.asker.in_flight = 1  # the same requests fail each time
    answers = ask(engine, film_path)
    lost = engine.how["no answer"]
    assert lost == (fault != "400")  # which is asked again, without probabilities
    assert len(answers) == 19 and set(found(answers)) <= set(RIGHT)
    assert ("1 of 19 windows got no answer" in capsys.readouterr().err) == lost
    stub.misbehave = lambda number: None
    again = engine_of(stub, profile, kept)
    assert found(ask(again, film_path)) == RIGHT
    assert again.cost.prefixes == lost


@pytest.mark.parametrize("fault", ["429", "500", "die"])
def test_short_trouble_is_waited_for(stub, profile, film_path, fault):
    stub.misbehave = lambda number: fault if number % 5 == 2 else None
    engine = engine_of(stub, profile, retries=6)
    assert found(ask(engine, film_path)) == RIGHT
    assert engine.how["no answer"] == 0


def test_a_server_that_goes_away_ends_the_run_and_the_rerun_goes_on(
    stub, profile, film_path, tmp_path
):
    kept = tmp_path / "kept.sqlite"
    stub.misbehave = lambda number: "die" if number > 6 else None
    engine = engine_of(stub, profile, kept, retries=0)
    engine.asker.in_flight = 2
    with pytest.raises(UserError, match=r"answers no more.*run the command again"):
        ask(engine, film_path)
    done = engine.cost.prefixes
    assert 0 < done < 19
    stub.misbehave = lambda number: None
    again = engine_of(stub, profile, kept)
    assert found(ask(again, film_path)) == RIGHT
    assert again.cost.prefixes == 19 - done


def test_no_answer_at_all_is_not_absence(stub, profile, film_path):
    stub.misbehave = lambda number: "500"
    with pytest.raises(UserError, match=r"answers nothing .*fault 500"):
        ask(engine_of(stub, profile, retries=0), film_path, count=3)


@pytest.mark.parametrize(
    "said",
    ["", "I cannot say.", "5000 - 6000 seconds", "the 3rd", "9 - 3", "{", "nan - inf", "1e999 - 2"],
)
def test_nonsense_names_nothing(stub, profile, film_path, said):
    stub.says = lambda question: None if "yes or no" in question else said or " "
    assert found(ask(engine_of(stub, profile), film_path)) == []


@pytest.mark.parametrize(
    "said, presence",
    [("Yes, it is.", 1.0), ("**No**", 0.0), ("not here", 0.0), ("Now I see: 1 - 2 s", 1.0)],
)
def test_a_word_that_begins_like_no_is_none(stub, profile, film_path, said, presence):
    """Then the answer alone decides."""
    stub.tells_logprobs = False
    stub.says = lambda question: said if "yes or no" in question else "1 - 2 seconds"
    (answer,) = ask(engine_of(stub, profile), film_path, count=1)
    assert answer.presence == presence


def test_another_grounder_leaves_the_calibration_of_the_first(tmp_path):
    (tmp_path / "model.json").write_text('{"encoder": "demo", "grounder": "vlm:x"}')
    model = read_model(str(tmp_path))
    assert model.folder == tmp_path and model.above("vlm:y").folder is None
    assert model.above("vlm:y").encoder == model.encoder


def test_several_spans_are_several_candidates():
    window = Window(3, 100.0, 140.0)
    spans = to_answer(window, 130.0, "5 - 10 seconds and 00:20 - 00:50", 0.7).spans
    assert [(c.start_s, c.end_s) for c in spans] == [(105.0, 110.0), (120.0, 130.0)]


def test_who_is_not_there_and_who_wants_a_key(stub, profile, monkeypatch):
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:9/v1"):
        ServerAsker("http://127.0.0.1:9/v1", "stub")
    stub.wants_key = True
    engine = engine_of(stub, profile)
    with pytest.raises(UserError, match=f"wants a key.*{KEY_VARIABLE}"):
        _ask_once(engine)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert _ask_once(engine_of(stub, profile)) == "not present"


def _ask_once(engine: ForeignEngine) -> str:
    from revisionllm.engine.foreign import Prompt

    return engine.asker.ask([Prompt((), (), "When?")], tokens=4, yes_no=False)[0].text


@pytest.mark.parametrize(
    "change, told",
    [
        (("window_s = 40.0", ""), "no entry window_s"),
        (("window_s = 40.0", "window_s = '40'"), "window_s = '40' is not float"),
        (("stride_s = 20.0", "stride_s = 50.0"), "stride_s <= window_s"),
        (("frames_per_window = 20", "frames_per_window = 0"), "must be positive"),
        (("image_side = 32", "image_side = true"), "image_side = True is not int"),
        (("{query}?", "{sentence}?"), "may use {query}"),
        (("{second:.1f}", "{second:d}"), "may use {second}"),
        (('names = ["stub"]', "names = [1]"), "names"),
        (("names", "colour = 1\nnames"), "unknown entry 'colour'"),
        (("names", "= ="), "profile"),
    ],
)
def test_bad_profiles(profile, change, told):
    profile.write_text(PROFILE.replace(*change, 1))
    with pytest.raises(UserError, match=told.replace("{", r"\{")):
        Profile.read(profile)


@pytest.mark.parametrize(
    "model, window_s, frames",
    [("Qwen/Qwen2.5-VL-7B-Instruct", 120, 60), ("qwen3_vl", 120, 60), ("TimeLens-8B", 120, 120)],
)
def test_profiles_that_ship(model, window_s, frames):
    profile = Profile.of(model)
    assert (profile.window_s, profile.frames_per_window) == (window_s, frames)
    assert "{query}" in profile.question and "yes or no" in profile.presence


@pytest.mark.parametrize(
    "grounder, told",
    [
        ("llava", "give http://host:port/v1#model"),
        ("http://127.0.0.1:9/v1", "which model"),
        ("http://127.0.0.1:9/v1#llava", "no profile for grounder 'llava'"),
        ("http://127.0.0.1:9/v1#qwen3-vl", "no server answers"),
        ("vlm:/nowhere", "nowhere"),
    ],
)
def test_grounders_that_are_none(grounder, told):
    with pytest.raises(UserError, match=told):
        make_engine(grounder)


def test_frames_at_are_those_of_read_frame(film_path):
    times = [0.0, 0.5, 7.2, 249.9, 250.0, 399.9, 500.0]
    pictures = frames_at(film_path, times, size=(32, 24))
    assert [p.shape for p in pictures] == [(24, 32, 3)] * 7
    for time_s, picture in zip(times[:-1], pictures, strict=False):
        one = read_frame(film_path, time_s, size=(32, 24))
        assert np.array_equal(picture, one)
    assert np.array_equal(pictures[-1], pictures[-2])


# --- through the command --------------------------------------------------------------------------


def test_find_with_a_grounder(stub, profile, film_path, tmp_path, capsys):
    """A film and a library; the budget holds; what was asked once is not asked again."""
    words = ["--grounder", f"{stub.url}#stub", "--grounder-profile", str(profile)]
    words += ["--features-dir", str(tmp_path / "features"), "--json", "--threshold", "0"]
    assert main(["find", str(film_path), "it is white", "--model", "demo", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    moment = record["moments"][0]
    assert (moment["start_s"], moment["end_s"]) == EVENT_S and moment["level"] == "dense"
    assert record["cost"]["dense_windows"] <= 20
    assert record["run"].endswith("#stub (presence: logprobs)")
    asked = len(stub.prompts)
    small = [*words, "--budget", "3"]
    assert main(["find", str(film_path), "it is white", "--model", "demo", *small]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["dense_windows"] <= 3
    assert len(stub.prompts) == asked
    library = tmp_path / "library"
    assert main(["index", str(film_path), "--library", str(library), "--model", "demo"]) == 0
    capsys.readouterr()
    assert main(["find", str(library), "it is white", *words, "--search", "exhaustive"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cost"]["dense_windows"] == 19
    assert (record["moments"][0]["start_s"], record["moments"][0]["end_s"]) == EVENT_S


def test_model_json_names_a_grounder(stub, profile, film_path, tmp_path, capsys):
    about = {"encoder": "demo", "grounder": f"{stub.url}#stub", "profile": profile.name}
    (tmp_path / "model.json").write_text(json.dumps(about))
    words = ["--model", str(tmp_path), "--features-dir", str(tmp_path / "f"), "--json"]
    assert main(["find", str(film_path), "it is white", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["found"] and record["moments"][0]["start_s"] == EVENT_S[0]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--grounder", "http://x/v1#y", "--checkpoint", "z"], "give one of them"),
        (["--grounder-profile", "x.toml"], "of which --grounder"),
        (["--grounder", "http://x/v1#y", "--budget", "0"], "at least 1"),
    ],
)
def test_contradictions_are_refused(film_path, words, told, capsys):
    assert main(["find", str(film_path), "a", *words]) == 2
    assert told in capsys.readouterr().err


def test_dense_and_grounder_in_a_model_file(tmp_path, capsys, film_path):
    about = {"encoder": "demo", "grounder": "vlm:x", "dense": str(DEMO_WEIGHTS / "dense")}
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert main(["find", str(film_path), "a", "--model", str(tmp_path)]) == 2
    assert "dense and grounder: give one of them" in capsys.readouterr().err
