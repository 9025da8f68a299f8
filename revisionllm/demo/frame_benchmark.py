"""Questions that single frames answer, by frame similarity alone: ours against the plain baseline.

    python revisionllm/demo/frame_benchmark.py
    python revisionllm/demo/frame_benchmark.py --write     # the calibration that ships, too

Both see the same cosines, one frame per second. The baseline (`evaluation.baselines`) chooses its
settings on validation films; "not present" is fitted on them, too. Test films are shown alone.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

MINUTES, PRESENT, ABSENT = 60.0, 25, 10
VALIDATION, TEST = range(900, 906), range(950, 962)


def judged(split: str, seeds: range, clip, cache: Path) -> list[tuple]:
    """Per film: frame features [T, D] at one per second, sentences' [Q, D], their true spans."""
    from revisionllm.data.stores.feature_writers import save_npy
    from revisionllm.demo.training.film_features import film_features
    from revisionllm.demo.world.frame_questions import frame_questions
    from revisionllm.demo.world.plans import FILM_FPS, WORLD_VERSION, plan_film

    films = []
    cache.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = cache / f"{clip.fingerprint()}-w{WORLD_VERSION}-{split}-{seed}-1fps.npy"
        if not path.exists():
            step = {"first": 0, "step": round(FILM_FPS)}
            save_npy(path, film_features(seed, MINUTES * 60, split, clip, **step))
        rows = np.load(path, allow_pickle=False)
        asked = frame_questions(plan_film(seed, MINUTES * 60, split), PRESENT, ABSENT)
        _, sentences = clip.encode_texts([question.sentence for question in asked])
        films.append((rows, sentences.numpy(), [question.spans_s for question in asked]))
    return films


def is_hit(span, truth) -> bool:
    """IoU of at least 0.5 with any true span."""
    from revisionllm.metrics.recall import span_iou

    return bool(span_iou(np.array(span), np.array(truth)).max() >= 0.5)


def baseline_hits(films: list[tuple], merging) -> list[bool]:
    """Of all present questions, is the baseline's first span right?"""
    from revisionllm.demo.evaluation.baselines import retrieve
    from revisionllm.grounding.scores import frame_cosines

    return [
        is_hit(retrieve(cosines, 1.0, merging, 1)[0, :2], truth)
        for rows, sentences, truths in films
        for cosines, truth in zip(frame_cosines(rows, sentences), truths, strict=True)
        if truth
    ]


def our_moments(films: list[tuple], calibration=None) -> list[tuple]:
    """(best moment, true spans) of all questions."""
    from revisionllm.grounding.frame_spans import pieces_of
    from revisionllm.library.frames import FramedFilm, find_moments

    found = []
    for rows, sentences, truths in films:
        film = FramedFilm("", pieces_of(rows), 1.0, float(len(rows)))
        best = find_moments([film], sentences, calibration=calibration, top_k=1)
        found += [(row[0][1], truth) for row, truth in zip(best, truths, strict=True)]
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("out/frame_benchmark"))
    parser.add_argument("--write", action="store_true", help="keep the calibration with the CLIP")
    args = parser.parse_args(argv)

    def work() -> int:
        from revisionllm.demo.evaluation.baselines import Merging
        from revisionllm.files import MADE_BY, write_json
        from revisionllm.grounder import DEMO_WEIGHTS
        from revisionllm.grounding.calibration import fit_logistic, to_dict
        from revisionllm.library.frames import CALIBRATION
        from revisionllm.metrics.recall import bootstrap_interval
        from revisionllm.model.clip import load_clip

        clip = load_clip(DEMO_WEIGHTS / "clip", device="cpu")
        validation = judged("val", VALIDATION, clip, args.cache)
        test = judged("test", TEST, clip, args.cache)
        settings = itertools.product((0.6, 3.0, 5.0, 9.0), (0.5, 1.0, 1.5, 2.0), (8.0, 20.0, 40.0))
        best = max(
            (Merging(*values) for values in settings),
            key=lambda merging: np.mean(baseline_hits(validation, merging)),
        )
        fitting = our_moments(validation)
        parts = [moment.parts for moment, _ in fitting]
        table = {name: [part[name] for part in parts] for name in parts[0]}
        calibration = fit_logistic(table, [bool(truth) for _, truth in fitting])
        ours = our_moments(test, calibration)
        score = np.array([moment.score for moment, _ in ours])
        present = np.array([bool(truth) for _, truth in ours])
        rows = {
            "per-frame baseline": baseline_hits(test, best),
            "frame spans": [is_hit((s.start_s, s.end_s), t) for s, t in ours if t],
        }
        print(f"{len(test)} films of one hour, {present.sum()} present, {(~present).sum()} absent")
        for name, hits in rows.items():
            found = bootstrap_interval(np.array(hits, float))
            low, mean, high = (100 * x for x in (found.low, found.mean, found.high))
            print(f"{name:20} R1@0.5 {mean:.1f} [{low:.1f}, {high:.1f}]")
        lost, told = (score[present] < 0.5).mean(), (score[~present] < 0.5).mean()
        print(f"not present: {100 * told:.1f} % of absent, {100 * lost:.1f} % of present ones")
        if args.write:
            target = DEMO_WEIGHTS / "clip" / CALIBRATION
            write_json(target, to_dict(calibration) | {"made_by": MADE_BY})
            print(f"wrote {target}")
        return 0

    return run_entry_point(work, "frame_benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
