"""Which checkpoint is complete: the manifest decides, nothing is deleted."""

from __future__ import annotations

import logging

from revisionllm.train import checkpoints


def make(run, step, *, finished=True):
    folder = run / f"checkpoint-{step}"
    (folder / "global").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"x" * step)
    (folder / "global" / "optimizer.bin").write_bytes(b"y" * step)
    if finished:
        checkpoints.complete(folder, total_steps=9)
    return folder


def test_newest_complete(tmp_path, caplog):
    make(tmp_path, 2)
    make(tmp_path, 10)
    make(tmp_path, 12, finished=False)
    truncated = make(tmp_path, 14)
    (truncated / "global" / "optimizer.bin").write_bytes(b"y")
    (make(tmp_path, 16) / "weights.bin").unlink()
    (make(tmp_path, 18) / "complete.json").write_text("{")
    (tmp_path / "checkpoint-20.incomplete-1").mkdir()
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest_complete(tmp_path)
    assert (found.step, found.facts) == (10, {"total_steps": 9})
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "complete.json cannot be read",
        "weights.bin is missing",
        "global/optimizer.bin has 1 bytes instead of 14",
        "no complete.json",
    ]
    assert len(list(tmp_path.iterdir())) == 7


def test_nothing_there(tmp_path):
    assert checkpoints.newest_complete(tmp_path) is None


def test_an_incomplete_one_is_renamed_not_deleted(tmp_path):
    for number in (1, 2):
        folder = make(tmp_path, 4, finished=False)
        checkpoints.set_aside(folder)
        assert not folder.exists()
        assert (tmp_path / f"checkpoint-4.incomplete-{number}" / "weights.bin").exists()
