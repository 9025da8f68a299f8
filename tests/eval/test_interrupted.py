"""Evaluations that are killed, started twice, or cannot start: nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_evaluation import write_evaluation

from revisionllm.cli import main
from revisionllm.eval import predict_windows
from revisionllm.files import UserError
from revisionllm.records.predictions import PredictionWriter, read_predictions
from revisionllm.search import answer_log

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluation"))


def heed_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def flags(tiny, output: Path, *more: str, run: str = "dense") -> list[str]:
    shared = {name: tiny[name] for name in ("data_path", "features", "text_features")}
    values = {"checkpoint": tiny[run], "output": str(output), "device": "cpu", **shared}
    return [part for name, value in values.items() for part in (f"--{name}", value)] + list(more)


def without_clock(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["cost"].pop("seconds")
    return rows


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert predict_windows.main(flags(tiny, folder)) == 0
    return without_clock(folder / "predictions.jsonl")


pieces: set[int] = set()  # how many a whole run has, however it was stopped


@pytest.mark.parametrize("stop_after", [1, 2, 4, 7])
def test_a_kill_inside_a_batch_loses_a_piece(tiny, whole, tmp_path, monkeypatch, stop_after):
    """Answers written before the kill are not asked for again, and the result is the same."""
    monkeypatch.setattr(answer_log, "PIECE_QUESTIONS", 7)
    written = []
    write = answer_log.AnswerLog._write

    def count(self, *rest) -> None:
        write(self, *rest)
        written.append(self.path)
        if len(written) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(answer_log.AnswerLog, "_write", count)
    assert predict_windows.main(flags(tiny, tmp_path)) == 130
    log = tmp_path / "shard-0-of-1.answers"
    assert log.is_file()
    with log.open("a") as file:  # a kill tears the line it is in
        file.write('{"batch": "x')
    assert predict_windows.main(flags(tiny, tmp_path)) == 0
    again = len(written) - stop_after
    assert not log.exists()
    monkeypatch.undo()
    found = without_clock(tmp_path / "predictions.jsonl")
    for one, two in zip(found, whole, strict=True):
        assert [w["answer"] for w in one["windows"]] == [w["answer"] for w in two["windows"]]
        assert one["qid"] == two["qid"] and one["found"] == two["found"]
    assert again > 0
    total = again + stop_after  # nothing was asked twice
    pieces.add(total)
    assert len(pieces) == 1


def test_pieces_of_other_flags_are_not_taken_up(tiny, tmp_path, monkeypatch):
    log = answer_log.AnswerLog(tmp_path / "a.jsonl", {"checkpoint": "one"})
    log.start_batch(["film", 9.0], ["q"])
    log._write("questions", [], 5)
    log._file.close()
    other = answer_log.AnswerLog(tmp_path / "a.jsonl", {"checkpoint": "two"})
    other.start_batch(["film", 9.0], ["q"])
    assert other._known == []


def test_the_second_writer_is_refused(tiny, tmp_path, capsys):
    with PredictionWriter(tmp_path / "shard-0-of-1.jsonl"):
        assert predict_windows.main(flags(tiny, tmp_path)) == 2
        assert "another process writes" in capsys.readouterr().err
        with pytest.raises(UserError, match="another process"):
            PredictionWriter(tmp_path / "shard-0-of-1.jsonl")
    assert predict_windows.main(flags(tiny, tmp_path)) == 0


def test_what_cannot_start_leaves_nothing(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    for change in (
        {"dense": str(tmp_path / "no_run")},
        {"features": str(tmp_path / "no_features")},
        {"text_features": str(tmp_path / "no_texts")},
    ):
        assert predict_windows.main(flags(tiny | change, out)) == 2
        assert not out.exists() and not (tmp_path / "no_run").exists()
        (line,) = [row for row in capsys.readouterr().err.splitlines() if "error:" in row]
        assert str(next(iter(change.values()))) in line


def test_a_wrong_plan_loads_no_model(tiny, tmp_path, capsys, monkeypatch):
    from revisionllm.model import loading

    monkeypatch.setattr(loading, "load_base", None)
    words = flags(tiny, tmp_path / "out", "--long", tiny["long"], "--plan", "no such plan")
    assert main(["eval", "run", *words]) == 2
    assert "no plan 'no such plan'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_of_another_width_or_clip_are_refused_at_once(tiny, tmp_path, capsys):
    import numpy as np

    from revisionllm.data.stores.feature_writers import write_features
    from revisionllm.model.config import read_config, write_config

    rows = np.ones((122, 7), np.float32)
    records = [(vid, rows, {"feature_fps": 2.0}) for vid in ("film_a", "film_b", "film_c")]
    write_features(tmp_path / "narrow", records, store_format="npy")
    out = tmp_path / "out"
    assert predict_windows.main(flags(tiny | {"features": str(tmp_path / "narrow")}, out)) == 2
    assert "are 7 wide" in capsys.readouterr().err and not out.exists()

    import shutil

    run = Path(tiny["dense"]).with_name("of_clip_one")
    shutil.copytree(tiny["dense"], run)
    config = read_config(run)
    config.clip_fingerprint = "one"
    write_config(config, run)
    rows = np.ones((122, 16), np.float32)
    about = {"feature_fps": 2.0, "clip_fingerprint": "two"}
    records = [(vid, rows, about) for vid in ("film_a", "film_b", "film_c")]
    write_features(tmp_path / "other", records, store_format="npy")
    words = flags(tiny | {"features": str(tmp_path / "other"), "dense": str(run)}, out)
    assert predict_windows.main(words) == 2
    assert "are of CLIP two" in capsys.readouterr().err and not out.exists()


def test_the_released_log_goes_on_after_a_torn_line(tiny, tmp_path, capsys):
    words = ["--convention", "released"]
    assert predict_windows.main(flags(tiny, tmp_path / "whole", *words)) == 0
    data = (tmp_path / "whole" / "predictions_streaming_0.txt").read_bytes()
    lines = data.splitlines(keepends=True)
    for cut in (1, 17, len(lines[3]) - 1, len(lines[3])):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        log = folder / "predictions_streaming_0.txt"
        log.write_bytes(b"".join(lines[:3]) + lines[3][:cut])
        assert predict_windows.main(flags(tiny, folder, *words)) == 0
        assert log.read_bytes() == data
    capsys.readouterr()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shards_end_with_their_parent(tiny, tmp_path, number):
    command = [sys.executable, str(ROOT / "revisionllm" / "eval" / "predict_windows.py")]
    command += flags(tiny, tmp_path, "--num_shards", "2")
    parent = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        children = [int(pid) for pid in listed]
        time.sleep(0.01)
    assert len(children) == 2
    os.kill(parent.pid, number)
    assert parent.wait(60) in (143, 130)
    for pid in children:
        assert not Path(f"/proc/{pid}").exists()


def test_films_with_bad_rows_fail_with_the_reason(tiny, tmp_path, capsys):
    import shutil

    import numpy as np

    features = tmp_path / "features"
    shutil.copytree(tiny["features"], features)
    rows = np.load(features / "film_a.npy")
    rows[11] = np.nan
    np.save(features / "film_a.npy", rows)
    predict_windows.main(flags(tiny | {"features": str(features)}, tmp_path / "out"))
    found = read_predictions(tmp_path / "out" / "predictions.jsonl")
    reasons = {p.reason for p in found if p.vid == "film_a"}
    assert len(reasons) == 1 and "not finite" in reasons.pop()
    assert all(p.status == "ok" for p in found if p.vid != "film_a")
    capsys.readouterr()


def test_when_all_fail_the_run_fails(tiny, tmp_path, capsys):
    """Zeros in a table are no result; each reason is told once, with a count."""
    annotations = json.loads(Path(tiny["data_path"]).read_text())
    for number, record in enumerate(annotations.values()):
        record["movie"] = f"no_film_{number % 2}"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(annotations))
    assert predict_windows.main(flags(tiny | {"data_path": str(changed)}, tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert "all 10 queries failed" in err
    assert err.count("failed: 5 queries such as") == 2


def test_what_failed_is_asked_again_unless_kept(tiny, tmp_path, capsys):
    import shutil

    features = tmp_path / "features"
    shutil.copytree(tiny["features"], features)
    (features / "film_a.npy").rename(tmp_path / "aside.npy")
    words = flags(tiny | {"features": str(features)}, tmp_path / "out")
    assert predict_windows.main(words) == 0
    failed = [p for p in read_predictions(tmp_path / "out" / "predictions.jsonl") if p.reason]
    assert {p.vid for p in failed} == {"film_a"}
    (tmp_path / "aside.npy").rename(features / "film_a.npy")
    assert predict_windows.main([*words, "--keep_failed"]) == 0
    found = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert sum(p.status == "failed" for p in found) == len(failed)
    assert predict_windows.main(words) == 0
    found = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert all(p.status == "ok" for p in found)


def test_a_fault_of_ours_is_no_failed_query(tiny, tmp_path, monkeypatch):
    from revisionllm.search.searcher import Searcher

    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(Searcher, "_ask", broken)
    with pytest.raises(ValueError, match="a bug"):
        predict_windows.main(flags(tiny, tmp_path))


@pytest.mark.parametrize("change", ["rows", "rate", "duration"])
def test_features_are_held_against_the_films_length(tiny, tmp_path, capsys, change):
    import shutil

    import numpy as np

    features, data = tmp_path / "features", tmp_path / "data.json"
    shutil.copytree(tiny["features"], features)
    annotations = json.loads(Path(tiny["data_path"]).read_text())
    if change == "rows":
        np.save(features / "film_a.npy", np.load(features / "film_a.npy")[::4])
    elif change == "rate":
        (features / "film_a.json").write_text('{"feature_fps": 25.0}')
    else:
        for record in annotations.values():
            if record["movie"] == "film_a":
                record["movie_duration"] = 1e9
    data.write_text(json.dumps(annotations))
    words = flags(tiny | {"features": str(features), "data_path": str(data)}, tmp_path / "out")
    assert predict_windows.main(words) == 0
    found = read_predictions(tmp_path / "out" / "predictions.jsonl")
    reasons = {p.reason for p in found if p.vid == "film_a"}
    assert len(reasons) == 1 and "is the rate right" in reasons.pop()
    assert all(p.status == "ok" for p in found if p.vid != "film_a")


def test_more_segments_than_a_run_was_trained_on(tiny, tmp_path, capsys):
    from revisionllm.eval import predict_segments

    words = flags(tiny, tmp_path / "out", "--num_segments", "200", run="long")
    assert predict_segments.main(words) == 2
    assert "was trained on 100 segments in a row, not 200" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    words = flags(tiny, tmp_path / "out", "--num_segments", "9", run="long")
    assert predict_segments.main(words) == 0
    assert "was trained on 100 segments in a row, not 9" in capsys.readouterr().err
