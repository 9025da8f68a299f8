"""A video-LLM in this process, and the same weights behind `transformers serve`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_foreign import PROFILE, ask
from tiny_films import write_film
from tiny_vlm import save_tiny_vlm

from revisionllm.engine.foreign import ForeignEngine, Profile, Prompt, make_engine
from revisionllm.engine.server import ServerAsker
from revisionllm.engine.vlm import VlmAsker
from revisionllm.errors import UserError

WINDOWS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("tiny_vlm"))


@pytest.fixture(scope="module")
def film_path(tmp_path_factory) -> Path:
    """Noise that changes every second, so that every window is another."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(WINDOWS + 5)]
    starts = [1000 * second for second in range(WINDOWS + 5)]
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_film(path, starts, pictures=pictures, codec_options={"g": "25"})


@pytest.fixture
def profile(tmp_path) -> Profile:
    changes = {"window_s = 40": "window_s = 4", "stride_s = 20": "stride_s = 1"}
    changes |= {"window = 20": "window = 4", "image_side = 32": "image_side = 56"}
    text = PROFILE
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "tiny.toml").write_text(f"{text}\nanswer_tokens = 8\n")
    return Profile.read(tmp_path / "tiny.toml")


def prompts(count: int) -> list[Prompt]:
    from revisionllm.data.video import encode_jpeg

    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        shown = 2 + number % 3
        pictures = rng.integers(0, 255, (shown, 48, 64, 3), np.uint8)
        stamps = tuple(f"{second:.1f} s:" for second in range(shown))
        made.append(Prompt(stamps, tuple(map(encode_jpeg, pictures)), f"Is it {number}?"))
    return made


def test_a_batch_says_what_each_prompt_does_alone(folder) -> None:
    asker = VlmAsker(str(folder), device="cpu")
    asked = prompts(5)
    together = asker.ask(asked, tokens=8, yes_no=True)
    for prompt, reply in zip(asked, together, strict=True):
        (alone,) = asker.ask([prompt], tokens=8, yes_no=True)
        assert reply.text == alone.text
        assert reply.yes == pytest.approx(alone.yes, abs=1e-4) and 0 < reply.yes < 1
    assert len({reply.text for reply in together}) > 2  # it does look


def test_yes_is_its_share_of_the_first_token(folder) -> None:
    """Against the model called by hand."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    prompt = Prompt((), (), "Is it?")
    text = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    with torch.no_grad():
        logits = model(**processor(text=[text], return_tensors="pt")).logits[0, -1]
    words = {}
    for word in ("yes", "no"):
        forms = [form for w in (word, word.title(), word.upper()) for form in (w, " " + w)]
        ids = [processor.tokenizer(form).input_ids for form in forms]
        words[word] = sorted({tokens[0] for tokens in ids if len(tokens) == 1})
    yes, no = (float(torch.exp(logits[words[word]]).sum()) for word in ("yes", "no"))
    (reply,) = VlmAsker(str(folder), device="cpu").ask([prompt], tokens=2, yes_no=True)
    assert reply.yes == pytest.approx(yes / (yes + no), abs=1e-5)


def test_an_engine_of_a_folder(folder, film_path, profile, tmp_path) -> None:
    """The shipped profile goes by the config; answers are kept and say who gave them."""
    engine = make_engine(f"vlm:{folder}", kept=tmp_path / "kept.sqlite", device="cpu")
    assert engine.profile == Profile.of("Qwen2.5-VL")
    engine = ForeignEngine(engine.asker, profile, tmp_path / "kept.sqlite")
    answers = ask(engine, film_path, count=9)
    assert engine.how == {"logprobs": 9} and engine.cost.prefixes == 9
    again = ForeignEngine(engine.asker, profile, tmp_path / "kept.sqlite")
    assert ask(again, film_path, count=9) == answers and again.cost.prefixes == 0


def test_folders_that_are_no_grounder(tmp_path, folder) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="cannot load grounder"):
        VlmAsker(str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="no profile for grounder"):
        make_engine(f"vlm:{tmp_path}", device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_says_what_the_same_weights_say_here(folder, film_path, profile) -> None:
    """`transformers serve`, 200 windows, 8 in flight."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "transformers serve ended"
                time.sleep(0.5)
        asked = replace(profile, presence="")  # this server tells no probabilities
        there = ForeignEngine(ServerAsker(f"http://127.0.0.1:{port}/v1", str(folder)), asked)
        here = ForeignEngine(VlmAsker(str(folder), device="cpu"), asked)
        told_there = ask(there, film_path, count=WINDOWS)
        told_here = ask(here, film_path, count=WINDOWS)
    finally:
        server.terminate()
        server.wait(30)
    assert len({answer.answer for answer in told_here}) > 50
    assert there.cost.prefixes == here.cost.prefixes == WINDOWS
    for one, other in zip(told_there, told_here, strict=True):
        assert shown(one.answer) == shown(other.answer)
        assert (one.spans, one.presence) == (other.spans, other.presence)


def shown(text: str) -> str:
    """Without what servers write in other ways: blanks at the ends, tokens of pictures, bytes that
    are no UTF-8; a random model says all of these."""
    return re.sub(r"<\|\w+\|>|\ufffd", "", text).strip()
