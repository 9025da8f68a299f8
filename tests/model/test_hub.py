"""Models of the hub: references, the cache that is read, what is downloaded and what is pushed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import tiny_hub
from huggingface_hub import constants
from model_assets import BASE, dense_images, released
from tiny_encoders import save_transformers

from revisionllm.cli import main
from revisionllm.errors import UserError
from revisionllm.model import hub
from revisionllm.model.config import read_config, write_config
from revisionllm.model.hub import Reference
from revisionllm.model.loading import load_model, save_run
from revisionllm.model.models_cli import wanted


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    place = tmp_path / "home" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    return place


@pytest.fixture
def served(monkeypatch):
    with tiny_hub.serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other commands switch it on
        yield served


def fill(cache, name, commit, source, branch="main"):
    """A cached repository, as `huggingface_hub` leaves it."""
    folder = cache / ("models--" + name.replace("/", "--"))
    shutil.copytree(source, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    return folder


def command(served, home, *words, token=tiny_hub.TOKEN, **more):
    """`revisionllm` in a process of its own, with this hub as its hub."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    env |= {"HF_ENDPOINT": served.url, "HF_HOME": str(home), "HOME": str(home)} | more
    if token:
        env["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "revisionllm.cli", *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_references():
    for text, meant in [
        ("hf:google/siglip2-base-patch16-224", Reference("google/siglip2-base-patch16-224")),
        ("hf:a/b@v1.0", Reference("a/b", "v1.0")),
        ("hf:a/b@v1/run/", Reference("a/b", "v1", "run")),
        ("hf:a/b/x/y.gguf", Reference("a/b", "main", "x/y.gguf")),
    ]:
        assert hub.parse(text) == meant
        assert hub.parse(str(meant)) == meant
    for text in ("hf:a", "hf:a/b@", "hf:/a/b", "hf:a/b@x/../../y", "hf:a b/c", "hf:"):
        with pytest.raises(UserError, match="not of the form"):
            hub.parse(text)


def test_the_cache_is_read_and_nothing_else(cache, tmp_path):
    assert hub.local("some/folder") == "some/folder"
    with pytest.raises(UserError, match=r"`revisionllm models get hf:a/b` downloads it"):
        hub.local("hf:a/b")
    (tmp_path / "source" / "run").mkdir(parents=True)
    (tmp_path / "source" / "run" / "config.json").write_text("{}")
    folder = fill(cache, "a/b", "0" * 40, tmp_path / "source")
    assert hub.local("hf:a/b") == str(folder / "snapshots" / ("0" * 40))
    assert hub.local(f"hf:a/b@{'0' * 40}/run").endswith("/run")
    for text, words in [("hf:a/b@other", "not in the local cache"), ("hf:a/b/no", "has no no")]:
        with pytest.raises(UserError, match=words):
            hub.local(text)
    pinned = hub.reference_to(hub.local("hf:a/b/run"))
    assert pinned == Reference("a/b", "0" * 40, "run")
    assert hub.reference_to(tmp_path) is None
    (folder / "blobs" / "abc.incomplete").write_bytes(b"")
    with pytest.raises(UserError, match="goes on with it"):
        hub.local("hf:a/b")


def test_a_name_without_prefix_is_a_path(cache, capsys):
    assert "for the hub write hf:lmsys/vicuna-7b-v1.5" in hub.missing("lmsys/vicuna-7b-v1.5")
    assert "hub" not in hub.missing("runs/a/b") and "hub" not in hub.missing("/x/y")
    assert main(["run", "export", "owner/name", "--to", str(cache)]) == 2
    assert "no run owner/name; for the hub write hf:owner/name" in capsys.readouterr().err


def test_a_config_keeps_the_reference_pinned(cache, tmp_path):
    fill(cache, "own/base", "1" * 40, BASE)
    place = hub.local("hf:own/base")
    model = released("ckpt_dense", base=place)
    save_run(model, tmp_path / "run")
    assert f'"hf:own/base@{"1" * 40}"' in (tmp_path / "run" / "config.json").read_text()
    config = read_config(tmp_path / "run")
    assert hub.local(config.base) == place
    write_config(config, tmp_path / "again")
    assert read_config(tmp_path / "again").base == config.base
    load_model(tmp_path / "run", device="cpu", dtype="float32")
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="revisionllm models get hf:own/base"):
        load_model(tmp_path / "run", device="cpu", dtype="float32")


def test_what_is_wanted_of_a_repository():
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "a.gguf"]
    assert wanted(files) == ["config.json", "model.safetensors"]
    assert wanted(files[:1] + files[2:]) == ["config.json", "pytorch_model.bin"]
    assert wanted(files, "a.gguf") == ["a.gguf"]
    assert wanted(files, "b.gguf") == []


def test_get_downloads_once_and_lists(served, tmp_path):
    save_transformers(tmp_path / "clip", "clip")
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(b"not read")
    served.add("own/clip", tmp_path / "clip")
    home = tmp_path / "home"
    done = command(served, home, "models", "get", "hf:own/clip")
    assert done.returncode == 0, done.stderr
    commit = tiny_hub.commit_id("own/clip", 0)
    place = home / "hub" / "models--own--clip" / "snapshots" / commit
    assert done.stdout == f"hf:own/clip: {place}\n"
    kept = {path.name for path in place.iterdir()}
    assert "model.safetensors" in kept and "pytorch_model.bin" not in kept
    served.asked.clear()
    assert command(served, home, "models", "get", "hf:own/clip").returncode == 0
    assert not any("resolve" in asked and asked.startswith("GET") for asked in served.asked)
    done = command(served, home, "models")
    assert "hf:own/clip" in done.stdout and "MB" in done.stdout
    # reading asks the hub nothing
    served.asked.clear()
    code = (
        "from revisionllm.model.clip import load_clip; from revisionllm.model.hub import local;"
        "print(load_clip(local('hf:own/clip'), device='cpu').fingerprint())"
    )
    env = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert served.asked == []


def test_what_the_hub_refuses_is_one_line(served, cache, monkeypatch, capsys):
    served.commits["own/secret"] = [{"config.json": b"{}"}]
    served.private.add("own/secret")
    served.commits["own/empty"] = [{"model.onnx": b""}]
    for words, token, said in [
        (("hf:own/none",), None, "hf:own/none: "),
        (("hf:own/secret",), None, "hf:own/secret: "),
        (("hf:own/secret@v9",), tiny_hub.TOKEN, "hf:own/secret@v9: "),
        (("hf:own/empty",), None, "holds no files"),
        (("own/empty",), None, "neither hf:owner/name nor clip:NAME:TAG"),
        (("clip:ViT-B-32:no_such",), None, "say which weights of ViT-B-32"),
    ]:
        monkeypatch.setenv("HF_TOKEN", token or "")
        assert main(["models", "get", *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["models", "get", "hf:own/empty"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_offline_is_said_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    away = tiny_hub.Hub()
    away.url = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    done = command(away, tmp_path, "models", "get", "hf:own/clip")
    assert done.returncode == 2 and "does not answer" in done.stderr
    assert done.stderr.count("\n") == 1 and time.monotonic() - started < 30  # imports included


def test_a_pushed_run_is_found_by_its_reference(served, tmp_path, cache):
    served.add("own/base", BASE)
    assert command(served, tmp_path / "home", "models", "get", "hf:own/base").returncode == 0
    base = hub.local("hf:own/base")
    model = released("ckpt_dense", base=base)
    run = save_run(model, tmp_path / "my_run")
    done = command(served, tmp_path / "home", "run", "push", run, "hf:me/my_run")
    assert done.returncode == 0, (done.stderr, served.asked[-6:])
    pinned = done.stdout.removeprefix("pushed ").strip()
    assert pinned == f"hf:me/my_run@{tiny_hub.commit_id('me/my_run', 0)}"
    assert "me/my_run" in served.private
    files = served.commits["me/my_run"][-1]
    assert {"config.json", "adapter.safetensors", "README.md"} <= set(files)
    for name in ("config.json", "README.md"):
        assert str(tmp_path).encode() not in files[name], files[name]
    other = tmp_path / "elsewhere"
    assert command(served, other, "models", "get", "hf:own/base", pinned).returncode == 0
    constants.HF_HUB_CACHE = str(other / "hub")  # put back by the fixture
    again = load_model(hub.local(pinned), device="cpu", dtype="float32")
    frames = dense_images()[:1]
    assert again.embed_frames(frames).equal(model.embed_frames(frames))


def test_what_cannot_be_pushed(served, tmp_path, monkeypatch, capsys):
    model = released("ckpt_dense")
    run = save_run(model, tmp_path / "my_run")
    for words, token, said in [
        ((run, "hf:me/x"), tiny_hub.TOKEN, "give --base hf:owner/name"),
        ((run, "hf:me/x@v1"), tiny_hub.TOKEN, "give hf:owner/name alone"),
        ((run, "me/x"), tiny_hub.TOKEN, "not of the form"),
        ((tmp_path / "no", "hf:me/x"), tiny_hub.TOKEN, "no run"),
        ((run, "hf:me/x", "--base", "hf:own/base"), None, "hf:me/x: "),
    ]:
        monkeypatch.setenv("HF_TOKEN", token or "")
        assert main(["run", "push", *map(str, words)]) == 2
        assert said in capsys.readouterr().err
    assert "me/x" not in served.commits
