"""What `find --snap shots` is worth: spans of the encoder alone, as they are and snapped to cuts.

    python revisionllm/demo/snap_benchmark.py
    python revisionllm/demo/snap_benchmark.py --windows

Rendered films of ten minutes; questions that single frames answer. With --windows instead: what
dense windows of our own would gain that begin with the nearest shot (the true ones), on events of
films of an hour, every window read.
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
HOURS, HOUR_EVENTS = range(980, 986), 30  # films of an hour, and sentences of each
REACHES_S = (0.0, 2.0, 15.0)  # how far a window may be moved; 0: not at all


def moved_windows(cache: Path) -> dict[float, list[float]]:
    """IoU of the best moment of each event, by how far windows are moved to the nearest shot."""
    from dataclasses import replace

    from revisionllm.demo.films import film_sentences
    from revisionllm.demo.frame_benchmark import film_rows
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.grounder import DEFAULT_CHECKPOINT, Grounder
    from revisionllm.grounding.levels import Level
    from revisionllm.grounding.windows import Window
    from revisionllm.metrics.recall import span_iou
    from revisionllm.records.films import Film
    from revisionllm.search.cost import Plan

    class Moved(Level):
        shots_s, reach_s = np.zeros(0), 0.0

        def grid(self, duration_s: float) -> list[Window]:
            moved = []
            for window in super().grid(duration_s):
                at = self.shots_s[np.abs(self.shots_s - window.start_s).argmin()]
                may = 0 < window.start_s < duration_s - self.window_s
                if may and abs(at - window.start_s) <= self.reach_s:
                    start_s = float(min(at, duration_s - self.window_s))
                    window = replace(window, start_s=start_s, end_s=start_s + self.window_s)
                moved.append(window)
            return moved

    class MovedGrounder(Grounder):
        def plans(self, *_args, **_options) -> list[Plan]:
            dense = Moved("dense", "dense", self.config.window_s, self.config.stride_s)
            return [Plan("exhaustive", (dense,), "exhaustive")]

    grounder = MovedGrounder.from_checkpoint(DEFAULT_CHECKPOINT, device="cpu")
    overlaps: dict[float, list[float]] = {reach_s: [] for reach_s in REACHES_S}
    for seed in HOURS:
        plan = plan_film(seed, 3600.0, "test")
        Moved.shots_s = np.array([shot.start_s for shot in plan.shots[1:]])
        rows = film_rows("test", seed, grounder.clip, cache, 60.0, grounder.feature_fps)
        film = Film(str(seed), rows, grounder.feature_fps, plan.duration_s)
        asked = film_sentences(plan, HOUR_EVENTS, 0)
        for Moved.reach_s, found in overlaps.items():
            answers = grounder.ground(film, [one.sentence for one in asked])
            for one, answer in zip(asked, answers, strict=True):
                best = answer.moments[0]
                found.append(float(span_iou([best.start_s, best.end_s], one.span_s)))
        print(f"film {seed}", file=sys.stderr)
    return overlaps


def told(name: str, overlaps: list[float]) -> str:
    """A line of recalls."""
    row = np.array(overlaps)
    rates = ", ".join(f"R1@{bar} {100 * (row >= bar).mean():.1f}" for bar in (0.5, 0.7, 0.9))
    return f"{name:10} {rates}, mIoU {100 * row.mean():.1f}  ({len(row)} sentences)"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", action="store_true", help="of our own runs, instead")
    parser.add_argument("--cache", type=Path, default=Path("out/frame_benchmark"))
    args = parser.parse_args(argv)

    def work() -> int:
        if args.windows:
            for reach_s, overlaps in moved_windows(args.cache).items():
                print(told(f"{reach_s:g} s", overlaps))
            return 0
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
            print(told(name, values))
        return 0

    return run_entry_point(work, "snap_benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
