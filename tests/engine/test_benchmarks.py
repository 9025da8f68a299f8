"""The benchmark scripts run at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def same_threads():
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_grounding(tmp_path, capsys):
    out = tmp_path / "found.json"
    argv = ["--shape", "tiny", "--minutes", "4", "--queries", "1", "3", "--repeats", "1"]
    assert load("grounding").main([*argv, "--threads", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["engine"]) == {"1", "3"}
    for row in found["engine"].values():
        assert row["floor_ratio"] > 0 and row["tokens_per_s"] > 0
    assert found["a_s"] > 0
    assert "x floor" in capsys.readouterr().out


def test_planner_counts(tmp_path, capsys):
    assert load("planner").main(["count", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "count.json").read_text())["rows"]
    assert {row["queries"] for row in rows} == {1, 20, 640}
    totals = {(row["queries"], row["plan"]): row["total"] for row in rows}
    assert totals[1, "exhaustive"] == max(v for (q, _), v in totals.items() if q == 1)
    assert "| exhaustive |" in capsys.readouterr().out
