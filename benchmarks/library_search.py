"""A library of a thousand made-up hours: seconds per sentence, memory, and what it takes to add.

    python benchmarks/library_search.py out/library_search            # 8 GB of disk, made once
    python benchmarks/library_search.py out/library_search --films 50

Frames are clustered as real ones are: scenes of a film, shots of a scene, frames that drift within
a shot; float16 rows of 768 numbers, one per second. The reference reads every row of every film
for each sentence and cuts all films into spans. Needs a file system with room and, for the figures
to be of memory and not of the disk, as much free memory as the pieces take (1.8 GB).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from revisionllm.options import Parser

DIM, ROWS = 768, 3600
SCENES, SHOT_S = 20, 6.0  # per film; mean length
SHOT_PART, FRAME_PART, TEXT_PART = 0.6, 0.25, 0.35  # of a row's or sentence's length


def film_rows(seed: int) -> np.ndarray:
    """An hour's rows [3600, 768] float16."""
    rng = np.random.default_rng(seed)

    def random(count: int) -> np.ndarray:
        return rng.standard_normal((count, DIM), dtype=np.float32) / DIM**0.5

    lengths = 1 + rng.geometric(1 / (SHOT_S - 1), size=ROWS)
    shot = np.repeat(np.arange(ROWS), lengths)[:ROWS]
    num_shots = shot[-1] + 1
    scenes = random(SCENES)[np.sort(rng.integers(0, SCENES, num_shots))]
    drift = random(ROWS)
    for row in range(1, ROWS):  # frames of a shot resemble the frame before
        drift[row] = 0.8 * drift[row - 1] + 0.6 * drift[row]
    rows = (scenes + SHOT_PART * random(num_shots))[shot] + FRAME_PART * drift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def write_film(library, seed: int) -> None:
    """Add a made-up film, as `Library.add` does with one that it has encoded."""
    from revisionllm.data.stores.feature_writers import save_npy
    from revisionllm.files import write_json

    film_id = f"{seed:016x}"
    save_npy(library.folder / "films" / f"{film_id}.npy", film_rows(seed))
    about = {"num_frames": ROWS, "duration_s": float(ROWS), "feature_fps": 1.0, "dim": DIM}
    write_json(library.folder / "films" / f"{film_id}.json", about)
    library.write_pieces(film_id)
    note = {"path": f"film{seed}.mp4", "bytes": 0, "mtime_ns": 0}
    write_json(library.folder / "films" / f"{film_id}.film.json", note)


def sentences_of(count: int, films: int) -> np.ndarray:
    """Each near a frame of some film [Q, 768], as far from it as sentences are from frames."""
    rng = np.random.default_rng(99)
    found = []
    for _ in range(count):
        row = film_rows(int(rng.integers(films)))[rng.integers(ROWS)].astype(np.float32)
        noise = rng.standard_normal(DIM, dtype=np.float32) / DIM**0.5
        found.append(TEXT_PART * row + noise)
    return np.stack(found)


def memory_mb(kind: str) -> float:
    """RssAnon or RssFile of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1000
    return float("nan")


def search_shared(library, place: str, asked, known, found, top_k: int) -> None:
    """The same sentences in a shared library: seconds, films read, and how much is found, too."""
    from revisionllm.library.frames import find_moments
    from revisionllm.library.shared import SharedLibrary, share

    began = time.perf_counter()
    added, _ = share(library, place)
    print(f"shared {added} films in {time.perf_counter() - began:.0f} s")
    there = SharedLibrary(place)
    numbers = {film.film_id: at for at, film in enumerate(known)}
    seconds, read, kept, first = [], [], 0, 0
    for sentence, wanted in zip(asked, found, strict=True):
        began = time.perf_counter()
        likely = there.promising(sentence[None])
        films = [film for film in known if film.film_id in likely]
        (moments,) = find_moments(there.framed_films(films), sentence[None], top_k=top_k)
        seconds.append(time.perf_counter() - began)
        read.append(len(films))
        told = [(numbers[films[at].film_id], m.start_s, m.end_s) for at, m in moments]
        exact = [(at, m.start_s, m.end_s) for at, m in wanted]
        kept += len(set(told) & set(exact))
        first += told[0] == exact[0]
    print(
        f"shared: {np.median(seconds):.2f} s a sentence, {np.mean(read):.0f} films read; of the"
        f" {top_k} best {100 * kept / sum(map(len, found)):.1f} %, of the first ones"
        f" {100 * first / len(asked):.0f} %"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--shared", help="also search it in LanceDB, in this folder or s3://")
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from revisionllm.files import write_json
    from revisionllm.grounding.frame_spans import pieces_of
    from revisionllm.library.frames import FramedFilm, find_moments
    from revisionllm.library.store import ABOUT, Library

    if not args.folder.exists():
        (args.folder / "films").mkdir(parents=True)
        about = {"format": "revisionllm-library", "encoder": "none", "fingerprint": "0"}
        write_json(args.folder / ABOUT, about | {"feature_fps": 1.0})
    library = Library(args.folder)
    there = {film.film_id for film in library.films()}
    for seed in tqdm(range(args.films), desc="films"):
        if f"{seed:016x}" not in there:
            write_film(library, seed)
    began = time.perf_counter()
    known = library.films()[: args.films]
    films = [library.framed(film) for film in known]
    print(f"opened {len(films)} films in {time.perf_counter() - began:.1f} s")
    asked = sentences_of(args.queries, args.films)
    find_moments(films, asked[:1], top_k=args.top_k)  # the page cache is warm from here
    seconds, found = [], []
    for sentence in asked:
        began = time.perf_counter()
        found += find_moments(films, sentence[None], top_k=args.top_k)
        seconds.append(time.perf_counter() - began)
    print(
        f"{args.films * ROWS / 1e6:.1f} M rows, {sum(len(f.pieces.means) for f in films) / 1e6:.2f}"
        f" M pieces, {os.cpu_count()} cores: {np.median(seconds):.3f} s a sentence"
        f" ({min(seconds):.3f} to {max(seconds):.3f}); anonymous memory"
        f" {memory_mb('RssAnon'):.0f} MB, mapped files {memory_mb('RssFile'):.0f} MB"
    )
    began = time.perf_counter()
    find_moments(films, asked, top_k=args.top_k)
    together = (time.perf_counter() - began) / len(asked)
    print(f"{len(asked)} sentences at once: {together:.3f} s each")
    if args.shared:
        search_shared(library, args.shared, asked, known, found, args.top_k)
    best: list[list] = [[] for _ in asked]
    began = time.perf_counter()
    for at, film in enumerate(tqdm(known, desc="every row")):
        rows = np.load(args.folder / "films" / f"{film.film_id}.npy", mmap_mode="r")
        whole = FramedFilm("", pieces_of(rows), 1.0, film.duration_s)
        for row, moments in zip(best, find_moments([whole], asked, top_k=args.top_k), strict=True):
            row += [(moment.score, at, moment.start_s, moment.end_s) for _, moment in moments]
    everything = time.perf_counter() - began
    kept = 0
    for row, moments in zip(best, found, strict=True):
        exact = {key[1:] for key in sorted(row, reverse=True)[: args.top_k]}
        kept += len(exact & {(at, moment.start_s, moment.end_s) for at, moment in moments})
    share = 100 * kept / sum(map(len, found))
    print(f"of the {args.top_k} best by reading every row ({everything:.0f} s): {share:.2f} % kept")
    began = time.perf_counter()
    rows = film_rows(10**6)
    made = time.perf_counter() - began
    write_film(library, 10**6)
    print(f"adding a film to the others: {time.perf_counter() - began - 2 * made:.2f} s")
    for film in library.films():
        if film.film_id == f"{10**6:016x}":
            library.remove(film)
    assert len(rows) == ROWS
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
