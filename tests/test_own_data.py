"""docs/own-data.md at toy size: its table, its recipe and its commands, from films to scores."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from revisionllm.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
DEMO = ROOT / "checkpoints" / "demo"
# what makes the page's sizes toys
TOY = {
    "window_s = 125.0": "window_s = 30.0",
    "frames_per_window = 250": "frames_per_window = 20",
    "num_segments = 100": "num_segments = 8",
}
FEW = "--max_steps 2 --global_batch_size 4 --per_device_batch_size 4 --num_workers 0 --device cpu"
FEW += " --lora_rank 2"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Films of the demo world under the page's names, and tables of what happens in them."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film

    folder = tmp_path_factory.mktemp("own")
    (folder / "films").mkdir()
    tables = ("train.csv", "val.csv", "test.csv")
    for name, seed, table in zip(("holiday", "meeting", "wedding"), (3, 5, 4), tables, strict=True):
        plan = plan_film(seed, 100.0, "train")
        write_film(plan, folder / "films" / f"{name}.mp4")
        with (folder / table).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["video", "start", "end", "sentence"])
            for sentence in film_sentences(plan, 5, 2):
                writer.writerow([f"{name}.mp4", *(sentence.span_s or ("", "")), sentence.sentence])
    for table in tables[:2]:
        rows = (folder / table).read_text().splitlines()
        (folder / table).write_text("\n".join(row for row in rows if ",,," not in row) + "\n")
    recipe = blocks("toml")[0].replace('"CLIP"', f'"{DEMO / "clip"}"')
    recipe = recipe.replace('"BASE"', f'"{DEMO / "base"}"')
    for real, toy in TOY.items():
        assert real in recipe
        recipe = recipe.replace(real, toy)
    (folder / "my.toml").write_text(recipe)
    return folder


def run_lines(place: Path, text: str) -> str:
    """What the lines of a block print; each must work."""
    printed = ""
    for line in text.splitlines():
        command = line.replace("--clip CLIP", f"--clip {DEMO / 'clip'}")
        command = command.replace("--recipe my.toml", f"--recipe my.toml {FEW}")
        command = re.sub(r"^revisionllm ", f"{sys.executable} -m revisionllm.cli ", command)
        command = re.sub(r"^python ", f"{sys.executable} ", command)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        printed += done.stdout
    return printed


def test_the_page_from_films_to_scores(place):
    features, training, results = blocks("sh")
    run_lines(place, features)
    assert (place / "features" / "wedding.npy").is_file()
    told = run_lines(place, training)
    for stage in ("dense", "sparse", "long"):
        assert f"{stage}: 1 films, 5 annotations" in told
    for run in ("my_dense", "my_sparse", "my_long_8"):
        assert (place / "runs" / run / "config.json").is_file()
        assert (place / "runs" / run / "best" / "config.json").is_file()
    config = json.loads((place / "runs" / "my_long_8" / "config.json").read_text())
    assert (config["num_segments"], config["prompt_template"]) == (8, "vicuna_v1")
    assert "R1@0.5" in run_lines(place, results.replace("my_long_100", "my_long_8"))
    assert (place / "view.html").is_file() and (place / "score" / "report.json").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[all]\nwindow_z = 3\n[dense]\n", "window_z is no argument, did you mean window_s?"),
        ("[all]\nwindow_s = 'long'\n[dense]\n", "window_s is 'long', not float"),
        ("[densse]\n", "[densse] is no stage, did you mean dense?"),
        ("[dense\n", "recipe"),
        ("[all]\nseed = 1\n", "has no stage"),
        ("[long]\nadapter_output = 'frames'\n", "adapter_output 'frames' is not one of"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, capsys, change, said):
    recipe = tmp_path / "my.toml"
    recipe.write_text(change)
    for command in (["data", "check", str(recipe)], ["train", "--recipe", str(recipe)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error


def test_everything_wrong_is_told_at_once(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("video,start,end,sentence\nf.mp4,1,2,a dog\nf.mp4,9,2,a cat\n")
    (tmp_path / "my.toml").write_text(
        "[all]\ndata_path = ['a.csv']\nfeatures = 'none'\nwindow_s = 20.0\n"
        "frames_per_window = 20\nfeature_fps = 2.0\nbase = 'missing/base'\n[dense]\n[sparse]\n"
    )
    assert main(["data", "check", str(tmp_path / "my.toml")]) == 2
    told = capsys.readouterr().err
    for what in ("dense: --features", "sparse: --text_features is needed", "sparse: --features"):
        assert what in told
    assert "no recipe" in _error(main, ["data", "check", "nothing.toml"], capsys)
    assert "has no stage" in _error(main, ["train", "--recipe", "mad", "--stages", "dens"], capsys)


def _error(run, command, capsys) -> str:
    assert run(command) == 2
    return capsys.readouterr().err
