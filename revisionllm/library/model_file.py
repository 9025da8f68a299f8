"""`model.json`: an encoder, and the runs above it, as one `--model FOLDER`.

    {"encoder": "clip:clip", "dense": "dense", "long": ["long_100", "long_33"]}

`encoder` is anything that `--model` takes; `dense` and `long` are run folders (the coarsest long
run first) or hf: references. Folders count from the file's own. Without `dense` the encoder stands
alone, or above another model: `{"encoder": ..., "grounder": "http://host:port/v1#model",
"profile": "mine.toml"}`, long runs between them if there are any (docs/grounders.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from revisionllm.constants import DEMO_WEIGHTS
from revisionllm.data.video_file import is_rendered
from revisionllm.errors import UserError
from revisionllm.files import read_json
from revisionllm.model.hub import PREFIX, check_encoder, is_reference, local

if TYPE_CHECKING:
    from revisionllm.grounder import Grounder
    from revisionllm.model.clip import ClipFeatures

NAME = "model.json"
ANSWERS = "grounder_answers.sqlite"
CLIP_PREFIX = "clip:"
DEMO_HINT = (
    "revisionllm: these are the demo's weights, which know rendered films alone; for real footage"
    " `revisionllm models get clip:ViT-B-32:laion2b_s34b_b79k` and give --model with that name"
    ", or to find --checkpoint RUN"
)


@dataclass(frozen=True)
class ModelFile:
    """What a `--model` stands for.

    Attributes:
        encoder: what `model.clip.load_clip` is given.
        dense: run folder; None: an encoder alone.
        long: run folders, the coarsest first.
        grounder, profile: another model for dense windows, and the file that says how it is asked.
        folder: of the `model.json`; a grounder's `calibration.json` lies beside it.
    """

    encoder: str
    dense: str | None = None
    long: tuple[str, ...] = ()
    grounder: str | None = None
    profile: Path | None = None
    folder: Path | None = None

    @property
    def is_alone(self) -> bool:
        """Whether nothing stands below the encoder."""
        return self.dense is None and self.grounder is None

    def above(self, grounder: str, profile: Path | None = None) -> ModelFile:
        """Its encoder above another model, whose calibration is not the one that lies here."""
        return ModelFile(self.encoder, grounder=grounder, profile=profile)


def open_levels(
    model: ModelFile,
    *,
    clip: ClipFeatures | None = None,
    device: str = "auto",
    kept_in: Path | None = None,
    snap: bool = False,
) -> Grounder:
    """What searches dense windows for a model that is not alone.

    Args:
        clip: above another model's windows; None: the model's own encoder.
        kept_in: folder of that model's answers, which are asked for once; None: where features are
            kept.
        snap: another model's windows begin and end with shots; see `shots.snap_window`.

    Raises:
        UserError: a run is damaged, or the other model is not there.
    """
    from revisionllm.grounder import Grounder, default_features_dir

    if model.grounder is None:
        return Grounder.from_checkpoint(model.dense, long_runs=model.long, device=device)
    from revisionllm.engine.foreign import make_engine
    from revisionllm.model.config import read_calibration

    kept = (kept_in or default_features_dir()) / ANSWERS
    place = None
    if snap:
        from revisionllm.library.shots import snap_window as place
    engine = make_engine(
        model.grounder, profile=model.profile, kept=kept, place=place, device=device
    )
    if clip is None:
        from revisionllm.model.clip import load_clip

        clip = load_clip(model.encoder, device=device)
    calibration = read_calibration(model.folder) if model.folder else None
    return Grounder.of_engine(engine, clip, calibration, long_runs=model.long, device=device)


def read_model(name: str) -> ModelFile:
    """What a `--model` names: demo, clip:NAME:TAG, clip:FOLDER, hf:owner/name, or a folder with a
    `model.json`.

    Raises:
        UserError: it names none, its file is damaged, or a place in it is empty.
    """
    if name == "demo":
        name = str(DEMO_WEIGHTS)
    folder = Path(local(name) if is_reference(name) else name)
    if (folder / NAME).is_file():
        return _read(folder)
    if is_reference(name) or (name.startswith(CLIP_PREFIX) and name != CLIP_PREFIX):
        encoder = name.removeprefix(CLIP_PREFIX)
        check_encoder(encoder)
        return ModelFile(encoder)
    if folder.is_dir():
        raise UserError(f"--model {name}: no {NAME} in it; for an encoder alone write clip:{name}")
    raise UserError(
        f"--model {name}: give demo, clip:NAME:TAG, clip:FOLDER, hf:owner/name, or a folder with a"
        f" {NAME}"
    )


def installed_encoder() -> str | None:
    """A pretrained dual encoder of the hub's local cache, as `--model` takes it; None: there is
    none. Of several the first by name."""
    from revisionllm.model.installed import ENCODER, installed

    known = (model.name for model in installed() if model.kind == ENCODER)
    return next(filter(is_reference, known), None)


def default_model(videos: Sequence[Path]) -> str:
    """What films are searched with when nothing is said: the demo's model for films that its
    renderer made, for others an installed encoder, else the demo's, and why is told on stderr.

    Raises:
        UserError: a film cannot be read.
    """
    if all(is_rendered(video) for video in videos):
        return "demo"
    found = installed_encoder()
    if found is None:
        print(DEMO_HINT, file=sys.stderr)
        return "demo"
    print(f"revisionllm: by {found}, which is installed; --model names another", file=sys.stderr)
    return found


def _read(folder: Path) -> ModelFile:
    path = folder / NAME
    about = read_json(path, kind=dict)
    encoder, dense, long = about.get("encoder"), about.get("dense"), about.get("long", [])
    grounder, profile = about.get("grounder"), about.get("profile")
    known = ("encoder", "dense", "long", "grounder", "profile")
    unknown = sorted(about.keys() - {*known, "made_by"})
    is_list = isinstance(long, list) and all(isinstance(run, str) for run in long)
    if unknown:
        raise UserError(f"{path}: unknown entry {unknown[0]!r}; there are {', '.join(known)}")
    are_texts = all(isinstance(value, str | None) for value in (dense, grounder, profile))
    if not isinstance(encoder, str) or not is_list or not are_texts:
        raise UserError(f"{path}: encoder (needed) and the others must be texts, long a list")
    if grounder and dense:
        raise UserError(f"{path}: dense and grounder: give one of them")
    if encoder != "demo" and not encoder.startswith((CLIP_PREFIX, PREFIX)):
        raise UserError(f"{path}: encoder is demo, clip:NAME:TAG, clip:FOLDER or hf:owner/name")
    if long and dense is None and grounder is None:
        raise UserError(f"{path}: long runs need a dense one or a grounder below them")

    def placed(text: str) -> str:
        return local(text) if is_reference(text) else os.path.join(folder, text)

    if encoder.startswith(CLIP_PREFIX):
        beside = placed(encoder.removeprefix(CLIP_PREFIX))
        encoder = CLIP_PREFIX + beside if os.path.exists(beside) else encoder
    found = read_model(encoder).encoder
    runs = [placed(run) for run in (*([] if dense is None else [dense]), *long)]
    for run in runs:
        if not Path(run).exists():
            raise UserError(f"{path}: no run {run}; checkpoints/README.md says what makes one")
    if grounder is not None:
        where = folder / profile if profile else None
        return ModelFile(found, None, tuple(runs), grounder, where, folder)
    return ModelFile(found, *([runs[0], tuple(runs[1:])] if runs else []))
