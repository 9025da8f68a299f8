"""Stores: same rows from every format, bounded caches, workers, and errors that name the record."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import threading
import tracemalloc
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest

from revisionllm.data.stores.feature_store import (
    Hdf5Store,
    LmdbStore,
    NpyFolderStore,
    open_features,
)
from revisionllm.data.stores.feature_writers import (
    guess_format,
    pack_record,
    write_features,
    write_lmdb,
)
from revisionllm.data.stores.lmdb_records import LmdbRecords, read_query
from revisionllm.errors import UserError

EXAMPLE = Path(__file__).parents[1] / "assets" / "data" / "lmdb_example"
NAMES = {"npy": "npy_folder", "hdf5": "films.h5", "lmdb": "films.lmdb"}
CLASSES = {"npy": NpyFolderStore, "hdf5": Hdf5Store, "lmdb": LmdbStore}


def film(seed: int, num_frames: int, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_frames, dim)).astype(np.float16)


FILMS = {"0001_MOVIE": film(1, 400), "-dQw4w9WgXcQ": film(2, 33), "solo": film(3, 1)}


@pytest.fixture(params=list(NAMES))
def store(request, tmp_path):
    path = tmp_path / NAMES[request.param]
    records = ((key, features, {"feature_fps": 5.0}) for key, features in FILMS.items())
    assert write_features(path, records, store_format=request.param) == 3
    opened = open_features(path)
    assert isinstance(opened, CLASSES[request.param])
    return opened


def test_rows_equal_numpy_indexing(store):
    assert store.keys() == sorted(FILMS)
    rng = np.random.default_rng(0)
    for key, features in FILMS.items():
        num = store.num_frames(key)
        assert num == len(features) and store.shape(key) == features.shape
        scattered = rng.integers(0, num, 50)
        window = np.sort(rng.integers(0, min(num, 20), 9))
        for rows in (slice(None), slice(3, 9), slice(2, None, 7), scattered, window, [0], []):
            got = store.read(key, rows)
            want = features[np.asarray(rows, int) if isinstance(rows, list) else rows]
            assert got.dtype == np.float32 and got.flags.writeable
            np.testing.assert_array_equal(got, want.astype(np.float32))
        np.testing.assert_array_equal(store.read(key), features.astype(np.float32))
    assert store.metadata("solo") == {"feature_fps": 5.0}


def test_a_missing_film_is_named_with_its_store(store):
    for ask in (store.read, store.num_frames):
        with pytest.raises(UserError, match="'9999'") as caught:
            ask("9999")
        assert str(store.path) in str(caught.value)


def test_rows_beyond_the_film_are_refused(store):
    for rows in ([0, 400], [-1]):
        with pytest.raises(UserError, match="400 rows") as caught:
            store.read("0001_MOVIE", rows)
        assert "0001_MOVIE" in str(caught.value)


def test_ids_stay_inside_the_store(store):
    for key in ("../films", "a/b", "", ".."):
        with pytest.raises(UserError):
            store.read(key)


def test_pickled_stores_read_the_same(store):
    store.read("solo")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read("0001_MOVIE"), store.read("0001_MOVIE"))


def _sum_in_worker(store, queue):
    queue.put(float(store.read("0001_MOVIE", slice(10, 20)).sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_a_store_opened_by_the_parent(store, method):
    want = float(store.read("0001_MOVIE", slice(10, 20)).sum())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_sum_in_worker, args=(store, queue))
    worker.start()
    assert queue.get(timeout=60) == want
    worker.join()
    assert worker.exitcode == 0


def in_threads(work, count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_stores_of_one_path_and_threads(store):
    other = open_features(store.path)
    results = []

    def work():
        results.append(other.read("0001_MOVIE", [1, 2, 3]).sum())

    in_threads(work, 4)
    assert len(set(results)) == 1 and len(results) == 4
    assert results[0] == store.read("0001_MOVIE", [1, 2, 3]).sum()


def test_threads_that_open_a_store_at_once(store):
    """All threads read through stores that nobody has opened yet."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            fresh, sums, start = open_features(store.path), [], threading.Barrier(6)

            def work(fresh=fresh, sums=sums, start=start):
                start.wait()
                sums.append(fresh.read("0001_MOVIE", [1, 2, 3]).sum())

            in_threads(work, 6)
            assert len(sums) == 6
            del fresh, work
    finally:
        sys.setswitchinterval(interval_s)


def test_released_lmdb_example(tmp_path):
    expected = np.load(EXAMPLE / "expected.npz")
    store = open_features(EXAMPLE / "feat")
    assert store.keys() == ["0001_MOVIE"] and store.num_frames("0001_MOVIE") == 64
    np.testing.assert_array_equal(store.read("0001_MOVIE"), expected["features"])
    tokens, sentence = read_query(LmdbRecords(EXAMPLE / "q"), "1050")
    np.testing.assert_array_equal(tokens, expected["token_features"])
    np.testing.assert_array_equal(sentence, expected["cls_features"])


def test_variants_of_lmdb_records(tmp_path):
    features = film(4, 9).astype(np.float32)
    query = {"token_features": features, "eot_features": features[:1]}
    write_lmdb(tmp_path / "l", [("m", {"memory_global": features}), ("q", query)])
    store = open_features(tmp_path / "l")
    np.testing.assert_array_equal(store.read("m", slice(2, 4)), features[2:4])
    np.testing.assert_array_equal(read_query(store.records, "q")[1], features[0])
    with pytest.raises(UserError, match=r"'q'.*features"):
        store.read("q")
    with pytest.raises(UserError, match="token_features"):
        read_query(store.records, "m")


def test_the_lmdb_cache_is_bounded_in_bytes(tmp_path):
    films = {f"f{n}": {"features": film(n, 100).astype(np.float32)} for n in range(10)}
    one = films["f0"]["features"].nbytes
    write_lmdb(tmp_path / "l", films.items())
    records = LmdbRecords(tmp_path / "l", cache_bytes=int(3.5 * one))
    for name in list(films) + list(films)[::-1]:
        np.testing.assert_array_equal(records.read(name)["features"], films[name]["features"])
        assert records.cached_bytes <= 3.5 * one
    assert records.cached_bytes == 3 * one
    assert records.read("f0") is records.read("f0")
    nothing_kept = LmdbRecords(tmp_path / "l", cache_bytes=one - 1)
    assert nothing_kept.read("f1") is not nothing_kept.read("f1")
    assert nothing_kept.cached_bytes == 0


def test_lmdb_grows_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("revisionllm.data.stores.feature_writers.FIRST_MAP_BYTES", 2**16)
    noise = [(f"f{n}", {"features": film(n, 500, 64)}) for n in range(6)]
    assert write_lmdb(tmp_path / "l", noise) == 6
    store = open_features(tmp_path / "l")
    np.testing.assert_array_equal(store.read("f5"), noise[5][1]["features"].astype(np.float32))


def assert_corrupt(store, key: str) -> None:
    with pytest.raises(UserError, match="corrupt") as caught:
        store.read(key)
    assert key in str(caught.value) and str(store.path) in str(caught.value)


def test_corrupt_records_are_named(tmp_path):
    good = film(1, 50).astype(np.float32)
    folder = tmp_path / "npy"
    write_features(folder, [(k, good, {}) for k in "abc"], store_format="npy")
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-100])
    (folder / "b.npy").write_bytes(b"")
    np.save(folder / "c.npy", good[0])
    np.save(folder / "d.npy", np.array([{"an": "object"}]), allow_pickle=True)
    for key in "abcd":
        assert_corrupt(NpyFolderStore(folder), key)

    write_lmdb(tmp_path / "l", [("ok", {"features": good})])
    packed = pack_record({"features": good})
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0xFF
    with lmdb.open(str(tmp_path / "l")) as environment, environment.begin(write=True) as txn:
        txn.put(b"cut", packed[: len(packed) // 2])
        txn.put(b"bits", bytes(damaged))
        txn.put(b"text", b"hello")
        txn.put(b"flat", pack_record({"features": good[0]}))
    for key in ("cut", "bits", "text", "flat"):
        assert_corrupt(open_features(tmp_path / "l"), key)

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("group")
        file["words"] = ["a", "b"]
        file["ok"] = good
    for key in ("group", "words"):
        assert_corrupt(open_features(tmp_path / "a.h5"), key)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.h5"):
        open_features(tmp_path / "cut.h5").keys()


def test_what_is_no_store(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text, not HDF5")
    for name, words in [("absent", "not found"), ("empty", "no features"), ("file", "HDF5")]:
        with pytest.raises(UserError, match=words):
            open_features(tmp_path / name)


def test_a_default_path_without_its_suffix(tmp_path):
    write_features(tmp_path / "mad.h5", [("a", film(1, 5), {})], store_format="hdf5")
    assert open_features(tmp_path / "mad").keys() == ["a"]


def test_writers_never_overwrite(tmp_path):
    for store_format, name in NAMES.items():
        records = [("a", film(1, 5), {})]
        write_features(tmp_path / name, records, store_format=store_format)
        with pytest.raises(UserError, match="exists already"):
            write_features(tmp_path / name, records, store_format=store_format)


def test_a_killed_writer_leaves_no_store(tmp_path):
    def dies():
        yield "a", film(1, 5), {}
        raise KeyboardInterrupt

    for store_format in ("hdf5", "lmdb"):
        path = tmp_path / NAMES[store_format]
        with pytest.raises(KeyboardInterrupt):
            write_features(path, dies(), store_format=store_format)
        assert not path.exists()
        write_features(path, [("b", film(2, 5), {})], store_format=store_format)
        assert open_features(path).keys() == ["b"]


def test_formats_by_name():
    assert [guess_format(p) for p in ("a.h5", "b.hdf5", "c.lmdb", "d", "e.x")] == [
        "hdf5",
        "hdf5",
        "lmdb",
        "npy",
        "npy",
    ]


def test_a_film_is_not_loaded_for_a_slice(tmp_path, monkeypatch):
    """Reading 10 rows of a large film must touch few bytes, in both sliceable formats."""
    big = np.zeros((20_000, 64), np.float32)
    for store_format in ("npy", "hdf5"):
        path = tmp_path / NAMES[store_format]
        write_features(path, [("big", big, {})], store_format=store_format)
        store = open_features(path)
        tracemalloc.start()
        store.read("big", slice(5_000, 5_010))
        store.read("big", [5, 19_999])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000  # the film has 5 million bytes


def test_hard_linked_films_keep_memory_flat(tmp_path):
    folder = tmp_path / "many"
    write_features(folder, [("f0", film(1, 300), {})], store_format="npy")
    for number in range(1, 200):
        (folder / f"f{number}.npy").hardlink_to(folder / "f0.npy")
    store = open_features(folder)
    want = store.read("f0", slice(10, 20))
    for key in store.keys():  # noqa: SIM118 - a store, not a dict
        np.testing.assert_array_equal(store.read(key, slice(10, 20)), want)
    open_files = Path("/proc/self/fd")
    if open_files.exists():
        assert sum("many" in str(fd.resolve()) for fd in open_files.iterdir()) == 0


def test_what_would_grow_to_gigabytes_is_refused(tmp_path):
    """Few KB that stand for gigabytes: a compressed npz, HDF5 chunks that were never written."""
    import h5py

    huge = np.zeros((400_000, 64), np.float32)  # 102 MB of zeros compress a thousandfold
    write_lmdb(tmp_path / "lmdb", [("film", {"features": huge})])
    with pytest.raises(UserError, match="bytes stand for"):
        open_features(tmp_path / "lmdb").read("film")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("film", shape=(10**8, 768), chunks=(64, 768), dtype="f4")
    with pytest.raises(UserError, match="bytes stand for"):
        open_features(tmp_path / "a.h5").num_frames("film")


@pytest.mark.parametrize("keep", [0, 100, 4096, 0.5, 0.99])
def test_a_cut_lmdb_is_one_line(tmp_path, keep):
    rows = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    write_lmdb(tmp_path / "lmdb", [(f"film{i}", {"features": rows}) for i in range(4)])
    path = tmp_path / "lmdb" / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"cut|no LMDB|damaged"):
        open_features(tmp_path / "lmdb").read("film3")


@pytest.mark.parametrize("fps", ["0", "-1", "1e9", "null", '"5"', "NaN", "true"])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    np.save(tmp_path / "film.npy", np.ones((5, 4), np.float32))
    (tmp_path / "film.json").write_text(f'{{"feature_fps": {fps}}}')
    with pytest.raises(UserError, match="film"):
        open_features(tmp_path).metadata("film")


def test_values_that_are_not_finite_are_never_read(tmp_path):
    rows = np.ones((9, 4), np.float32)
    rows[5, 2] = np.inf
    np.save(tmp_path / "film.npy", rows)
    store = open_features(tmp_path)
    assert store.bad_rows("film") == "row 5 is not finite"
    assert np.isfinite(store.read("film", [0, 4])).all()
    with pytest.raises(UserError, match="not finite"):
        store.read("film")
