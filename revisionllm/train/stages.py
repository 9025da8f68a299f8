"""The curriculum as recipe files: what each stage trains, starts from, looks at and asks.

A recipe is a TOML file with a table per stage (`align`, `dense`, `sparse`, `long`) and one, `all`,
for what they share; its values are the defaults of `arguments.py`. Those of MAD, VidChapters-7M and
the demo are in `recipes/`; their paths are seen from the top folder, those of one's own recipe from
where it lies. In one's own a stage starts from the ones before it unless it says otherwise.
Paper: https://arxiv.org/abs/2411.14901, section 3.3 and appendix.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from revisionllm.errors import UserError
from revisionllm.model.hub import is_reference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).with_name("recipes")
DATASETS = ("mad", "chapters", "demo")
STAGES = ("align", "dense", "sparse", "long")
OUTPUTS = {
    "align": ("frames",),
    "dense": ("frames",),
    "sparse": ("segment",),
    "long": ("segment", "alternate"),
}
PATHS = (
    "data_path",
    "features",
    "text_features",
    "val_data_path",
    "val_features",
    "val_text_features",
    "output_dir",
    "init_projector",
    "init_lora",
    "init_adapter",
)
NAMES_OR_PATHS = ("base", "clip")  # of a hub or of open_clip, unless they lie beside the recipe
# what one's own recipe need not say
OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "align": {"epochs": 1.0, "global_batch_size": 128, "learning_rate": 1e-3},
    "dense": {"epochs": 5.0, "global_batch_size": 128, "lora_init": "new"},
    "sparse": {"epochs": 1.0, "global_batch_size": 256, "learning_rate": 1e-3},
    "long": {"epochs": 1.0, "global_batch_size": 128, "lora_init": "continue"},
}
FOR_ALL_OWN = {"per_device_batch_size": 16, "deepspeed": "none"}


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe.

    Attributes:
        dataset: the recipe, mad, chapters, demo or a file.
        stage: align, dense, sparse or long.
        adapter_output: what the adapter gives the LLM per window: frames, segment (one token), or
            alternate: segment in even steps, frames in odd ones.
        defaults: argument -> value, over those of `arguments.py`.
    """

    dataset: str
    stage: str
    adapter_output: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> str:
        """`lora` (adapter frozen) or `adapter` (LoRA frozen)."""
        return "lora" if self.stage in ("dense", "long") else "adapter"

    @property
    def needs_text(self) -> bool:
        """Does the adapter read the query's word features?"""
        return self.stage in ("sparse", "long")

    @property
    def trains_output_norm(self) -> bool:
        """Alternating output has a layer norm of its own, which is new and therefore trained."""
        return self.adapter_output == "alternate"


def find_stage(dataset: str, stage: str) -> Stage:
    """A stage of a recipe.

    Raises:
        UserError: the recipe cannot be read, or has no such stage.
    """
    stages = read_recipe(dataset)
    if stage not in stages:
        raise UserError(f"recipe {dataset} has no [{stage}]; it has {', '.join(stages)}")
    return stages[stage]


@lru_cache(maxsize=8)
def read_recipe(dataset: str) -> dict[str, Stage]:
    """The stages of a recipe, in the order of the curriculum.

    Args:
        dataset: mad, chapters, demo, or a .toml file.

    Raises:
        UserError: names everything that is wrong with it.
    """
    path = RECIPES / f"{dataset}.toml" if dataset in DATASETS else Path(dataset)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"no recipe {dataset}: {error.strerror}; give {', '.join(DATASETS)} or a .toml file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: {error}") from error
    _check(path, document)
    shared = document.get("all", {})
    stages: dict[str, Stage] = {}
    for stage in STAGES:
        if stage not in document:
            continue
        values = {k: v for k, v in shared.items() if (stage, k) != ("align", "data_path")}
        values |= document[stage]
        if dataset not in DATASETS:
            values = _own(path, stage, values, stages)
        output = values.pop("adapter_output", OUTPUTS[stage][0])
        stages[stage] = Stage(dataset, stage, output, values)
    if not stages:
        raise UserError(f"recipe {path} has no stage; it needs one of [{'], ['.join(STAGES)}]")
    return stages


def _own(path: Path, stage: str, values: dict[str, Any], earlier: dict[str, Stage]) -> dict:
    """Values of one's own recipe: paths seen from the file, starts from the stages before."""
    folder = path.resolve().parent

    def place(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [place(name, one) for one in value]
        if isinstance(value, str) and is_reference(value):
            return value
        if name in PATHS or (name in NAMES_OR_PATHS and (folder / value).exists()):
            return str(folder / value)
        return value

    written = {name: before.defaults["output_dir"] for name, before in earlier.items()}
    starts: dict[str, Any] = {}
    if stage == "dense" and "init_lora" not in values:
        starts = {"init_projector": written["align"]} if "align" in written else {}
        starts = starts or {"train_projector": "init_projector" not in values}
    if stage in ("sparse", "long") and "dense" in written:
        starts["init_lora"] = written["dense"]
    if stage == "long" and "sparse" in written:
        starts["init_adapter"] = written["sparse"]
    name = f"{path.stem}_{stage}" + ("_{num_segments}" if stage == "long" else "")
    starts["output_dir"] = str(folder / "runs" / name)
    said = {key: place(key, value) for key, value in values.items()}
    return FOR_ALL_OWN | OWN_DEFAULTS[stage] | starts | said


def _check(path: Path, document: Mapping[str, Any]) -> None:
    """Unknown tables and keys, and values of another type, all in one message."""
    from revisionllm.train.arguments import TrainArguments

    known = {item.name: item for item in TrainArguments.__dataclass_fields__.values()}
    known = {name: item for name, item in known.items() if name not in ("dataset", "stage")}
    found = []
    for table, values in document.items():
        if table not in ("all", *STAGES) or not isinstance(values, dict):
            found.append(f"[{table}] is no stage{_meant(table, ('all', *STAGES))}")
            continue
        for name, value in values.items():
            if name == "adapter_output":
                outputs = OUTPUTS.get(table, ())
                if value not in outputs:
                    found.append(f"[{table}] adapter_output {value!r} is not one of {outputs}")
            elif name not in known:
                found.append(f"[{table}] {name} is no argument{_meant(name, known)}")
            elif not _fits(value, known[name].metadata):
                kind = known[name].metadata["type"].__name__
                found.append(f"[{table}] {name} is {value!r}, not {kind}")
    if found:
        raise UserError(f"recipe {path}: " + "; ".join(found))


def _meant(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _fits(value: Any, metadata: Mapping[str, Any]) -> bool:
    kind = metadata["type"]
    if "nargs" in metadata:
        return isinstance(value, list) and all(isinstance(one, kind) for one in value)
    if kind is float and type(value) is int:
        return True
    choices = metadata.get("choices")
    return type(value) is kind and (choices is None or value in choices)
