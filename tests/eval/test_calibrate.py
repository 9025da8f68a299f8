"""One calibration: what it asks, that it lowers the error it reports, and where it is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from revisionllm.cli import main
from revisionllm.errors import UserError
from revisionllm.eval.calibrate import best_moment_error, fit, halves_error, parts_in
from revisionllm.grounding.levels import Moment
from revisionllm.records.predictions import Prediction, write_predictions


def made(num: int, *, absent: bool) -> list[Prediction]:
    """Predictions whose best moment's part tells, with noise, whether the sentence happens."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(num):
        happens = not absent or bool(rng.random() < 0.75)
        right = happens and (absent or bool(rng.random() < 0.5))
        moments = [
            Moment(
                100.0 * rank,
                100.0 * rank + 10,
                float(rng.uniform()),
                {"log_odds": (3.0 if right and not rank else -2.0) + float(rng.normal())},
            )
            for rank in range(5)
        ]
        gt = [(0.0, 10.0)] if happens else []
        if happens and not right:
            gt = [(900.0, 910.0)]
        found.append(
            Prediction(f"q{number}", f"film{number % 6}", "q", 1000.0, True, moments, gt=gt)
        )
    return found


@pytest.mark.parametrize("absent", [True, False])
def test_the_error_falls_on_films_seen_and_unseen(absent):
    predictions = made(240, absent=absent)
    fitted = fit(predictions, ["log_odds"])
    before, after = best_moment_error(predictions, None), best_moment_error(predictions, fitted)
    assert after < 0.1 < before
    assert halves_error(predictions, parts=["log_odds"]) < 0.15


def test_half_means_as_likely_as_not_that_the_sentence_happens():
    """Three of four sentences happen; both kinds count alike."""
    predictions = made(240, absent=True)
    fitted = fit(predictions, ["log_odds"])
    best = [max(float(fitted.confidence(m.parts)) for m in p.moments) for p in predictions]
    said = np.array(best) >= 0.5
    happens = np.array([bool(p.gt) for p in predictions])
    assert said[happens].mean() > 0.85 and (~said)[~happens].mean() > 0.85


def test_parts_are_those_that_all_moments_have():
    predictions = made(4, absent=True)
    assert parts_in(predictions) == ["log_odds"]
    for moment in predictions[1].moments:
        moment.parts["entropy"] = 0.1
    assert parts_in(predictions) == ["log_odds"]
    with pytest.raises(UserError, match="have no"):
        fit(predictions, ["entropy"])


def test_an_existing_file_is_replaced_only_on_request(tmp_path, capsys):
    write_predictions(tmp_path / "p.jsonl", made(40, absent=True))
    argv = ["eval", "calibrate", str(tmp_path / "p.jsonl"), "--checkpoint", str(tmp_path)]
    assert main(argv) == 0
    assert "of them absent; log_odds" in capsys.readouterr().out
    before = (tmp_path / "calibration.json").read_text()
    assert main([*argv, "--iou", "0.9"]) == 2
    assert (tmp_path / "calibration.json").read_text() == before
    assert main([*argv, "--overwrite"]) == 0


def test_truth_of_annotations_by_film_and_sentence(tmp_path, capsys):
    """What `find --json` printed, which knows no truth, fits as predictions that know it."""
    known = made(40, absent=True)
    for number, prediction in enumerate(known):
        prediction.query = f"sentence {number}"
    unknown = [replace(prediction, gt=None) for prediction in known]
    write_predictions(tmp_path / "known.jsonl", known)
    write_predictions(tmp_path / "unknown.jsonl", unknown)
    rows = ["vid,query,start,end,duration"]
    for p in known:
        rows += [f"{p.vid},{p.query},{a},{b},1000" for a, b in p.gt or [("", "")]]
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    fitted = []
    for name in ("known", "unknown"):
        folder = tmp_path / name
        folder.mkdir()
        argv = ["eval", "calibrate", str(tmp_path / f"{name}.jsonl"), "--checkpoint", str(folder)]
        assert (
            main([*argv, *(["--gt", str(tmp_path / "truth.csv")] if name == "unknown" else [])])
            == 0
        )
        fitted.append((folder / "calibration.json").read_text())
    assert fitted[0] == fitted[1]
    (tmp_path / "truth.csv").write_text("vid,query,start,end,duration\nx,y,1,2,3\n")
    argv = ["eval", "calibrate", str(tmp_path / "unknown.jsonl"), "--checkpoint", str(tmp_path)]
    assert main([*argv, "--gt", str(tmp_path / "truth.csv")]) == 2
    assert "knows none of the predictions' sentences" in capsys.readouterr().err
