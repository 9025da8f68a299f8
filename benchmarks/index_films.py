"""Indexing and first answers, side by side with framesieve (https://pypi.org/project/framesieve/).

    pip install framesieve==0.2.0            # needs the ffmpeg command, too
    python benchmarks/index_films.py film.mp4 --minutes 60

Both read the same film at a frame a second with the same encoder: SigLIP 2 base at 224 pixels with
random weights, in one folder (speed does not depend on them). Measured in turn, in one process: to
decode and store alone (an encoder that does nothing), and whole. First answers are new processes.
What stands still is encoded once in a film of slides, and what that costs is told by films of the
demo.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from revisionllm.errors import UserError
from revisionllm.options import Parser

KEY = "siglip2-base-224"  # framesieve's name of the encoder
SIZE, DIM, WORDS = 224, 768, ["a", "dog", "on", "the", "beach"]
GATE_LEVELS = 2.0  # what its documentation calls visually identical
SENTENCE = "a dog on the beach"
SLIDES, SLIDE_S, SLIDE_FPS = 40, 15, 5
DEMO_SEEDS = range(990, 998)


def save_encoder(folder: Path) -> None:
    """google/siglip2-base-patch16-224 with random weights, in its own layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    shared = {"hidden_size": DIM, "intermediate_size": 3072, "num_hidden_layers": 12}
    shared["num_attention_heads"] = 12
    text = shared | {"vocab_size": 256_000, "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "projection_size": DIM}
    vision = shared | {"image_size": SIZE, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    grey = [0.5, 0.5, 0.5]
    processor = {"image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 2}
    processor |= {"size": {"height": SIZE, "width": SIZE}, "do_rescale": True}
    processor |= {"rescale_factor": 1 / 255, "do_normalize": True}
    processor |= {"image_mean": grey, "image_std": grey}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *WORDS]
    whole = Tokenizer(models.WordLevel({w: n for n, w in enumerate(names)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=whole, model_max_length=64, model_input_names=["input_ids"], **tokens
    ).save_pretrained(folder)


class NoEncoder:
    """Stands for an encoder that takes no time, in both programs' terms."""

    dim, device = DIM, "cpu"

    def __init__(self) -> None:
        from types import SimpleNamespace

        self.spec = SimpleNamespace(key=KEY, revision="none", dim=DIM, size=SIZE)

    def fingerprint(self) -> str:
        return "none"

    def decode_size(self, width: int, height: int) -> tuple[int, int]:
        return SIZE, SIZE

    def encode_images(self, batch, *, batch_size: int):
        import torch

        return torch.ones(len(batch), DIM)

    def encode_frames(self, frames):
        import torch

        return torch.ones(len(frames), DIM)


class Counting:
    """An encoder of ours that counts the frames it was given."""

    def __init__(self, clip) -> None:
        self._clip, self.seen = clip, 0

    def __getattr__(self, name: str):
        return getattr(self._clip, name)

    def encode_images(self, batch, *, batch_size: int):
        self.seen += len(batch)
        return self._clip.encode_images(batch, batch_size=batch_size)


def ours(film: Path, clip, name: str, out: Path, *, skip_same: bool = False) -> int:
    """Index with `Library.add`; returns how many frames were encoded."""
    from revisionllm.library.store import Library

    counting = Counting(clip)
    library = Library.create(out, name, counting, 1.0, skip_same=skip_same)
    library.add(film, counting, progress=False)
    return counting.seen


def theirs(film: Path, encoder, out: Path, *, skip_same: bool = False) -> int:
    """Index with `framesieve.index.build_index`; returns how many frames were encoded."""
    from framesieve.index import build_index

    gate = GATE_LEVELS if skip_same else 0.0
    found = build_index(
        str(film), encoder, target_fps=1.0, size=SIZE, pixel_gate_tau=gate, verbose=False
    )
    found.save(str(out))
    return found.stats.n_encoded


def timed(work: Callable[[Path], int], out: Path) -> tuple[float, int]:
    """Seconds, and what the work returns; its folder is emptied before."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    count = work(out)
    return time.perf_counter() - began, count


def side_by_side(name: str, film: Path, work: dict[str, Callable], place: Path, repeats: int = 1):
    """Print a row: seconds of each, measured in turn, and how often the first goes into the last.

    Returns:
        Median seconds by name.
    """
    from revisionllm.data.video import probe

    film_s = probe(film).duration_s
    found: dict[str, list[float]] = {who: [] for who in work}
    counts = {}
    for _ in range(repeats):
        for who, one in work.items():
            seconds, counts[who] = timed(one, place / who)
            found[who].append(seconds)
    middle = {who: statistics.median(seconds) for who, seconds in found.items()}
    row(f"{name}, {film_s / 60:.0f} min", middle, film_s, counts)
    return middle


def row(name: str, seconds: dict[str, float], film_s: float, counts: dict[str, int]) -> None:
    """Print a row of the table."""
    we, they = seconds["us"], seconds["them"]
    cells = [f"{taken:.1f} ({film_s / taken:.0f})" for taken in (we, they)]
    frames = " / ".join(str(count) for count in counts.values())
    print(f"| {' | '.join([name, *cells])} | {they / we:.2f} | {frames} |", flush=True)


def command_s(words: list[str]) -> float:
    """Median seconds of three new processes."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(words[:4])} ...: {done.stderr[-500:]}")
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def answers(film: Path, folder: Path, place: Path) -> list[str]:
    """Rows: the first answer of a new process, and later ones of one that runs."""
    from framesieve.api import VideoIndex, index_path_for
    from framesieve.index import FrameIndex

    from revisionllm.library.find import LibrarySearch
    from revisionllm.library.store import Library

    setup = (
        "import sys; from framesieve.encoders import SIGLIP_MODELS as m;"
        f" m[{KEY!r}].update(repo={str(folder)!r}, revision=None);"
        " from framesieve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    beside = Path(index_path_for(str(film), KEY, 1.0))
    shutil.copytree(place / "them", beside)
    search = ["search", str(film), SENTENCE, "--no-refine", "--json"]
    they = command_s([sys.executable, "-c", setup, *search])
    shutil.rmtree(beside)
    find = ["find", str(place / "us"), SENTENCE, "--json", "--words", "none", "--device", "cpu"]
    we = command_s([sys.executable, "-m", "revisionllm.cli", *find])
    rows = [f"| first answer of a new process | {we:.2f} | {they:.2f} | {they / we:.2f} | |"]
    searching = LibrarySearch(Library(place / "us"), device="cpu", words="none")
    video = VideoIndex(FrameIndex.load(str(place / "them")), device="cpu", encoder=KEY)
    finders = {"us": lambda text: searching.find([text]), "them": lambda text: video.search(text)}
    later: dict[str, list[float]] = {who: [] for who in finders}
    for number in range(20):
        for who, find_one in finders.items():
            began = time.perf_counter()
            find_one(f"{SENTENCE} {number}")
            later[who].append(time.perf_counter() - began)
    we, they = (statistics.median(later[who][1:]) for who in ("us", "them"))
    return [*rows, f"| later answers | {we:.3f} | {they:.3f} | {they / we:.2f} | |"]


def cut_film(film: Path, minutes: float, folder: Path) -> Path:
    """The film's first minutes, copied."""
    from revisionllm.data.video import probe

    if probe(film).duration_s <= 60 * minutes + 1:
        return film
    part = folder / f"part{film.suffix}"
    words = ["ffmpeg", "-v", "error", "-y", "-i", str(film), "-t", str(60 * minutes)]
    subprocess.run([*words, "-c", "copy", str(part)], check=True)
    return part


def write_slides(path: Path) -> Path:
    """Ten minutes of 720p: a sheet of blocks for 15 seconds each, a pointer that moves over
    every fourth."""
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SLIDE_FPS, options={"crf": "26"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(SLIDES):
            sheet = np.kron(rng.integers(0, 255, (9, 16, 3)), np.ones((80, 80, 1)))
            for tick in range(SLIDE_S * SLIDE_FPS):
                picture = sheet.astype(np.uint8)
                if number % 4 == 0:
                    picture[300:324, 8 * tick : 8 * tick + 24] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def accuracy(place: Path) -> list[str]:
    """What encoding still pictures once costs: frame questions of the demo's films, both ways."""
    from revisionllm.constants import DEMO_WEIGHTS
    from revisionllm.demo.frame_benchmark import is_hit
    from revisionllm.demo.world.frame_questions import frame_questions
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import write_film
    from revisionllm.library.find import LibrarySearch
    from revisionllm.library.store import Library
    from revisionllm.model.clip import load_clip

    clip = Counting(load_clip(DEMO_WEIGHTS / "clip", device="cpu"))
    hits: dict[bool, list[bool]] = {False: [], True: []}
    seen = dict.fromkeys(hits, 0)
    for seed in DEMO_SEEDS:
        plan, film = plan_film(seed, 600.0, "test"), place / f"{seed}.mp4"
        write_film(plan, film)
        asked = frame_questions(plan, 20, 0)
        for skip_same, found in hits.items():
            out, clip.seen = place / f"{seed}-{skip_same}", 0
            library = Library.create(
                out, str(DEMO_WEIGHTS / "clip"), clip, 1.0, skip_same=skip_same
            )
            library.add(film, clip, progress=False)
            seen[skip_same] += clip.seen
            search = LibrarySearch(library, device="cpu", words="none")
            for question, ((_, answer), *_) in zip(
                asked, search.find([one.sentence for one in asked], threshold=0.0), strict=True
            ):
                best = answer.moments[0]
                found.append(is_hit((best.start_s, best.end_s), question.spans_s))
    return [
        f"{'what stands still once' if skip_same else 'every frame'}: R1@0.5"
        f" {100 * np.mean(found):.1f} of {len(found)} sentences, {seen[skip_same]} frames encoded"
        for skip_same, found in hits.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the film that are encoded")
    parser.add_argument("--encoder", type=Path, help="folder; made where it is not there")
    parser.add_argument("--repeats", type=int, default=3, help="of what takes no encoder")
    args = parser.parse_args(argv)

    import torch
    from framesieve.encoders import SIGLIP_MODELS, SiglipEncoder

    from revisionllm.model.clip import load_clip

    print(f"{torch.get_num_threads()} threads", file=sys.stderr)
    print("| | ours: s (x real time) | framesieve: s | ours is faster by | frames encoded |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as kept:
        place, none, film = Path(kept), NoEncoder(), args.film
        work = {"us": partial(ours, film, none, "none"), "them": partial(theirs, film, none)}
        side_by_side("decode and store", film, work, place, args.repeats)
        folder = args.encoder or place / "encoder"
        if not (folder / "config.json").is_file():
            save_encoder(folder)
        SIGLIP_MODELS[KEY].update(repo=str(folder), revision=None)
        clip, encoder = load_clip(str(folder), device="cpu"), SiglipEncoder(KEY, device="cpu")
        film, name = cut_film(args.film, args.minutes, place), str(folder)
        work = {"us": partial(ours, film, clip, name), "them": partial(theirs, film, encoder)}
        whole = side_by_side("whole", film, work, place)
        print("\n".join(answers(film, folder, place)), flush=True)
        half = load_clip(name, device="cpu", dtype="bfloat16")
        seconds, count = timed(partial(ours, film, half, name), place / "us")
        film_s = 60 * args.minutes
        row("ours in bfloat16", whole | {"us": seconds}, film_s, {"us": count, "them": count})
        still = write_slides(place / "slides.mp4")
        work = {
            "us": partial(ours, still, clip, name, skip_same=True),
            "them": partial(theirs, still, encoder, skip_same=True),
        }
        side_by_side("slides, what stands still once", still, work, place)
        print("\n".join(accuracy(place)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
