"""Which video: MSR-VTT's own files through converter, extractors and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_evaluation import BASE, tiny_llm, write_run
from tiny_films import write_film

from revisionllm.cli import main
from revisionllm.data.feature_extraction import msrvtt_clip_text_extractor
from revisionllm.data.retrieval.msrvtt import (
    msrvtt_clip_extractor,
    msrvtt_retrieval_to_activitynet,
)
from revisionllm.data.stores.feature_store import open_features
from revisionllm.data.stores.feature_writers import write_features, write_lmdb
from revisionllm.eval.videos import _groups, rank_of, retrieval_figures
from revisionllm.formats.annotations import read_annotations
from revisionllm.grounder import DEMO_WEIGHTS

D, NUM_VIDEOS = 16, 7


def msrvtt(num_videos: int = 3) -> dict:
    """MSR-VTT's JSON: two sentences a video, the last video of split test."""
    videos = [
        {
            "category": 9,
            "url": f"https://www.youtube.com/watch?v={number}",
            "video_id": f"video{number}",
            "start time": 137.72,
            "end time": 149.44,
            "split": "test" if number == num_videos - 1 else "train",
            "id": number,
        }
        for number in range(num_videos)
    ]
    sentences = [
        {"caption": f"a man is doing thing {number}", "video_id": f"video{number // 2}"}
        | {"sen_id": number}
        for number in range(2 * num_videos)
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder to stand in, as the repository's root, with MSR-VTT's files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/msrvtt"
    folder.mkdir(parents=True)
    (folder / "MSRVTT_data.json").write_text(json.dumps(msrvtt()))
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr0,video0,a person is connecting something\n"
        'ret1,msr1,video1,"a man, and his dog"\n'
    )
    return folder


def test_own_files_to_training_and_evaluation(place, capsys) -> None:
    assert msrvtt_retrieval_to_activitynet.main([]) == 0
    test = json.loads((place / "msrvtt_test.json").read_text())
    assert test == {
        "ret0": {
            "movie": "video0",
            "sentence": "a person is connecting something",
            "timestamps": [0.0, pytest.approx(11.72)],
            "movie_duration": pytest.approx(11.72),
        },
        "ret1": test["ret1"],
    }
    assert test["ret1"]["sentence"] == "a man, and his dog"
    train = read_annotations(place / "msrvtt_train.json")
    assert [a.query_id for a in train.annotations] == ["4", "5"] and not train.problems
    assert {a.video_id for a in train.annotations} == {"video2"}
    assert msrvtt_retrieval_to_activitynet.main(["--test", ""]) == 0
    assert set(json.loads((place / "msrvtt_test.json").read_text())) == {"4", "5"}
    own = read_annotations(place / "MSRVTT_data.json").annotations
    assert [a.end_s for a in own] == pytest.approx([11.72] * 6)


def test_wrong_files_are_told(place, capsys) -> None:
    table = place / "MSRVTT_JSFUSION_test.csv"
    table.write_text(table.read_text() + "ret2,msr9,video9,nobody\nret3,msr1,video1,\n")
    assert msrvtt_retrieval_to_activitynet.main([]) == 2
    error = capsys.readouterr().err
    assert "2 problems" in error and "query ret2: no video video9" in error
    assert not (place / "msrvtt_train.json").exists()
    assert msrvtt_retrieval_to_activitynet.main(["--skip_bad"]) == 0
    table.unlink()
    assert msrvtt_retrieval_to_activitynet.main([]) == 2
    assert "no test split at" in capsys.readouterr().err
    (place / "MSRVTT_data.json").write_text('{"videos": 3, "sentences": []}')
    assert msrvtt_retrieval_to_activitynet.main(["--test", ""]) == 2
    assert "'videos'" in capsys.readouterr().err
    (place / "MSRVTT_data.json").unlink()
    assert msrvtt_retrieval_to_activitynet.main([]) == 2
    assert "annotations not found" in capsys.readouterr().err


def test_by_the_encoder_from_films_on(place, capsys) -> None:
    """The demo's encoder, real films, every command of the way."""
    clip = str(DEMO_WEIGHTS / "clip")
    (place / "videos").mkdir()
    for number in range(3):
        write_film(place / "videos" / f"video{number}.mp4", list(range(0, 20)))
    assert msrvtt_retrieval_to_activitynet.main([]) == 0
    assert msrvtt_clip_extractor.main(["--clip", clip]) == 0
    assert open_features("data/msrvtt/msrvtt_clipl14_features").keys() == [
        f"video{number}" for number in range(3)
    ]
    assert msrvtt_clip_text_extractor.main(["--clip", clip]) == 0
    capsys.readouterr()
    assert main(["eval", "videos", "data/msrvtt/msrvtt_test.json", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    # both videos look the same, so that each is first and second at once
    assert figures["MedR"] == 1.5 and figures["R@1"] == 0.0 and figures["R@5"] == 100.0
    assert main(["eval", "videos", "data/msrvtt/msrvtt_test.json", "--text_features", "x"]) == 2
    assert "no text features at x" in capsys.readouterr().err


def test_ranks_and_figures() -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9])
    assert [rank_of(scores, right) for right in range(4)] == [4.0, 2.5, 2.5, 1.0]
    rng = np.random.default_rng(0)
    table = rng.standard_normal((40, 30))
    right = rng.integers(0, 30, 40)
    ranks = [rank_of(row, at) for row, at in zip(table, right, strict=True)]
    order = np.argsort(-table, axis=1)  # the naive way: where the right one stands in the order
    places = np.array([list(row).index(at) for row, at in zip(order, right, strict=True)]) + 1
    figures = retrieval_figures(ranks)
    for k in (1, 5, 10):
        assert figures[f"R@{k}"] == pytest.approx(100 * np.mean(places <= k))
    assert (figures["MedR"], figures["MnR"]) == (np.median(places), pytest.approx(places.mean()))


def test_batches_are_filled_up() -> None:
    groups = list(_groups([0, 1, 2, 3, 4], 3, 7))
    assert groups == [([0, 1, 2], 3), ([3, 4, 0], 2)]
    assert list(_groups([6], 4, 3)) == [([6, 0, 1], 1)]


@pytest.fixture
def retrieval(tmp_path) -> dict[str, str]:
    """A random long run that reads four segments at once, and seven videos."""
    import shutil

    base = tmp_path / "base"
    tiny_llm().save_pretrained(base)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(BASE / name, base / name)
    run = write_run(tmp_path / "long", base, long=True)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"num_segments": 4}))
    rng = np.random.default_rng(0)
    rows = [
        (f"v{number}", rng.standard_normal((5 + number, D)).astype(np.float32), {})
        for number in range(NUM_VIDEOS)
    ]
    write_features(tmp_path / "features", rows, store_format="npy")
    annotations, texts = {}, []
    for number in range(NUM_VIDEOS):
        annotations[f"q{number}"] = {"movie": f"v{number}", "sentence": f"a man {number}"}
        annotations[f"q{number}"] |= {"timestamps": [0.0, 9.0], "movie_duration": 9.0}
        words = rng.standard_normal((4, D)).astype(np.float32)
        mean = rows[number][1].mean(0)
        texts.append((f"q{number}", {"token_features": words, "cls_features": mean}))
    (tmp_path / "test.json").write_text(json.dumps(annotations))
    write_lmdb(tmp_path / "texts", texts)
    return {
        "words": [
            *("eval", "videos", str(tmp_path / "test.json")),
            *("--features", str(tmp_path / "features")),
            *("--text_features", str(tmp_path / "texts"), "--device", "cpu", "--json"),
        ],
        "run": str(run),
    }


def test_by_the_llm(retrieval, tmp_path, capsys) -> None:
    """Scores are first numbers' probabilities in batches of the run's number of segments; a killed
    run goes on; the encoder's best alone can be asked."""
    words, run, out = retrieval["words"], retrieval["run"], tmp_path / "ranks.jsonl"
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["R@1"] == 100.0  # each sentence is its video's mean
    assert main([*words, "--checkpoint", run]) == 2
    assert "give --output" in capsys.readouterr().err
    asked = [*words, "--checkpoint", run, "--output", str(out), "--queries_per_batch", "3"]
    assert main(asked) == 0
    figures = json.loads(capsys.readouterr().out)
    _, *rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == NUM_VIDEOS and figures["MnR"] == np.mean([row["rank"] for row in rows])
    for row in rows:
        scores = [score for _, score in row["videos"]]
        assert len(scores) == NUM_VIDEOS and all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
    # torn in the middle of its fifth line
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b'"q3"') + 3])
    assert main(asked) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == pytest.approx(figures)
    assert out.read_bytes()[:200] == whole[:200] and len(out.read_text().splitlines()) == 8
    assert main([*asked, "--candidates", "2"]) == 2
    assert "made with other files or flags" in capsys.readouterr().err
    few = [*asked, "--candidates", "2", "--output", str(tmp_path / "few.jsonl")]
    assert main(few) == 0
    for line in (tmp_path / "few.jsonl").read_text().splitlines()[1:]:
        row = json.loads(line)
        scores = [score for _, score in row["videos"]]
        assert sum(score >= 0 for score in scores) == 2
        assert row["vid"] in [vid for vid, _ in row["videos"][:2]]


def test_only_long_runs_are_asked(retrieval, tmp_path, capsys) -> None:
    out = str(tmp_path / "out.jsonl")
    dense = str(DEMO_WEIGHTS / "dense")
    assert main([*retrieval["words"], "--checkpoint", dense, "--output", out]) == 2
    assert "run of stage dense" in capsys.readouterr().err
    Path(out).unlink()
    Path(out).write_text("mine")
    words = [*retrieval["words"], "--checkpoint", retrieval["run"], "--output", out]
    assert main(words) == 2
    assert "is not of this command" in capsys.readouterr().err
    assert Path(out).read_text() == "mine"
