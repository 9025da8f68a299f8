"""Around the four stages on the demo world: their files, the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from revisionllm.demo import curriculum_report, training_files
from revisionllm.demo.training.dense_readout import NUM_SHOWN, PARTS, SAID, said, shown_table
from revisionllm.demo.world.language import Description
from revisionllm.demo.world.plans import COLOURS, Actor, Fact

CLIP = Path(__file__).resolve().parents[2] / "checkpoints" / "demo" / "clip"


def test_training_files_hold_what_the_trainer_reads(tmp_path):
    words = ["--films", "2", "--minutes", "3", "--sentences", "5", "--workers", "0"]
    words += [
        "--clip",
        str(CLIP),
        "--out",
        str(tmp_path / "data"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert training_files.main(words) == 0
    records = json.loads((tmp_path / "data" / "annotations.json").read_text())
    assert {record["movie"] for record in records.values()} == {"train_00002", "train_00005"}
    for film in ("train_00002", "train_00005"):
        rows = np.load(tmp_path / "data" / "features" / f"{film}.npy")
        assert len(rows) == 300  # 180 s at 5 frames a second, every third
    stamp = (tmp_path / "data" / "text_features" / "data.mdb").stat().st_mtime_ns
    assert training_files.main(words) == 0  # nothing left to do
    assert (tmp_path / "data" / "text_features" / "data.mdb").stat().st_mtime_ns == stamp


def test_report_gathers_steps_and_tables(tmp_path, capsys):
    assert curriculum_report.main(["--folder", str(tmp_path)]) == 2
    assert "train_all.sh" in capsys.readouterr().err
    for folder in ("judged", "tables", "done", "stage1_dense"):
        (tmp_path / folder).mkdir()
    (tmp_path / "judged" / "benchmark.json").write_text(json.dumps({"markdown": "| a table |"}))
    (tmp_path / "tables" / "confidence.md").write_text("### Confidence\n\n| rows |\n")
    (tmp_path / "done" / "stage1_dense").write_text("90\n")
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 2, "note": "end"}]
    (tmp_path / "stage1_dense" / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    assert curriculum_report.main(["--folder", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "| stage1_dense | 1.5 | 2.000 | - |" in page and "| clip | - | - | - |" in page
    assert "| a table |" in page and "## Confidence" in page


def test_what_a_question_says_as_classes():
    asked = Description("follow", ("big", "red", "star"), "left", (None, "blue", "ring"), "cave")
    names = list(SAID)
    classes = dict(zip(names, said(asked), strict=True))
    for name, value in {
        "action": "follow",
        "size": "big",
        "colour": "red",
        "place": "cave",
    }.items():
        assert SAID[name][classes[name]] == value
    short = dict(zip(names, said(Description("spin", (None, "red", "star"))), strict=True))
    for name in ("size", "direction", "place", "other_colour", "other_shape"):
        assert short[name] == len(SAID[name])  # not said
    assert said(None) == [-1] * len(names)


def test_what_frames_show_as_a_table():
    star = Actor("big", "red", "star")
    fact = Fact(0, "spin", star, None, None, "cave", 1.0, 2.0)
    table = shown_table([("cave", [star]), ("cave", [star]), ("cave", [])], [fact], np.arange(3.0))
    assert table.shape == (3, len(COLOURS), NUM_SHOWN) and sum(PARTS.values()) == NUM_SHOWN
    red = table[:, COLOURS.index("red")]
    assert red.sum(1).tolist() == [2, 3, 0]  # shape and size; and the action; gone and over
    assert not np.delete(table, COLOURS.index("red"), axis=1).any()


@pytest.mark.parametrize("spoken", ["yes_no", "video"])
def test_grounding_questions_in_the_words_of_other_stages(spoken):
    from revisionllm.demo.training.dense_data import DemoQuestion, in_other_words

    asked = DemoQuestion("dense", "From 05 to 12.", (5, 12), True, sentence="a red star spins")
    other = in_other_words(asked, spoken)
    assert not other.grounds and other.span is None and "a red star spins" in other.text
    assert other.answer == {"yes_no": "yes", "video": "From 5 to 12."}[spoken]
    absent = DemoQuestion("dense", "Not Present", None, True, sentence="a red star spins")
    assert in_other_words(absent, spoken).answer == {"yes_no": "no", "video": "Not Present"}[spoken]
