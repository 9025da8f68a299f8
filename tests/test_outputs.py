"""What is written never takes the place of an input, or of what others made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revisionllm.cli import main
from revisionllm.data.mad import mad_to_activitynet
from revisionllm.errors import UserError
from revisionllm.files import (
    MADE_BY,
    claim_output,
    is_ours,
    locked,
    remove_stale,
    temporary_path,
    write_json,
    write_noted,
)

MAD = {
    "q0": {"movie": "m", "sentence": "A dog.", "timestamps": [1.0, 2.0], "movie_duration": 9.0},
}


def test_an_output_is_no_input_by_any_name(tmp_path):
    source = tmp_path / "film.mp4"
    source.write_bytes(b"film")
    (tmp_path / "link.mp4").symlink_to(source)
    os.link(source, tmp_path / "hard.mp4")
    for name in ("film.mp4", "link.mp4", "hard.mp4"):
        with pytest.raises(UserError, match="is read by this command"):
            claim_output(tmp_path / name, inputs=[source], overwrite=True)
    claim_output(tmp_path / "other.mp4", inputs=[source, None])


def test_what_others_made_stays_unless_asked(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="--overwrite"):
        claim_output(path)
    claim_output(path, overwrite=True)
    path.write_text(f'<meta name="generator" content="{MADE_BY}">')
    claim_output(path)
    with pytest.raises(UserError, match="folder"):
        claim_output(tmp_path, overwrite=True)


def test_a_note_vouches_for_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_noted(path, "{}")
    assert is_ours(path)
    path.write_text('{"mine": 1}')
    assert not is_ours(path)


def test_find_does_not_replace_the_film(tmp_path, capsys):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"precious")
    assert main(["find", str(film), "a dog", "--view", str(film)]) == 2
    assert film.read_bytes() == b"precious"
    assert "is read by this command" in capsys.readouterr().err
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert main(["find", str(film), "a dog", "--view", str(page)]) == 2
    assert page.read_text() == "mine" and "--overwrite" in capsys.readouterr().err


def test_converters_keep_their_source(tmp_path, capsys):
    source = tmp_path / "MAD_train.json"
    source.write_text(json.dumps(MAD))
    words = ["--annotations", str(source), "--out", str(source)]
    assert mad_to_activitynet.main(words) == 2
    assert mad_to_activitynet.main([*words, "--overwrite"]) == 2
    assert json.loads(source.read_text()) == MAD
    out = tmp_path / "out.json"
    words = ["--annotations", str(source), "--out", str(out)]
    assert mad_to_activitynet.main(words) == 0
    first = out.read_bytes()
    assert MADE_BY in json.loads(first)[0]["made_by"]
    assert mad_to_activitynet.main(words) == 0 and out.read_bytes() == first  # its own
    out.write_text("[]")
    assert mad_to_activitynet.main(words) == 2 and out.read_text() == "[]"
    assert mad_to_activitynet.main([*words, "--overwrite"]) == 0
    capsys.readouterr()


def test_temporaries_of_killed_runs_go(tmp_path):
    path = tmp_path / "a.npy"
    own = temporary_path(path)
    dead = own.with_name(own.name.replace(f"-{os.getpid()}.", "-999999999."))
    older = tmp_path / ".a.npy.999999998.tmp"
    foreign = tmp_path / f".a.npy.otherhost-{os.getpid()}.tmp"
    alive = own.with_name(own.name.replace(f"-{os.getpid()}.", "-1."))
    others = tmp_path / ".b.npy.999999998.tmp"
    for name in (dead, older, foreign, alive, others):
        name.write_bytes(b"x")
    remove_stale(path)
    assert sorted(tmp_path.iterdir()) == sorted([foreign, alive, others])


def test_a_lock_is_held_by_one(tmp_path):
    code = (
        "import sys; from revisionllm.files import UserError, locked\n"
        "try:\n"
        "    with locked(sys.argv[1], 'trains here'): pass\n"
        "except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with locked(tmp_path / ".lock", "trains here"):
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        assert second.stdout == "another process trains here; run this again when it is done\n"
    assert not (tmp_path / ".lock").exists()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_a_run_can_be_written_without_git(tmp_path, monkeypatch):
    from revisionllm.model.loading import provenance

    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git_commit"] is None


def test_an_installed_wheel_brings_its_weights(tmp_path):
    """The build step copies them into the package; nothing is downloaded or installed here."""
    root = Path(__file__).resolve().parents[1]
    build = ["setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    build += ["egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run([sys.executable, *build], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "from revisionllm.grounder import DEFAULT_CHECKPOINT as c; print(c, c.is_dir())"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[0] = {str(tmp_path / 'lib')!r}\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    place = tmp_path / "lib" / "revisionllm" / "weights" / "demo" / "dense"
    assert found.stdout.split() == [str(place), "True"], found.stderr
    assert (place / "config.json").is_file()


def test_json_says_who_made_it(tmp_path):
    write_json(tmp_path / "a.json", {"made_by": MADE_BY})
    assert is_ours(tmp_path / "a.json") and not is_ours(tmp_path / "none.json")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_says(tmp_path, mask):
    code = (
        "import os, sys, torch; os.umask(int(sys.argv[2]))\n"
        "from revisionllm.model.tensors import write_tensors\n"
        "write_tensors({'x': torch.ones(2)}, sys.argv[1])\n"
    )
    path = tmp_path / "a.safetensors"
    subprocess.run([sys.executable, "-c", code, str(path), str(mask)], check=True)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
