"""Words of another encoder than the frames': their width is the run's, and no cosine is made up."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_training import flags

from revisionllm.cli import main as revisionllm
from revisionllm.data.stores.feature_writers import write_lmdb
from revisionllm.data.stores.lmdb_records import LmdbRecords
from revisionllm.model.config import AdapterConfig, read_config
from revisionllm.train.train import main

WORDS = 24


@pytest.fixture(scope="module")
def text(world, tmp_path_factory):
    """Text features of a wider encoder for the tiny world."""
    folder = tmp_path_factory.mktemp("wide") / "text"
    rng = np.random.default_rng(3)
    keys = LmdbRecords(world / "text").keys()
    words = rng.normal(size=(len(keys), 3, WORDS)).astype(np.float32)
    rows = zip(keys, words, strict=True)
    write_lmdb(folder, ((k, {"token_features": w, "cls_features": w[0]}) for k, w in rows))
    return folder


def test_sparse_and_long_learn_from_them_and_are_searched(trained, text, tmp_path, capsys):
    sparse, long = tmp_path / "sparse", tmp_path / "long"
    assert main(flags(trained, "sparse", output_dir=sparse, text_features=text)) == 0
    assert read_config(sparse).adapter.text_width == WORDS
    start = {"init_adapter": sparse, "text_features": text}
    assert main(flags(trained, "long", output_dir=long, **start)) == 0
    words = ["eval", "run", "--checkpoint", str(trained / "start"), "--long", str(long)]
    words += [
        "--data_path",
        str(trained / "annotations.json"),
        "--features",
        str(trained / "features"),
    ]
    words += ["--text_features", str(text), "--limit", "2", "--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert revisionllm(words) == 2
    said = capsys.readouterr().err
    assert "have no cosine; give --no-cosine" in said and not (tmp_path / "out").exists()
    assert revisionllm([*words, "--no-cosine"]) == 0
    at = words.index("--text_features") + 1
    other = [*words[:at], str(trained / "text"), *words[at + 1 :]]
    assert revisionllm([*other, "--no-cosine", "--output", str(tmp_path / "other")]) == 2
    assert f"words 16 wide, the adapter of start reads {WORDS}" in capsys.readouterr().err


def test_what_does_not_fit_is_said_before_training(trained, text, tmp_path, capsys):
    sparse = flags(trained, "sparse", output_dir=tmp_path / "run", text_features=text)
    assert main([*sparse, "--reads_sentence"]) == 2
    assert "need one width, not 24 and 16" in capsys.readouterr().err
    assert main(flags(trained, "sparse", output_dir=tmp_path / "narrow")) == 0
    start = {"init_adapter": tmp_path / "narrow", "text_features": text}
    assert main(flags(trained, "long", output_dir=tmp_path / "long", **start)) == 2
    assert "words 24 wide, the adapter reads 16" in capsys.readouterr().err
    assert AdapterConfig(kind="clip", text_width=9, feature_dim=9).problems() == []
