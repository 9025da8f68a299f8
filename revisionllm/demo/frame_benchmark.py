"""Questions that single frames answer, by frame similarity alone: ours against the plain baseline.

    python revisionllm/demo/frame_benchmark.py
    python revisionllm/demo/frame_benchmark.py --write     # the calibration that ships, too

Both see the same cosines, one frame per second. The baseline (`evaluation.baselines`) chooses its
settings on validation films; "not present" is fitted on them, too, with sentences about things that
the world does not have (`world.spoken`) among the absent ones. Test films are shown alone.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

MINUTES, PRESENT, ABSENT, TALK = 60.0, 25, 10, 10
VALIDATION, TEST = range(900, 906), range(950, 962)


@dataclass
class Judged:
    """A film's frame features [T, D] at one per second, and sentences about it: features [Q, D],
    tokens per word [Q], and true spans."""

    rows: np.ndarray
    features: np.ndarray
    tokens_per_word: np.ndarray
    truths: list[tuple]


def film_rows(
    split: str, seed: int, clip, cache: Path, minutes: float = MINUTES, fps: float = 1.0
) -> np.ndarray:
    """Frame features of a rendered film [T, D], `fps` per second, kept in `cache`."""
    from revisionllm.data.stores.feature_writers import save_npy
    from revisionllm.demo.training.film_features import film_features
    from revisionllm.demo.world.plans import FILM_FPS, WORLD_VERSION

    cache.mkdir(parents=True, exist_ok=True)
    length = "" if minutes == MINUTES else f"-{minutes:g}min"
    name = f"{clip.fingerprint()}-w{WORLD_VERSION}-{split}-{seed}{length}-{fps:.3g}fps.npy"
    if not (cache / name).exists():
        step = {"first": 0, "step": round(FILM_FPS / fps)}
        save_npy(cache / name, film_features(seed, minutes * 60, split, clip, **step))
    return np.load(cache / name, allow_pickle=False)


def judged(split: str, seeds: range, clip, cache: Path, num_talk: int = 0) -> list[Judged]:
    """Films of a split with their questions; `num_talk` quotes and paraphrases of what is said
    there, which no picture shows, are absent ones."""
    from revisionllm.demo.world.frame_questions import frame_questions
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.spoken import spoken_lines, spoken_questions

    films = []
    for seed in seeds:
        plan = plan_film(seed, MINUTES * 60, split)
        asked = frame_questions(plan, PRESENT, ABSENT)
        sentences, truths = [q.sentence for q in asked], [q.spans_s for q in asked]
        if num_talk:
            talk = spoken_questions(plan, spoken_lines(plan, split), num_talk)[: 2 * num_talk]
            sentences += [q.sentence for q in talk]
            truths += [()] * len(talk)
        _, features = clip.encode_texts(sentences)
        known = clip.tokens_per_word(sentences)
        rows = film_rows(split, seed, clip, cache)
        films.append(Judged(rows, features.numpy(), known, truths))
    return films


def is_hit(span, truth) -> bool:
    """IoU of at least 0.5 with any true span."""
    from revisionllm.metrics.recall import span_iou

    return bool(span_iou(np.array(span), np.array(truth)).max() >= 0.5)


def baseline_hits(films: list[Judged], merging) -> list[bool]:
    """Of all present questions, is the baseline's first span right?"""
    from revisionllm.demo.evaluation.baselines import retrieve
    from revisionllm.grounding.scores import frame_cosines

    return [
        is_hit(retrieve(cosines, 1.0, merging, 1)[0, :2], truth)
        for film in films
        for cosines, truth in zip(frame_cosines(film.rows, film.features), film.truths, strict=True)
        if truth
    ]


def our_moments(films: list[Judged], calibration=None) -> list[tuple]:
    """(best moment, true spans) of all questions."""
    from revisionllm.grounding.frame_spans import pieces_of
    from revisionllm.library.frames import FramedFilm, find_moments

    found = []
    for film in films:
        framed = FramedFilm("", pieces_of(film.rows), 1.0, float(len(film.rows)))
        options = {"calibration": calibration, "tokens_per_word": film.tokens_per_word}
        best = find_moments([framed], film.features, top_k=1, **options)
        found += [(row[0][1], truth) for row, truth in zip(best, film.truths, strict=True)]
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("out/frame_benchmark"))
    parser.add_argument("--write", action="store_true", help="keep the calibration with the CLIP")
    args = parser.parse_args(argv)

    def work() -> int:
        from revisionllm.constants import DEMO_WEIGHTS
        from revisionllm.demo.evaluation.baselines import Merging
        from revisionllm.files import MADE_BY, write_json
        from revisionllm.grounding.calibration import fit_logistic, to_dict
        from revisionllm.library.frames import CALIBRATION
        from revisionllm.metrics.recall import bootstrap_interval
        from revisionllm.model.clip import load_clip

        clip = load_clip(DEMO_WEIGHTS / "clip", device="cpu")
        validation = judged("val", VALIDATION, clip, args.cache, TALK)
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
