"""CLIP features against open_clip's own transform and towers, on tiny random models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from revisionllm.errors import UserError
from revisionllm.model import clip_open
from revisionllm.model.clip import load_clip, normalise_query
from revisionllm.model.clip_open import save_clip

TEXT_CFG = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
RESNET_CFG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": TEXT_CFG,
}
VIT_CFG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": TEXT_CFG,
}
OPENAI_MEAN_STD = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
QUERIES = ["She opens the door.", "a man in a red hat runs away", "Is it raining?"]


def random_model(model_cfg: dict, resize_mode: str = "shortest") -> torch.nn.Module:
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_cfg).eval()
    open_clip.model.set_model_preprocess_cfg(
        model,
        {
            "size": model_cfg["vision_cfg"]["image_size"],
            "mode": "RGB",
            "interpolation": "bicubic",
            "resize_mode": resize_mode,
            "fill_color": 0,
            **OPENAI_MEAN_STD,
        },
    )
    return model


@pytest.fixture(scope="module", params=["resnet", "vit"])
def folder(request, tmp_path_factory):
    model_cfg = RESNET_CFG if request.param == "resnet" else VIT_CFG
    folder = tmp_path_factory.mktemp(request.param)
    save_clip(random_model(model_cfg), folder, model_cfg=model_cfg)
    return folder


def photos(num: int, height: int, width: int) -> np.ndarray:
    """Smooth random pictures; noise alone would hide errors of resizing."""
    rng = np.random.default_rng(num)
    small = rng.integers(0, 256, (num, 6, 8, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((width, height), Image.BICUBIC)) for p in small]
    )


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (64, 64), (40, 50), (33, 97)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_preprocessing_is_open_clips(tmp_path, shape, resize_mode):
    model = random_model(RESNET_CFG, resize_mode)
    save_clip(model, tmp_path, model_cfg=RESNET_CFG)
    clip = load_clip(tmp_path, device="cpu")
    frames = photos(3, *shape)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    want = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    got = clip.preprocess(torch.as_tensor(frames))
    grey_level = 1 / 255 / min(OPENAI_MEAN_STD["std"])
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1.01 * grey_level


def test_image_features_are_the_towers(folder):
    clip = load_clip(folder, device="cpu")
    frames = photos(5, 70, 90)
    got = clip.encode_images(frames, batch_size=2)
    reference = open_clip.create_model(f"local-dir:{folder}", device="cpu").eval()
    with torch.no_grad():
        want = reference.encode_image(clip.preprocess(torch.as_tensor(frames)))
    assert got.dtype == torch.float32 and got.shape == (5, clip.dim)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got.norm(dim=1), torch.ones(5), atol=1e-2)
    assert clip.encode_images(frames[:0]).shape == (0, clip.dim)


def test_frames_shrunk_by_the_decoder_need_only_the_crop(folder):
    clip = load_clip(folder, device="cpu")
    for width, height in [(160, 90), (90, 160), (1920, 1080), (100, 100), (333, 250)]:
        small = clip.decode_size(width, height)
        assert min(small) == clip.image_size
        whole = clip.preprocess(torch.zeros(1, small[1], small[0], 3, dtype=torch.uint8))
        assert whole.shape[-2:] == (clip.image_size, clip.image_size)


def test_images_must_be_uint8_rgb(folder):
    clip = load_clip(folder, device="cpu")
    with pytest.raises(ValueError, match="uint8"):
        clip.encode_images(np.zeros((1, 32, 32, 3), np.float32))


def naive_text(model, tokenizer, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The released definition, written out for one sentence and the plain CLIP class."""
    ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
    padded = torch.zeros(1, model.context_length, dtype=torch.long)
    padded[0, : len(ids)] = torch.tensor(ids)
    hidden = model.token_embedding(padded) + model.positional_embedding
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
    words = hidden[0, 1 : len(ids) - 1]
    if hidden.shape[-1] != model.text_projection.shape[1]:
        words = words @ model.text_projection
    return words, hidden[0, len(ids) - 1] @ model.text_projection


@torch.no_grad()
def test_text_features_are_the_released_definition(folder):
    clip = load_clip(folder, device="cpu")
    model = open_clip.create_model(f"local-dir:{folder}", device="cpu").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tokens, sentence = clip.encode_texts(QUERIES, batch_size=2)
    for query, got_tokens, got_sentence in zip(QUERIES, tokens, sentence, strict=True):
        want_tokens, want_sentence = naive_text(model, tokenizer, normalise_query(query))
        torch.testing.assert_close(got_tokens, want_tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got_sentence, want_sentence, atol=1e-5, rtol=1e-4)
    assert tokens[0].shape == (5, clip.dim)  # she opens the door .
    assert sentence.shape == (3, clip.dim)


def test_text_towers_of_both_open_clip_layouts_agree(folder, tmp_path):
    """`custom_text` configs keep the text tower in a module of its own, with the same weights."""
    config = json.loads((folder / clip_open.CONFIG_NAME).read_text())
    config["model_cfg"]["custom_text"] = True
    (tmp_path / clip_open.CONFIG_NAME).write_text(json.dumps(config))
    shutil.copy(folder / clip_open.WEIGHTS_NAME, tmp_path)
    plain, custom = (load_clip(path, device="cpu") for path in (folder, tmp_path))
    assert (custom.dim, custom.text_width) == (plain.dim, plain.text_width)
    for one, other in zip(
        plain.encode_texts(QUERIES)[0], custom.encode_texts(QUERIES)[0], strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain.encode_texts(QUERIES)[1], custom.encode_texts(QUERIES)[1])


def test_features_may_be_trained_on(folder):
    clip = load_clip(folder, device="cpu")
    tokens, sentence = clip.encode_texts(QUERIES[:1])
    layer = torch.nn.Linear(clip.dim, 1)
    for features in (clip.encode_images(photos(2, 64, 64)), tokens[0], sentence):
        layer(features).sum().backward()  # tensors of inference mode would be refused here


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ("She opens the door.", "She opens the door."),
        ("She opens the door", "She opens the door."),
        (" Is it raining? ", "Is it raining."),
        ("Wait...", "Wait."),
        ("Who is it? .", "Who is it."),
    ],
)
def test_query_normalisation(query, want):
    assert normalise_query(query) == want


def test_a_sentence_is_never_cut(folder):
    clip = load_clip(folder, device="cpu")
    fits = "dog " * 29  # 29 words, the dot, start and end: 32 tokens
    assert clip.encode_texts([fits])[0][0].shape[0] == 30
    with pytest.raises(UserError, match=r"33 tokens, at most 32"):
        clip.encode_texts([QUERIES[0], fits + "dog"])


def test_fingerprint_follows_weights_and_preprocessing(folder, tmp_path):
    clip = load_clip(folder, device="cpu")
    first = clip.fingerprint()
    assert len(first) == 16 and first == load_clip(folder, device="cpu").fingerprint()
    config = json.loads((folder / clip_open.CONFIG_NAME).read_text())
    model = open_clip.create_model(f"local-dir:{folder}", device="cpu")
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    open_clip.model.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    save_clip(model, tmp_path / "a", model_cfg=config["model_cfg"])
    assert load_clip(tmp_path / "a", device="cpu").fingerprint() != first
    model = open_clip.create_model(f"local-dir:{folder}", device="cpu")
    next(model.visual.parameters()).data.flatten()[0] += 1
    save_clip(model, tmp_path / "b", model_cfg=config["model_cfg"])
    assert load_clip(tmp_path / "b", device="cpu").fingerprint() != first


class _Scripted(torch.nn.Module):
    """Holds the weights under their own names, like OpenAI's TorchScript archive."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for key, value in state.items():
            *path, leaf = key.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_openai_files_scripted_and_plain(tmp_path):
    model = random_model(VIT_CFG).half().float()  # their files hold half precision
    state = {key: value.half() for key, value in model.state_dict().items()}
    torch.jit.script(_Scripted(state)).save(str(tmp_path / "scripted.pt"))
    torch.save(state, tmp_path / "plain.pt")
    for name in ("scripted.pt", "plain.pt"):
        clip = load_clip(tmp_path / name, device="cpu")
        frames = photos(2, 40, 50)
        want = model.encode_image(clip.preprocess(torch.as_tensor(frames)))
        assert (clip.image_size, clip.context_length, clip.dim) == (32, 32, 48)
        torch.testing.assert_close(clip.encode_images(frames), want, atol=1e-4, rtol=1e-3)
        tokens, _ = clip.encode_texts(QUERIES[:1])
        assert tokens[0].shape == (5, 48)


class _Evil:
    def __reduce__(self):
        return (print, ("unpickled code ran",))


def test_weight_files_run_no_code(tmp_path, capsys):
    torch.save({"visual.proj": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt"):
        load_clip(tmp_path / "evil.pt", device="cpu")
    assert "unpickled" not in capsys.readouterr().out


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"half a download")
    no_weights = tmp_path / "no_weights"
    no_weights.mkdir()
    config = {"model_cfg": VIT_CFG, "preprocess_cfg": {}}
    (no_weights / clip_open.CONFIG_NAME).write_text(json.dumps(config))
    (tmp_path / "bare").mkdir()
    for name, words in [
        (tmp_path / "absent" / "ViT-L-14.pt", "not found"),
        (tmp_path / "bad.pt", "not an OpenAI CLIP weight file"),
        (tmp_path / "bare", "open_clip_config.json or config.json is missing"),
        (no_weights, "cannot load CLIP"),
        ("ViT-Q-99", "no CLIP file, folder or open_clip model"),
        ("ViT-L-14", "e.g. ViT-L-14:openai"),
    ]:
        with pytest.raises(UserError, match=words):
            load_clip(name, device="cpu")
