"""Random windows out of two-hour films: our readers against one that loads whole films.

    python benchmarks/features.py
    python benchmarks/features.py --films 50 --windows 100      # a quick look

Films are one file of 36,000 x 768 float32 features, hard-linked under many names, so both readers
are served from the page cache; they take turns and the middle ratio counts. Targets: .npy and HDF5
at least 20 times the naive reader, memory flat over 1,000 films. An LMDB record is compressed and
must be decoded whole: its rate and its bounded cache are stated.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from revisionllm.data.stores.feature_store import FeatureStore, LmdbStore, open_features
from revisionllm.data.stores.feature_writers import write_features
from revisionllm.grounding.windows import WindowClock
from revisionllm.options import Parser

FEATURE_FPS, NUM_FEATURES, WIDTH = 5.0, 36_000, 768
WINDOW_S, FRAMES = 125.0, 250
MIN_RATIO, MAX_GROWTH_MB = 20.0, 50.0
TURNS, NAIVE_WINDOWS = 5, 4  # turns, and windows of the naive reader in each
LMDB_FILMS = 3

Read = Callable[[str, np.ndarray], np.ndarray]


def write_films(folder: Path, num_films: int) -> list[str]:
    """`num_films` films as .npy files and as datasets of one HDF5 file, all hard links of one."""
    import h5py

    film = np.random.default_rng(0).standard_normal((NUM_FEATURES, WIDTH), dtype=np.float32)
    names = [f"film_{number:04d}" for number in range(num_films)]
    (folder / "npy").mkdir()
    np.save(folder / "npy" / f"{names[0]}.npy", film)
    with h5py.File(folder / "films.h5", "w") as file:
        file[names[0]] = film
        for name in names[1:]:
            file[name] = file[names[0]]
            os.link(folder / "npy" / f"{names[0]}.npy", folder / "npy" / f"{name}.npy")
    records = ((name, film, {}) for name in names[:LMDB_FILMS])
    write_features(folder / "films.lmdb", records, store_format="lmdb")
    return names


def random_windows(names: list[str], count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Films and the feature indices of a window in each; every film comes first once."""
    rng = np.random.default_rng(seed)
    latest_s = NUM_FEATURES / FEATURE_FPS - WINDOW_S
    clock = WindowClock(WINDOW_S, FRAMES, FEATURE_FPS)
    return [
        (
            names[number % len(names)],
            clock.feature_indices(float(rng.uniform(0, latest_s)), NUM_FEATURES),
        )
        for number in range(count)
    ]


def windows_per_s(read: Read, windows: list[tuple[str, np.ndarray]]) -> float:
    """Rate of a reader."""
    began = time.perf_counter()
    for name, rows in windows:
        read(name, rows)
    return len(windows) / (time.perf_counter() - began)


def naive_npy(folder: Path) -> Read:
    """Loads the film, then picks."""
    return lambda name, rows: np.load(folder / f"{name}.npy")[rows].astype(np.float32)


def naive_hdf5(path: Path) -> Read:
    """Loads the film, then picks; the file stays open."""
    import h5py

    file = h5py.File(path, "r", locking=False)  # as our store opens it
    return lambda name, rows: file[name][:][rows].astype(np.float32)


def resident_mb() -> float:
    """Memory of this process now."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def growth_mb(store: FeatureStore, windows: list[tuple[str, np.ndarray]]) -> float:
    """How much memory grows from the first tenth of the reads to the end."""
    tenth = len(windows) // 10
    windows_per_s(store.read, windows[:tenth])
    before = resident_mb()
    windows_per_s(store.read, windows[tenth:])
    return resident_mb() - before


def compare(name: str, store: FeatureStore, naive: Read, names: list[str], count: int) -> bool:
    """Print one line of the table; whether the targets are met."""
    windows = random_windows(names, count, seed=1)
    film, rows = windows[0]
    np.testing.assert_array_equal(store.read(film, rows), naive(film, rows))
    rates = [
        (
            windows_per_s(store.read, windows[turn::TURNS]),
            windows_per_s(naive, windows[turn : NAIVE_WINDOWS * TURNS : TURNS]),
        )
        for turn in range(TURNS)
    ]
    ours, theirs = sorted(rates, key=lambda pair: pair[0] / pair[1])[TURNS // 2]
    grown = growth_mb(store, random_windows(names, len(names), seed=2))
    print(
        f"{name:6} {ours:9.0f} windows/s  whole film {theirs:7.1f}/s  ratio {ours / theirs:6.0f}"
        f"  memory over {len(names)} films {grown:+.1f} MB",
        flush=True,
    )
    return ours >= MIN_RATIO * theirs and grown <= MAX_GROWTH_MB


def state_lmdb(path: Path, names: list[str]) -> None:
    """Print what decoding whole films costs, cached and not."""
    film_bytes = NUM_FEATURES * WIDTH * 4
    windows = random_windows(names[:LMDB_FILMS], 6 * LMDB_FILMS, seed=3)
    bound = int(1.5 * film_bytes)
    small = LmdbStore(path, cache_bytes=bound)
    cold = windows_per_s(small.read, windows[: 2 * LMDB_FILMS])
    if small.records.cached_bytes > bound:
        raise AssertionError(f"the cache holds {small.records.cached_bytes} of {bound} bytes")
    large = LmdbStore(path, cache_bytes=2 * LMDB_FILMS * film_bytes)
    windows_per_s(large.read, windows[:LMDB_FILMS])
    warm = windows_per_s(large.read, windows[LMDB_FILMS:])
    print(
        f"LMDB   {warm:9.0f} windows/s from the cache, {cold:.1f}/s where a film must be decoded"
        f" first; a cache of {bound / 2**20:.0f} MB held"
        f" {small.records.cached_bytes / 2**20:.0f} MB"
    )


def main(argv: list[str] | None = None) -> int:
    """Run it; exit code 1 if a target is missed."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=1000, help="names (default: %(default)s)")
    parser.add_argument(
        "--windows", type=int, default=1000, help="timed reads (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_films(folder, max(args.films, LMDB_FILMS))
        npy, hdf5 = folder / "npy", folder / "films.h5"
        met = compare(".npy", open_features(npy), naive_npy(npy), names, args.windows)
        met &= compare("HDF5", open_features(hdf5), naive_hdf5(hdf5), names, args.windows)
        state_lmdb(folder / "films.lmdb", names)
    print("targets met" if met else f"targets missed: ratio {MIN_RATIO}, {MAX_GROWTH_MB} MB")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
