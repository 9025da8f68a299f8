"""Dual encoders of both libraries against the library's own transforms, tokenizers and towers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_encoders import OPEN_CLIP, save_open_clip, save_transformers
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from revisionllm.errors import UserError
from revisionllm.model.clip import load_clip, normalise_query

QUERIES = ["She opens the door.", "a man in a red hat runs away", "a man?"]
NUM_WORDS = [5, 9, 3]  # with the final dot


def pictures() -> list[Image.Image]:
    small = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(p).resize((90, 60), Image.BICUBIC) for p in small]


def frames() -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures()])


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_with_other_text_towers(name, tmp_path):
    save_open_clip(tmp_path, name)
    clip = load_clip(tmp_path, device="cpu")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    model.text.output_tokens = True
    tokens, sentence = clip.encode_texts(QUERIES)
    assert (clip.dim, clip.text_width, clip.context_length) == (48, 64, 16)
    with torch.no_grad():
        # open_clip's own cleaning takes the dot away
        ids = tokenizer([normalise_query(query) for query in QUERIES])
        want, states = model.text(ids)
        torch.testing.assert_close(sentence, want)
        for row, mask, found in zip(states, ids > 3, tokens, strict=True):
            projected = row[mask] @ model.text.text_projection if name == "causal" else None
            if projected is None:
                projected = model.text.text_projection(row[mask])
            torch.testing.assert_close(found, projected)
        pixels = torch.stack([transform(picture) for picture in pictures()])
        torch.testing.assert_close(
            clip.preprocess(torch.from_numpy(frames())), pixels, atol=0.01, rtol=0
        )
        want = model.encode_image(clip.preprocess(torch.from_numpy(frames())))
        torch.testing.assert_close(clip.encode_images(frames()), want)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_dual_encoders(kind, tmp_path):
    save_transformers(tmp_path, kind)
    clip = load_clip(tmp_path, device="cpu")
    model = AutoModel.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens, sentence = clip.encode_texts(QUERIES)
    assert [len(row) for row in tokens] == NUM_WORDS
    texts = [normalise_query(query) for query in QUERIES]
    inputs = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(pictures(), return_tensors="pt")
    ours = clip.preprocess(torch.from_numpy(frames()))
    torch.testing.assert_close(ours, pixels["pixel_values"], atol=0.02, rtol=0)
    with torch.no_grad():
        out = model(**inputs, pixel_values=ours)
        normal = torch.nn.functional.normalize
        torch.testing.assert_close(normal(sentence, dim=-1), out.text_embeds)
        torch.testing.assert_close(normal(clip.encode_images(frames()), dim=-1), out.image_embeds)
        states = model.text_model(**inputs).last_hidden_state
        if kind == "clip":
            states = model.text_projection(states)
        start = int(kind == "clip")
        for row, found in zip(states, tokens, strict=True):
            torch.testing.assert_close(found, row[start : start + len(found)])


def test_fingerprints_and_lengths(tmp_path):
    prints = set()
    for kind in ("clip", "siglip"):
        save_transformers(tmp_path / kind, kind)
        clip = load_clip(tmp_path / kind, device="cpu")
        assert clip.fingerprint() == load_clip(tmp_path / kind, device="cpu").fingerprint()
        prints.add(clip.fingerprint())
        with pytest.raises(UserError, match="too long"):
            clip.encode_texts(["a man runs away " * 9])
        assert clip.decode_size(90, 60) == ((54, 36) if kind == "clip" else (32, 32))
    assert len(prints) == 2


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_cannot_be_an_encoder_is_said_in_one_line(tmp_path):
    wide = {"height": 32, "width": 40}
    for case, kind, file, values, words in [
        ("code", "siglip", "config.json", {"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
        ("naflex", "siglip", "config.json", {"model_type": "siglip2"}, "NaFlex"),
        ("bert", "siglip", "config.json", {"model_type": "bert"}, "cannot load|lacks|no feat"),
        ("wide", "siglip", "preprocessor_config.json", {"size": wide}, "prep"),
        ("whole", "clip", "preprocessor_config.json", {"do_center_crop": False}, "prepares"),
        ("nearest", "clip", "preprocessor_config.json", {"resample": 0}, "resample"),
        ("nothing", "clip", "preprocessor_config.json", {"image_mean": None}, "cannot read"),
    ]:
        save_transformers(tmp_path / case, kind)
        change(tmp_path / case, file, **values)
        with pytest.raises(UserError, match=words) as caught:
            load_clip(tmp_path / case, device="cpu")
        assert "\n" not in str(caught.value)
    save_transformers(tmp_path / "cut", "clip")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(UserError, match="cannot load CLIP"):
        load_clip(tmp_path / "cut", device="cpu")
    save_transformers(tmp_path / "bare", "clip")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="is missing"):
        load_clip(tmp_path / "bare", device="cpu")


def test_the_fingerprint_of_large_weights_is_kept(tmp_path, monkeypatch):
    """Next to nothing is read the second time; other weights or a torn note are not believed."""
    from revisionllm.model import clip

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_transformers(tmp_path / "clip", "siglip")
    plain = load_clip(tmp_path / "clip", device="cpu").fingerprint()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(clip, "KEPT_FROM", 10)
    assert load_clip(tmp_path / "clip", device="cpu").fingerprint() == plain
    (note,) = (tmp_path / "cache" / "revisionllm" / "encoders").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(clip, "weights_digest", lambda *_: pytest.fail("read again"))
        assert load_clip(tmp_path / "clip", device="cpu").fingerprint() == plain
    note.write_text(plain[:7])
    assert load_clip(tmp_path / "clip", device="cpu").fingerprint() == plain
    save_transformers(tmp_path / "other", "clip")
    shutil.copytree(tmp_path / "other", tmp_path / "clip", dirs_exist_ok=True)
    assert load_clip(tmp_path / "clip", device="cpu").fingerprint() != plain
