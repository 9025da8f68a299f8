"""What `find --snap shots` is worth: spans of the encoder alone, as they are and snapped to cuts.

    python revisionllm/demo/snap_benchmark.py

Rendered films of ten minutes; questions that single frames answer.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

SEEDS, FILM_S, COUNT = range(990, 998), 600.0, 20


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.parse_args(argv)

    def work() -> int:
        from revisionllm.constants import DEMO_WEIGHTS
        from revisionllm.demo.world.frame_questions import frame_questions
        from revisionllm.demo.world.plans import plan_film
        from revisionllm.demo.world.render import write_film
        from revisionllm.library.film_search import FilmSearch
        from revisionllm.library.model_file import read_model
        from revisionllm.library.shots import check_shots, cuts_between, snap
        from revisionllm.metrics.recall import span_iou

        check_shots()
        model = read_model(f"clip:{DEMO_WEIGHTS / 'clip'}")
        overlaps: dict[str, list[float]] = {"as found": [], "snapped": []}
        seen, true, right = 0, 0, 0
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            searching = FilmSearch(model, features_dir=folder, device="cpu")
            for seed in SEEDS:
                plan, video = plan_film(seed, FILM_S, "test"), folder / f"{seed}.mp4"
                write_film(plan, video)
                asked = frame_questions(plan, COUNT, 0)
                _, found = searching.find(video, [one.sentence for one in asked], top_k=1)
                for question, prediction in zip(asked, found, strict=True):
                    snapped = copy.deepcopy(prediction.moments)
                    snap(video, snapped)
                    for name, moments in (("as found", prediction.moments), ("snapped", snapped)):
                        span = [moments[0].start_s, moments[0].end_s] if moments else [0.0, 0.0]
                        truth = np.array(question.spans_s)
                        overlaps[name].append(float(span_iou(np.array(span), truth).max()))
                cuts = np.array(cuts_between(video, 0.0, FILM_S))
                shots = np.array([shot.start_s for shot in plan.shots[1:]])
                near = np.abs(cuts[:, None] - shots) < 0.25
                seen, true = seen + len(cuts), true + len(shots)
                right += int(near.any(axis=0).sum())
        print(f"cuts: {right} of {true} shots, {seen} told")
        for name, values in overlaps.items():
            row = np.array(values)
            rates = ", ".join(
                f"R1@{bar} {100 * (row >= bar).mean():.1f}" for bar in (0.5, 0.7, 0.9)
            )
            print(f"{name:10} {rates}, mIoU {100 * row.mean():.1f}  ({len(row)} sentences)")
        return 0

    return run_entry_point(work, "snap_benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
