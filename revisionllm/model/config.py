"""What a run is: everything needed to load a model and to ask it questions (`<run>/config.json`).

Training writes it, evaluation and the commands read it, so that they cannot disagree about windows,
frames, questions or time. The values and their meaning are the "Run folder" of the contracts.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.files import read_json, write_json
from revisionllm.grounding.calibration import Calibration, from_dict
from revisionllm.grounding.windows import WindowClock
from revisionllm.model.hub import is_reference, local, reference_to
from revisionllm.options import problems

CONFIG_NAME = "config.json"
ADAPTER_NAME = "adapter.safetensors"
LORA_NAME = "lora"
CALIBRATION_NAME = "calibration.json"
CALIBRATE = "`revisionllm eval calibrate --overwrite` makes it again"
FORMAT = "revisionllm-run"
MAX_STEPS_UP = 2  # paths further away than ../../x are stored as absolute ones

CHOICES = {
    "stage": ("dense", "sparse", "long"),
    "question": ("frames", "video", "yes_no"),
    "answer_end": ("inclusive", "exclusive"),
    "prompt_template": ("vicuna_v1", "chat"),
    "time_mapping": ("centered", "rounded", "released"),
    "span_refinement": ("none", "expected"),
    "merge_dtype": ("float32", "float16", "bfloat16"),
}
ADAPTER_KINDS = ("linear", "clip")
ADAPTER_OUTPUTS = ("frames", "segment", "all", "alternate")


@dataclass
class AdapterConfig:
    """Which module turns frame features into LLM tokens, and its dimensions."""

    kind: str = field(
        default="linear",
        metadata={"help": "linear: FrameProjector | clip: ClipAdapter (reads the query)"},
    )
    feature_dim: int = field(
        default=768,
        metadata={"help": "D, width of the frame features; mostly of words, too"},
    )
    hidden_size: int = field(
        default=4096, metadata={"help": "H, width of the LLM; a new adapter takes the base's"}
    )
    output: str = field(
        default="frames",
        metadata={"help": "tokens per window: frames (F) | segment (1) | all (1 + F) | alternate"},
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further keyword arguments of the module"}
    )
    text_width: int | None = field(
        default=None, metadata={"help": "width of the words' features where it is another than D"}
    )

    @property
    def reads_sentence(self) -> bool:
        """A query's rows end with its sentence feature; see `ClipAdapter`."""
        return bool(self.options.get("reads_sentence"))

    @property
    def width_of_words(self) -> int:
        """Width of the words' features that the adapter reads."""
        return self.text_width or self.feature_dim

    def problems(self) -> list[str]:
        """Contradictions, one sentence each."""
        found = []
        if self.reads_sentence and self.width_of_words != self.feature_dim:
            found.append(
                "adapter.options.reads_sentence compares sentence and frames, which need one width,"
                f" not {self.width_of_words} and {self.feature_dim}"
            )
        if self.kind not in ADAPTER_KINDS:
            found.append(f"adapter.kind is {self.kind!r}, not one of {ADAPTER_KINDS}")
        if self.output not in ADAPTER_OUTPUTS:
            found.append(f"adapter.output is {self.output!r}, not one of {ADAPTER_OUTPUTS}")
        if self.kind == "linear" and self.output != "frames":
            found.append(f"a linear adapter gives frames, not {self.output!r}")
        return found


@dataclass
class RunConfig:
    """The contents of `<run>/config.json`. In memory, local paths are absolute; on disk relative.

    Raises:
        UserError: when values contradict each other (all problems in one message).
    """

    base: str = field(
        default="", metadata={"help": "LLM: Hugging Face folder, GGUF file, or hf:owner/name"}
    )
    clip: str | None = field(
        default=None,
        metadata={"help": "CLIP: folder, file, hf:owner/name, or NAME:TAG of open_clip"},
    )
    clip_fingerprint: str | None = field(
        default=None, metadata={"help": "of the CLIP that made the features it was trained on"}
    )
    adapter: AdapterConfig = field(
        default_factory=AdapterConfig, metadata={"help": "adapter kind, dimensions and options"}
    )
    adapter_file: str | None = field(
        default=ADAPTER_NAME,
        metadata={"help": "its weights; another run's file if unchanged from there"},
    )
    lora: list[str] = field(
        default_factory=list,
        metadata={"help": "LoRA folders in the order in which they are applied"},
    )
    stage: str = field(default="dense", metadata={"help": "dense | sparse | long"})
    question: str = field(default="frames", metadata={"help": "wording: frames | video | yes_no"})
    prompt_template: str = field(
        default="vicuna_v1",
        metadata={"help": "around the question: vicuna_v1 | chat (the base's own template)"},
    )
    answer_end: str = field(
        default="inclusive", metadata={"help": "is the last number of an answer inside the span"}
    )
    time_mapping: str = field(
        default="centered",
        metadata={"help": "how frames map to seconds: centered | rounded | released"},
    )
    span_refinement: str = field(
        default="none",
        metadata={"help": "ends of dense spans: none (whole frames) | expected (between frames)"},
    )
    window_s: float = field(default=125.0, metadata={"help": "length of a window in seconds"})
    stride_s: float = field(
        default=62.5, metadata={"help": "from one dense window's start to the next, in seconds"}
    )
    frames_per_window: int = field(
        default=250, metadata={"help": "F, frames the model sees of a window"}
    )
    double_rate_short: bool = field(
        default=False,
        metadata={"help": "films shorter than two windows have windows half as long (chapters)"},
    )
    feature_fps: float = field(default=5.0, metadata={"help": "frame features per second"})
    num_segments: int = field(default=100, metadata={"help": "segments in one long-video prompt"})
    segment_stride_s: float = field(
        default=25.0, metadata={"help": "from one segment's start to the next, in seconds"}
    )
    merge_dtype: str = field(
        default="float32", metadata={"help": "dtype of the base while LoRA is merged into it"}
    )
    parent: str | None = field(
        default=None, metadata={"help": "the run or checkpoint that training started from"}
    )
    git_commit: str | None = field(
        default=None, metadata={"help": "commit of this repository that wrote the run"}
    )
    versions: dict[str, str] = field(
        default_factory=dict, metadata={"help": "library versions that wrote the run"}
    )

    def __post_init__(self) -> None:
        found = _type_problems(self)
        if found:
            raise UserError("run config: " + "; ".join(found))
        if isinstance(self.adapter, dict):
            self.adapter = AdapterConfig(**self.adapter)
        found = [f"adapter.{text}" for text in _type_problems(self.adapter)]
        found += [] if found else self.adapter.problems()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                found.append(f"{name} is {getattr(self, name)!r}, not one of {allowed}")
        found += [text.removeprefix("--") for text in problems(asdict(self))]
        if found:
            raise UserError("run config: " + "; ".join(found))

    def clock(self, window_s: float | None = None) -> WindowClock:
        """The arithmetic of its windows, or of windows of another length."""
        return WindowClock(
            self.window_s if window_s is None else window_s,
            self.frames_per_window,
            self.feature_fps,
            self.time_mapping,
        )


def _type_problems(config: Any) -> list[str]:
    """Fields that hold something else than their default's kind, one phrase each."""
    found = []
    for item in fields(config):
        value, kind = getattr(config, item.name), item.type
        if kind == "float" and type(value) is int:
            continue  # 125 for 125.0
        allowed = _KINDS[kind]
        if isinstance(value, bool) and bool not in allowed:
            allowed = ()
        entries = value if kind == "list[str]" and isinstance(value, list) else []
        if isinstance(value, allowed) and all(isinstance(entry, str) for entry in entries):
            continue
        found.append(f"{item.name} is {str(value)[:40]!r}, not {kind}")
    return found


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "float": (float,),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "list[str]": (list,),
    "dict[str, Any]": (dict,),
    "dict[str, str]": (dict,),
    "AdapterConfig": (AdapterConfig, dict),
}


def is_run_folder(folder: Path) -> bool:
    """True if `folder/config.json` was written by `write_config` (a base folder has one too)."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        return False
    document = read_json(path, mend="copy or train the run again")
    return isinstance(document, dict) and document.get("format") == FORMAT


def read_config(folder: str | Path) -> RunConfig:
    """Read `<folder>/config.json`; relative paths become absolute, seen from the folder.

    Raises:
        UserError: not a run folder, unknown keys, values that contradict each other.
    """
    folder = Path(folder).resolve()
    if not is_run_folder(folder):
        raise UserError(f"not a run folder: {folder / CONFIG_NAME} is missing or of another format")
    values = read_json(folder / CONFIG_NAME, kind=dict)
    del values["format"]
    values.pop("base_revision", None)  # of older runs; now a part of the base's reference
    unknown = _unknown_keys(values)
    if unknown:
        raise UserError(
            f"{folder / CONFIG_NAME}: unknown keys {unknown}; written by a newer version?"
        )
    try:
        config = RunConfig(**values)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_NAME}: {error}") from error
    return _map_paths(config, lambda path: _absolute(path, folder))


def write_config(config: RunConfig, folder: str | Path) -> Path:
    """Write `<folder>/config.json` atomically; absolute paths nearby are stored relative to it."""
    folder = Path(folder).resolve()
    stored = _map_paths(RunConfig(**asdict(config)), lambda path: _relative(path, folder))
    write_json(folder / CONFIG_NAME, {"format": FORMAT, **asdict(stored)})
    return folder / CONFIG_NAME


def read_calibration(
    folder: str | Path, name: str = CALIBRATION_NAME, mend: str = CALIBRATE
) -> Calibration | None:
    """The calibration of a run folder (`calibration.json`); None if it has none.

    Args:
        name: of another one, in the folder of an encoder.
        mend: what makes it again.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / name
    if not path.is_file():
        return None
    try:
        return from_dict(read_json(path, kind=dict, mend=mend))
    except ValueError as error:
        raise UserError(f"{path}: {error}; {mend}") from error


def _unknown_keys(values: dict[str, Any]) -> list[str]:
    unknown = sorted(set(values) - {f.name for f in fields(RunConfig)})
    adapter = values.get("adapter", {})
    if not isinstance(adapter, dict):
        return unknown
    return unknown + [
        f"adapter.{key}" for key in sorted(set(adapter) - {f.name for f in fields(AdapterConfig)})
    ]


def _map_paths(config: RunConfig, change: Any) -> RunConfig:
    """Apply `change` to every field of the config that may hold a path (in place)."""
    config.base = change(config.base)
    config.lora = [change(path) for path in config.lora]
    for name in ("clip", "adapter_file", "parent"):
        if getattr(config, name) is not None:
            setattr(config, name, change(getattr(config, name)))
    return config


def _absolute(path: str, folder: Path) -> str:
    """Seen from the run folder if something is there or the path says so; else a name, unchanged.

    A hub's reference becomes its place in the cache, if it is there.
    """
    if is_reference(path):
        try:
            return local(path)
        except UserError:  # whoever loads it says so
            return path
    seen = folder / path
    is_path = path.startswith(".") or path in (ADAPTER_NAME, LORA_NAME) or os.path.exists(seen)
    return os.path.normpath(seen) if path and is_path else path


def _relative(path: str, folder: Path) -> str:
    if not os.path.isabs(path):
        return path
    reference = reference_to(path)
    if reference is not None and reference_to(folder) is None:
        return str(reference)
    short = os.path.relpath(path, folder)
    return path if short.split(os.sep).count("..") > MAX_STEPS_UP else Path(short).as_posix()
