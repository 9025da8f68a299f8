"""Time and memory of scoring at MAD's test size: 72,044 queries, 50 predictions each.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --queries 2000            # a quick look

Writes a predictions file in our schema into a temporary folder, then times `revisionllm eval score`
in a process of its own (reading included) and the same measures from a naive reference on a sample.
Target: 20 s and 2 GB on 2 cores.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from revisionllm.options import Parser

NUM_QUERIES, NUM_PREDICTIONS, NUM_FILMS = 72_044, 50, 112  # MAD test
MAX_SECONDS, MAX_GIGABYTES = 20.0, 2.0
SCORE = "from revisionllm.cli import main; raise SystemExit(main())"


def write_predictions(path: Path, num_queries: int, num_predictions: int) -> None:
    """A file of random predictions with ground truth; a few are near the truth."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(num_queries):
            starts = rng.uniform(0, 6600, num_predictions).round(3)
            lengths = rng.uniform(0.5, 12, num_predictions).round(3)
            scores = np.sort(rng.uniform(0, 1, num_predictions))[::-1].round(6)
            rows = zip(starts.tolist(), (starts + lengths).tolist(), scores.tolist(), strict=True)
            parts = {"presence": 0.93, "entropy": 0.21, "cosine": 0.27}
            moments = [
                {"start_s": s, "end_s": e, "score": p, "parts": parts, "level": "dense"}
                for s, e, p in rows
            ]
            hit = int(rng.integers(0, 2 * num_predictions))
            near = moments[hit % num_predictions]
            shift = 0.3 if hit < num_predictions else 500.0
            gt = [[near["start_s"] + shift, near["end_s"] + shift]]
            record = {"schema": 1, "qid": str(index), "vid": f"film_{index % NUM_FILMS}"}
            record |= {"query": "a man opens a door", "duration_s": 6700.0, "found": True}
            record |= {"moments": moments, "status": "ok", "reason": None, "run": "", "gt": gt}
            cost = {"dense_windows": 105, "segments": 0, "llm_tokens": 900, "seconds": 3.0}
            file.write(json.dumps(record | {"cost": cost}) + "\n")


def timed_score(path: Path) -> tuple[dict, float, float, float]:
    """Run `eval score` in its own process: (report, seconds, processor seconds, peak gigabytes)."""
    command = [sys.executable, "-c", SCORE, "eval", "score", str(path), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[1]
    )
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = usage.ru_utime + usage.ru_stime
    return json.loads(done.stdout), seconds, busy, usage.ru_maxrss / 2**20


def naive_recall(path: Path) -> dict[str, float]:
    """R@k by the definition, in plain Python: the reference in the same run."""
    hits: dict[str, int] = {}
    count = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            count += 1
            true_s, true_e = record["gt"][0]
            ious = []
            for moment in record["moments"]:
                overlap = min(moment["end_s"], true_e) - max(moment["start_s"], true_s)
                overlap = max(0.0, overlap)
                union = (moment["end_s"] - moment["start_s"]) + (true_e - true_s) - overlap
                ious.append(overlap / union)
            for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
                for rank in (1, 5, 10, 50):
                    name = f"R{rank}@{threshold:g}"
                    hits[name] = hits.get(name, 0) + any(i >= threshold for i in ious[:rank])
    return {name: 100 * number / count for name, number in hits.items()}


def main(argv: list[str] | None = None) -> int:
    """Print time, memory and agreement with the naive reference; 1 if a limit is exceeded."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=NUM_QUERIES)
    parser.add_argument("--predictions", type=int, default=NUM_PREDICTIONS)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        write_predictions(path, args.queries, args.predictions)
        size = path.stat().st_size / 2**20
        report, seconds, busy, gigabytes = timed_score(path)
        began = time.perf_counter()
        naive = naive_recall(path)
        naive_seconds = time.perf_counter() - began
    furthest = max(abs(report["recall"][name] - value) for name, value in naive.items())
    print(f"{args.queries} queries x {args.predictions} predictions, file of {size:.0f} MiB")
    print(f"eval score (reading, all measures, 1000 resamples): {seconds:.1f} s ", end="")
    print(f"({busy:.1f} s of processor time), peak {gigabytes:.2f} GiB")
    print(f"naive recall alone: {naive_seconds:.1f} s; largest difference {furthest:.1e} points")
    fits = seconds < MAX_SECONDS and gigabytes < MAX_GIGABYTES and furthest < 1e-9
    print("within" if fits else "OVER", f"the limits: {MAX_SECONDS:g} s, {MAX_GIGABYTES:g} GiB")
    return 0 if fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
