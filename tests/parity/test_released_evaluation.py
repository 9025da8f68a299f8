"""`--convention released` against recorded runs of the released evaluation on fake films."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from model_assets import released

from revisionllm.eval.retrieval.prediction import dense_log, retrieval_batches, retrieval_log
from revisionllm.grounding import released as r
from revisionllm.records.films import Film, Query

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "eval" / "eval_loops"
INPUTS = json.loads((ASSETS / "inputs.json").read_text())


def film(name: str) -> Film:
    """The fake film that the released evaluation was run on."""
    about = INPUTS["movies"][name]
    arrays = np.load(ASSETS / "inputs.npz")
    steps = np.arange(about["n"])[:, None] * 7 + np.arange(768) + about["off"]
    rows = arrays["fbase"][steps].astype(np.float32)
    for first, last in about["bumps"]:
        rows[first : last + 1] += np.float32(0.35) * arrays["bump"]
    rows = rows.astype(np.float16)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    assert digest == INPUTS["sha256_of_float16_features"][name]
    return Film(name, rows.astype(np.float32), 5.0, about["duration"])


def query(qid: str) -> Query:
    about, arrays = INPUTS["queries"][qid], np.load(ASSETS / "inputs.npz")
    return Query(
        qid,
        about["sentence"],
        [tuple(about["timestamps"])],
        arrays[f"{qid}_tok"],
        arrays[f"{qid}_cls"],
    )


def records(tag: str) -> dict[str, dict]:
    recorded = json.loads((ASSETS / f"{tag}.json").read_text())["records"]
    return {record["query_id"]: record for record in recorded}


@pytest.mark.parametrize("qid", ["7001", "7002", "7003"])
def test_dense_log_equals_the_released_one(qid):
    wanted = records("dense_mad_multiply_b1")[qid]
    model = released("ckpt_dense")
    found = dense_log(model, film(wanted["video_id"]), query(qid), score_merge="multiply")
    assert found["answer"] == wanted["answers"]
    assert found["info"]["iou"] == wanted["info"]["iou"]
    assert found["info"]["scores"] == pytest.approx(wanted["info"]["scores"], abs=1e-4)


@pytest.mark.parametrize("qid", ["7102"])
def test_retrieval_log_equals_the_released_one(qid):
    """With the shuffles that were drawn there."""
    wanted = records("retrieval_mad_33")[qid]
    drawn = iter(wanted["randperm"])
    model = released("ckpt_stage2_cls", stage="long", question="video")
    found = retrieval_log(
        model,
        film(wanted["video_id"]),
        query(qid),
        num_segments=33,
        shuffle=lambda count: next(drawn),
    )
    assert found["answer"] == wanted["answers"]
    info, expected = found["info"], wanted["info"]
    for name in ("gt", "frames", "iou", "hierarchy_zooms"):
        assert info[name] == expected[name], name
    for name in ("mean_entropy", "max_entropy"):
        assert info[name] == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("tag, hops", [("dense_mad_multiply_b1", 2), ("retrieval_mad_33", 5)])
def test_windows_and_frames_equal_the_released_ones(tag, hops):
    arrays = np.load(ASSETS / f"{tag}.npz")
    for qid, record in records(tag).items():
        length = INPUTS["movies"][record["video_id"]]["n"]
        table = r.released_window_table(
            length, window_s=125, feature_fps=5.0, hops_per_window=hops, shift_tail=hops == 5
        )
        indices = [r.released_indices(*row, 250, length) for row in table.tolist()]
        np.testing.assert_array_equal(indices, arrays[f"{qid}_indices"])


def test_retrieval_batches_of_a_two_hour_film():
    """2,100 encodings there for 287 segments, as measured."""
    batches = retrieval_batches(287, 100, (4, 2, 1))
    assert sum(zoom * count for zoom, _, count in batches) == 2100
    assert batches[-1] == (1, 187, 100)
    assert retrieval_batches(5, 33, (1,)) == [(1, 0, 5)]


def test_films_that_do_not_fill_a_batch_lose_their_beginning():
    """Released: of n windows and a batch of c, c / 2 < n < c, the last 2n - c."""
    assert retrieval_batches(20, 33, (1,)) == [(1, 13, 7)]
    assert retrieval_batches(16, 33, (1,)) == [(1, 0, 16)]
    assert retrieval_batches(33, 33, (1,)) == [(1, 0, 33)]
    assert retrieval_batches(30, 100, (4, 2, 1)) == [
        (4, 0, 25),
        (4, 5, 25),
        (2, 20, 10),
        (1, 0, 30),
    ]


def test_score_kinds_are_made_of_the_same_parts():
    model, asked = released("ckpt_dense"), (film("M_A"), query("7001"))

    def scored(**settings) -> np.ndarray:
        found = dense_log(model, *asked, normalise=False, **settings)
        return np.array(found["info"]["scores"])

    cosines = scored(score_kind="cosine_sim")
    mean, most = scored(), scored(score_kind="max_entropy")
    assert (cosines - mean > 0).all() and (mean - most >= 0).all() and (mean != most).any()
    assert (scored(score_kind="cosine_sim", top_frames=0) != cosines).any()
