"""Numbers, devices and file names that no command takes, in one line each."""

from __future__ import annotations

import pytest

from revisionllm.cli import main
from revisionllm.options import RANGES, Parser, Range, problems


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_k": 0}, "--top_k must be at least 1, is 0"),
        ({"threshold": float("nan")}, "--threshold must be a finite number, is nan"),
        ({"nms_iou": 2.0}, "--nms_iou must be in 0..1, is 2"),
        ({"budget_mb": -5}, "--budget_mb must be at least 1, is -5"),
        ({"refine": -1}, "--refine must be 0 or more, is -1"),
        ({"limit": -1}, "--limit must be at least 1"),
        ({"queries_per_batch": 0}, "--queries_per_batch must be at least 1"),
        ({"num_shards": -1}, "--num_shards must be"),
        ({"keep": float("nan")}, "--keep must be a finite number"),
        ({"zooms": [4, 0]}, "--zooms must be"),
        ({"window_s": float("inf")}, "--window_s must be a finite number"),
        ({"top_k": 10**400}, "--top_k must be at least 1, is 10000000000000000..."),
        ({"device": "xyz"}, "--device 'xyz' is none of auto"),
        ({"device": "cuda:x"}, "--device"),
        ({"unheard_of": float("nan")}, "--unheard_of must be a finite number"),
    ],
)
def test_what_is_out_of_range(values, words):
    (found,) = problems(values)
    assert found.startswith(words)


def test_what_is_in_range():
    fine = {"top_k": 1, "threshold": 0.0, "nms_iou": 1.0, "keep": 1e-3, "device": "cuda:7"}
    assert problems(fine | {"skip_bad": True, "limit": None, "data_path": ["a.json"]}) == []


@pytest.mark.parametrize("name", sorted(RANGES))
def test_no_range_takes_nonsense(name):
    for value in (float("nan"), float("inf"), -1e300, -1):
        assert RANGES[name].problem(value)


def test_ends_of_a_range():
    assert Range(0, 1, below=True).problem(1.0) and not Range(0, 1).problem(1.0)
    assert Range(0, above=True).problem(0) and not Range(0).problem(0)


COMMANDS = [
    ["find", "film.mp4", "a dog", "--top-k", "0"],
    ["find", "film.mp4", "a dog", "--keep", "nan"],
    ["find", "film.mp4", "a dog", "--threshold", "2"],
    ["find", "film.mp4", "a dog", "--device", "xyz"],
    ["demo", "--minutes", "-1"],
    ["demo", "--seed", "-1"],
    ["features", "extract", "a.mp4", "--out", "x", "--feature_fps", "nan"],
    ["eval", "run", "--queries_per_batch", "0"],
    ["eval", "run", "--num_shards", "-1"],
    ["eval", "score", "p.jsonl", "--resamples", "-1"],
    ["eval", "calibrate", "p.jsonl", "--checkpoint", "x", "--iou", "nan"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_in_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "error: --" in captured.err and not captured.out
    assert not list(tmp_path.iterdir())


def test_a_name_that_starts_with_a_dash(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.mp4").write_bytes(b"x")
    with pytest.raises(SystemExit) as stopped:
        main(["find", "-dash.mp4", "a dog"])
    assert stopped.value.code == 2
    assert "put -- before file names" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("revisionllm 0.")


def test_sub_parsers_are_of_the_same_kind():
    commands = Parser().add_subparsers()
    assert isinstance(commands.add_parser("x"), Parser)
