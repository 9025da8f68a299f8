"""`revisionllm models`: the models on this machine, what each part of the work needs, and the one
command that downloads some.

revisionllm models
revisionllm models get hf:google/siglip2-base-patch16-224
revisionllm models get clip:ViT-B-32:laion2b_s34b_b79k
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from revisionllm.errors import UserError
from revisionllm.model.hub import Reference, is_reference, local, parse
from revisionllm.model.installed import USES, installed, shipped

CLIP_PREFIX = "clip:"
# other libraries' copies of the weights; what pickles hold stands in the safetensors, too
NOT_READ = re.compile(
    r"(onnx|openvino|coreml|original|flax|tf)/.*|.*\.(onnx|onnx_data|h5|msgpack|ot|tflite|gguf)"
)
PICKLED = re.compile(r"(.*/)?(open_clip_)?pytorch_model[\w.-]*\.bin(\.index\.json)?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    text = "download models into the local cache"
    get = commands.add_parser("get", help=text, description=text)
    get.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="hf:owner/name, hf:owner/name@revision, hf:owner/name/file.gguf, or clip:NAME:TAG of"
        " open_clip",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    if args.command == "get":
        for name in args.names:
            if not (is_reference(name) or name.startswith(CLIP_PREFIX)):
                raise UserError(f"{name} is neither hf:owner/name nor clip:NAME:TAG")
        for name in args.names:
            if is_reference(name):
                print(f"{name}: {_get(parse(name))}")
            else:
                print(f"{name}: {_get_clip(name.removeprefix(CLIP_PREFIX))}")
        return 0
    models = [*shipped(), *installed()]
    width = max(len(model.name) for model in models)
    for model in models:
        print(f"{model.name:{width}}  {model.size / 1e6:9.1f} MB  {model.kind}")
    print()
    for use in USES:
        print(f"{use.what:{max(len(use.what) for use in USES)}}  {use.state(models)}")
    return 0


def _get(reference: Reference) -> str:
    """Download a repository, or one GGUF file of it; returns its place."""
    from huggingface_hub import HfApi, constants, snapshot_download

    with hub_errors(str(reference)):
        about = HfApi().model_info(
            reference.repository, revision=reference.revision, files_metadata=True
        )
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or []}
        chosen = wanted(list(sizes), reference.folder)
        if not chosen:
            raise UserError(f"{reference} holds no files of a model")
        total = sum(sizes[name] for name in chosen)
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        print(f"{len(chosen)} files, {total / 1e6:.1f} MB, to {cache}", file=sys.stderr)
        if total > free:
            raise UserError(f"{reference} takes {total / 1e9:.1f} GB, {cache} has {free / 1e9:.1f}")
        snapshot_download(reference.repository, revision=reference.revision, allow_patterns=chosen)
    return local(str(reference))


def wanted(files: Sequence[str], folder: str = "") -> list[str]:
    """Which files of a repository are read: no copies in other libraries' formats."""
    if folder.endswith(".gguf"):
        return [name for name in files if name == folder]
    kept = [name for name in files if not NOT_READ.fullmatch(name)]
    pickled = [name for name in kept if PICKLED.fullmatch(name)]
    if any(name.endswith(".safetensors") for name in kept):
        kept = [name for name in kept if name not in pickled]
    return kept


def _get_clip(name: str) -> str:
    """Download what an open_clip name needs, its tokenizer included; returns the weights' place."""
    import open_clip
    from open_clip.pretrained import download_pretrained

    from revisionllm.model.clip_open import pretrained

    model_name, _, config = pretrained(name)
    with hub_errors(name):
        place = download_pretrained(config)
        open_clip.get_tokenizer(model_name)
    return place


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What goes wrong on the way to the hub, as one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set; unset it to reach the hub")
    if not hub_is_reachable():
        raise UserError(f"{name}: {constants.ENDPOINT} does not answer; is this machine online?")
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        why = {
            401: "not there, or not for you: set HF_TOKEN, or `hf auth login`",
            403: "not allowed: does HF_TOKEN have the right to do this?",
            404: "no such repository or revision",
        }.get(status, " ".join(str(error).split())[:200])
        raise UserError(f"{name}: {constants.ENDPOINT} says: {why}") from error
    except (OSError, HfHubHTTPError.__mro__[1]) as error:  # of httpx or requests, by version
        raise UserError(f"{name}: {' '.join(str(error).split())[:200]}") from error


def hub_is_reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers at all; asked once, so that nobody waits for time-outs."""
    from huggingface_hub import constants

    place = urlparse(constants.ENDPOINT)
    port = place.port or (443 if place.scheme == "https" else 80)
    answers: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((place.hostname, port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    knocking = threading.Thread(target=knock, daemon=True)  # looking up a name has no time limit
    knocking.start()
    knocking.join(seconds)
    return bool(answers) and answers[0]
