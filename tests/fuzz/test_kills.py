"""Long commands, killed again and again at any moment, end with the bytes of an undisturbed run.

200 kills over extraction, conversion, training and prediction: about a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

KILLS = 25  # a command
COMMAND = [sys.executable, "-m", "revisionllm.cli"]


def start(command: list[str]) -> subprocess.Popen:
    quiet = subprocess.DEVNULL
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; of predictions, all but what they cost, which a kill makes more."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".jsonl":
                rows = sorted(map(without_cost, data.splitlines()))
                data = b"\n".join(rows)
            found[path.relative_to(folder).as_posix()] = data
    return found


def without_cost(line: bytes) -> bytes:
    record = json.loads(line)
    record.pop("cost", None)
    return json.dumps(record, sort_keys=True).encode()


def campaign(
    make: Callable[[Path], list[str]], tmp_path: Path, compared: Callable[[Path], dict]
) -> None:
    """Kill, start again, until so many kills hit a running command; then let it finish."""
    whole = tmp_path / "whole"
    started = time.monotonic()
    assert start(make(whole)).wait() == 0
    seconds = time.monotonic() - started
    wanted = compared(whole)
    rng = np.random.default_rng(0)
    kills, round_number = 0, 0
    while kills < KILLS:
        round_number += 1
        assert round_number < 10 * KILLS
        place = tmp_path / f"killed{round_number}"
        for _ in range(12):  # a place is finished after a few kills at most
            process = start(make(place))
            # late kills find more to break than those during the imports
            time.sleep(float(seconds * rng.beta(3, 1.5)))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            if process.wait() == 0:
                break
        else:
            assert start(make(place)).wait() == 0
        assert compared(place) == wanted
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(plan_film(77, 120.0, "test"), path)
    return path


@pytest.mark.slow
def test_extraction(film, tmp_path):
    clip = ROOT / "checkpoints" / "demo" / "clip"
    flags = ["--clip", str(clip), "--batch_size", "16", "--device", "cpu"]
    campaign(
        lambda out: [*COMMAND, "features", "extract", str(film), "--out", str(out), *flags],
        tmp_path,
        contents,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    from revisionllm.data.stores.feature_writers import write_features

    folder = tmp_path_factory.mktemp("store") / "features"
    rng = np.random.default_rng(0)
    records = (
        (f"film{i:02d}", rng.standard_normal((4000, 256)).astype(np.float32), {"feature_fps": 5.0})
        for i in range(60)
    )
    write_features(folder, records, store_format="npy")
    return folder


def read_all(path: Path) -> dict[str, bytes]:
    from revisionllm.data.stores.feature_store import open_features

    found = open_features(path)
    left = [p.name for p in path.parent.iterdir() if p.name.startswith(f".{path.name}")]
    left += [p.name for p in path.iterdir() if p.name.startswith(".")] if path.is_dir() else []
    assert not left
    return {key: found.read(key).tobytes() for key in list(found.keys())}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["npy", "a.h5", "a.lmdb"])
def test_conversion(store, tmp_path, name):
    def make(place: Path) -> list[str]:
        place.mkdir(exist_ok=True)
        out = place / name
        note = out / ".converting.json"
        if out.exists() and not note.exists() and (name != "npy" or list(out.glob("*.npy"))):
            return [sys.executable, "-c", ""]  # it was finished before the kill
        return [*COMMAND, "features", "convert", str(store), str(out), "--dtype", "float16"]

    def compared(place: Path) -> dict[str, bytes]:
        return read_all(place / name)

    campaign(make, tmp_path, compared)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["windows", "segments"])
def test_prediction(tmp_path, stage):
    from tiny_evaluation import write_evaluation

    tiny = write_evaluation(tmp_path / "evaluation")
    script = ROOT / "revisionllm" / "eval" / f"predict_{stage}.py"
    run = {"windows": "dense", "segments": "long"}[stage]
    shared = {name: tiny[name] for name in ("data_path", "features", "text_features")}
    values = {"checkpoint": tiny[run], "device": "cpu", "queries_per_batch": "2", **shared}
    flags = [word for name, value in values.items() for word in (f"--{name}", value)]
    campaign(
        lambda out: [sys.executable, str(script), *flags, "--output", str(out)], tmp_path, contents
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_training(tmp_path, stage):
    from tiny_training import flags, write_start, write_world

    world = tmp_path / "world"
    write_world(world)
    write_start(world)
    script = str(ROOT / "revisionllm" / "train" / "train.py")
    if stage == "sparse":
        assert start([sys.executable, script, *flags(world, "dense")]).wait() == 0
    changes = {"max_steps": 60, "save_steps": 5}

    def compared(run: Path) -> dict[str, bytes]:
        names = ["adapter.safetensors"] if stage == "sparse" else [
            "lora/adapter_model.safetensors"
        ]  # fmt: skip
        return {name: (run / name).read_bytes() for name in names}

    campaign(
        lambda out: [sys.executable, script, *flags(world, stage, output_dir=out, **changes)],
        tmp_path,
        compared,
    )
