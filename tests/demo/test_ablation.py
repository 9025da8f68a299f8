"""The ablation's real command on tiny films: tables, plots, and that answers are asked once."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from revisionllm.demo import ablation
from revisionllm.demo.benchmark import fit_calibration
from revisionllm.demo.evaluation.ablation_tables import error_kind
from revisionllm.demo.evaluation.window_table import KEPT, TRUE, _changed, changed_sentences
from revisionllm.demo.world.language import Description, FactIndex, full_description
from revisionllm.demo.world.plans import HELD_OUT_PAIRS, plan_film
from revisionllm.grounding.levels import Level, Moment, Question, SpanCandidate, WindowAnswer
from revisionllm.grounding.windows import Window
from revisionllm.records.films import Film, Query
from revisionllm.records.predictions import Prediction
from revisionllm.search.kept_answers import KeptAnswers, MemoEngine


def test_tables_and_plots(tmp_path, capsys):
    small = ["--films", "1", "--val_films", "1", "--minutes", "8"]
    small += ["--present", "4", "--absent", "2", "--device", "cpu"]
    folders = ["--cache", str(tmp_path / "features"), "--out", str(tmp_path / "out")]
    assert ablation.main([*small, *folders]) == 0
    printed = capsys.readouterr().out
    written = sorted((tmp_path / "out").glob("*.json"))
    assert len(written) == len(ablation.TABLES)
    for path in written:
        assert path.with_suffix(".png").stat().st_size > 1000
        assert path.with_suffix(".md").read_text() in printed
    kinds = json.loads((tmp_path / "out" / "errors_by_kind.json").read_text())
    assert sum(line["share"] for line in kinds[:-1]) == pytest.approx(100)
    told = json.loads((tmp_path / "out" / "single_windows.json").read_text())
    assert told[0]["method"] == "true" and told[0]["asked"] > 10


def test_a_missing_run_is_one_line(tmp_path, capsys):
    assert ablation.main(["--checkpoint", str(tmp_path / "none")]) == 2
    assert "no run at" in capsys.readouterr().err


DENSE = Level("dense", "dense", 1.0, 1.0)
FILM = Film("f", np.zeros((3, 2)), 1.0, 3.0, key="f")
QUERIES = [Query("1", "a"), Query("2", "b")]


def test_nothing_is_asked_twice():
    asked = []

    def answer(level, questions, film, queries):
        asked.extend(questions)
        return [
            WindowAnswer(q.window.index, 0.0, 1.0, queries[q.query].sentence, (), 0.5)
            for q in questions
        ]

    engine = MemoEngine(SimpleNamespace(answer=answer, model=None, cost=None), {})
    windows = [Window(i, float(i), i + 1.0) for i in range(3)]
    first = [Question(0, (w,)) for w in windows[:2]]
    assert len(engine.answer(DENSE, first, FILM, QUERIES)) == 2
    again = [Question(0, (w,)) for w in windows] + [Question(1, (windows[0],))]
    answers = engine.answer(DENSE, again, FILM, QUERIES)
    assert [a.answer for a in answers] == ["a", "a", "a", "b"]
    assert [(q.query, q.window.index) for q in asked] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_answers_on_disk_are_asked_for_once(tmp_path, monkeypatch, capsys):
    small = ["--tables", "confidence", "--films", "1", "--val_films", "1", "--minutes", "4"]
    small += ["--present", "2", "--absent", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    small += ["--cache", str(tmp_path / "features"), "--answers", str(tmp_path / "answers")]
    assert ablation.main(small) == 0
    table = (tmp_path / "out" / "confidence.json").read_bytes()
    (tmp_path / "out" / "confidence.json").unlink()

    def asked(*_args, **_options):
        raise AssertionError("asked again")

    monkeypatch.setattr("revisionllm.engine.dense.DenseEngine.answer", asked)
    assert ablation.main(small) == 0
    assert (tmp_path / "out" / "confidence.json").read_bytes() == table
    [folder] = (tmp_path / "answers").iterdir()
    (folder / "torn.jsonl").write_text('{"key": "1')
    capsys.readouterr()
    assert ablation.main(small) == 2
    assert "torn.jsonl:1: not valid JSON" in capsys.readouterr().err


class Run(torch.nn.Linear):
    def __init__(self, value: float, config: str) -> None:
        super().__init__(1, 1)
        torch.nn.init.constant_(self.weight, value)
        torch.nn.init.constant_(self.bias, 0.0)
        self.config = config


def test_kept_answers_are_those_given_and_of_these_weights_alone(tmp_path):
    window = Window(3, 0.1, 12.3)
    key = "film", "a red circle jumps", (window,), 1, (("narrow", True),)
    spans = SpanCandidate(1 / 3, 2.5, 0.7), SpanCandidate(2.0, 9.1)
    answer = WindowAnswer(3, 0.1, 12.3, "From 01 to 02.", spans, 0.123456789, 1e-9)
    KeptAnswers(tmp_path, Run(1.0, "dense"), "clip").update({key: answer})
    again = KeptAnswers(tmp_path, Run(1.0, "dense"), "clip")
    assert key in again and again[key] == answer
    assert (*key[:3], 2, key[4]) not in again
    assert key not in KeptAnswers(tmp_path, Run(2.0, "dense"), "clip")
    assert key not in KeptAnswers(tmp_path, Run(1.0, "sparse"), "clip")
    assert key not in KeptAnswers(tmp_path, Run(1.0, "dense"), "another clip")


def prediction(spans, gt, presences=None):
    presences = presences or [0.5] * len(spans)
    moments = [
        Moment(start_s, end_s, p, {"presence": p, "entropy": 0.1}, "dense")
        for (start_s, end_s), p in zip(spans, presences, strict=True)
    ]
    return Prediction("q", "v", "a", 900.0, True, moments, gt=gt)


def test_sentences_of_single_windows():
    """Of each kind what it says is wrong is wrong, and is or is not somebody else's in the shot."""
    plan = plan_film(7, 900.0, "test")
    index, rng, kinds, firsts = FactIndex(plan), np.random.default_rng(0), set(), set()
    columns = {"size": 0, "colour": 1, "shape": 2}
    for fact in plan.facts:
        true_one = full_description(fact)
        for kind, wrong in _changed(plan, fact, true_one, rng):
            kinds.add(kind)
            name, *where = kind.removeprefix("wrong ").split(", ")
            if name in columns:
                column = columns[name]
                changed = [i for i in range(3) if wrong.actor[i] != true_one.actor[i]]
                assert changed == [column] and replace(wrong, actor=true_one.actor) == true_one
                shot = plan.shot_at((fact.start_s + fact.end_s) / 2)
                there = [(a.size, a.colour, a.shape)[column] for a in shot.actors]
                assert (wrong.actor[column] in there) == (where == ["in the shot"])
            else:
                same = {k: v for k, v in vars(wrong).items() if k != name}
                assert same == {k: v for k, v in vars(true_one).items() if k != name}
        shown = {f.event_id for f in plan.facts}
        asked = list(changed_sentences(index, fact, shown, rng))
        if asked:
            firsts.add(asked[0][0])
            assert all(kind.startswith("wrong") for kind, _ in asked[1:])
            cast = [a for a in (fact.actor, fact.other) if a]
            kept = not HELD_OUT_PAIRS.isdisjoint((a.colour, a.shape) for a in cast)
            assert kept or asked[0][0] == TRUE
    assert len(kinds) == 9 and firsts == {TRUE, KEPT}


def test_error_kinds():
    facts = plan_film(2, 900.0, "test").facts
    one = facts[0]
    actor = (one.actor.size, one.actor.colour, one.actor.shape)
    asked = Description(one.action, actor)
    truth = [(one.start_s, one.end_s)]

    def kind(span):
        return error_kind(prediction([span] if span else [], truth), facts, asked)

    assert kind(truth[0]) == "right"
    assert kind((one.end_s - 0.1, one.end_s + 9)) == "boundary"
    far = [f for f in facts if f.start_s > one.end_s + 1]
    same = next(f for f in far if f.actor == one.actor and f.action != one.action)
    assert kind((same.start_s, same.end_s)) == "wrong action"
    alone = [f for f in far if sum(g.event_id == f.event_id for g in facts) == 1]
    other = next(f for f in alone if f.actor != one.actor and f.action != one.action)
    assert kind((other.start_s, other.end_s)) == "several wrong"
    assert kind(None) == kind((3000.0, 3001.0)) == "nothing there"


def test_calibration_says_whether_a_sentence_happens():
    """Where presence tells what happens, 0.5 separates it; without signal it is even odds."""
    rng = np.random.default_rng(0)
    told, untold = [], []
    for number in range(200):
        happens = number % 4 > 0  # three in four
        right = [(10.0, 20.0)] if happens else []
        best = rng.uniform(0.6, 1) if happens else rng.uniform(0, 0.4)
        told.append(prediction([(10, 20), (50, 60)], right, [best, best / 3]))
        untold.append(prediction([(10, 20), (50, 60)], right, [0.5, 0.1]))
    fitted = fit_calibration(told, ("presence",))
    scores = [fitted.confidence({"presence": p.moments[0].parts["presence"]}) for p in told]
    assert all((s > 0.5) == bool(p.gt) for s, p in zip(scores, told, strict=True))
    flat = fit_calibration(untold, ("presence",))
    assert flat.confidence({"presence": 0.5}) == pytest.approx(0.5, abs=0.02)
