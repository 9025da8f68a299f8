"""Writes sets of demo films with annotations in MAD's own JSON format.

    python revisionllm/demo/films.py --out data/demo --split test --films 6

A set is a folder with `<film>.mp4`, `annotations.json` (sentences that are true of one event each)
and `absent.json` (the same format with empty timestamps: sentences that are true of nothing in
their film).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import UserError, run_entry_point
from revisionllm.files import write_json
from revisionllm.options import Parser

if TYPE_CHECKING:
    from revisionllm.demo.world.language import Description


@dataclass(frozen=True)
class FilmSentence:
    """A sentence about a film; `span_s` is None if nothing in the film makes it true."""

    query_id: str
    sentence: str
    span_s: tuple[float, float] | None
    description: Description | None = None  # what it says


def film_sentences(plan, num_present: int, num_absent: int, seed: int = 0) -> list[FilmSentence]:
    """Present sentences, then absent ones, with ids that are unique over films.

    Raises:
        ValueError: the film has too few events.
    """
    from revisionllm.demo.world.language import film_queries

    present, absent = film_queries(plan, num_present, num_absent, seed)
    return [
        FilmSentence(
            f"{plan.film_id}_{number:04d}", query.sentence, query.span_s, query.description
        )
        for number, query in enumerate([*present, *absent])
    ]


def mad_record(plan, sentence: FilmSentence) -> dict:
    """One entry of MAD's annotation file; times rounded to 0.1 s."""
    span = [round(time_s, 1) for time_s in sentence.span_s or ()]
    return {
        "movie": plan.film_id,
        "sentence": sentence.sentence,
        "timestamps": span,
        "ext_timestamps": span,
        "movie_duration": plan.duration_s,
    }


def write_annotations(path: Path, records: dict[str, dict]) -> None:
    """Write a JSON annotation file atomically."""
    write_json(path, records, indent=1)


def write_film_set(
    folder: Path,
    seeds: range,
    *,
    split: str,
    duration_s: float,
    num_present: int,
    num_absent: int,
    videos: bool = True,
) -> None:
    """Render films and write their annotations. Films that are there already are kept.

    Raises:
        UserError: a film is too short for that many sentences.
    """
    from tqdm import tqdm

    from revisionllm.data.video_file import film_comment
    from revisionllm.demo.world.plans import plan_film
    from revisionllm.demo.world.render import film_tag, write_film

    folder.mkdir(parents=True, exist_ok=True)
    present, absent = {}, {}
    for seed in tqdm(seeds, desc=f"{split} films", disable=not videos):
        try:
            plan = plan_film(seed, duration_s, split)
            sentences = film_sentences(plan, num_present, num_absent)
        except ValueError as error:
            raise UserError(f"cannot make film {seed}: {error}; try a longer --minutes") from error
        for sentence in sentences:
            records = absent if sentence.span_s is None else present
            records[sentence.query_id] = mad_record(plan, sentence)
        path = folder / f"{plan.film_id}.mp4"
        if videos and path.exists() and film_comment(path) != film_tag():
            raise UserError(f"{path} was made by another version, or by others; move it away")
        if videos and not path.exists():
            write_film(plan, path)
    write_annotations(folder / "annotations.json", present)
    write_annotations(folder / "absent.json", absent)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/demo"), help="folder to write; <out>/<split>/...")
    add("--split", choices=("train", "val", "test"), default="test", help="cast and wording (test)")
    add("--films", type=int, default=6, help="number of films (6)")
    add("--first_seed", type=int, default=0, help="seed of the first film (0)")
    add("--minutes", type=float, default=60.0, help="length of a film (60)")
    add("--present", type=int, default=25, help="true sentences per film (25)")
    add("--absent", type=int, default=10, help="sentences true of nothing per film (10)")
    add("--annotations_only", action="store_true", help="write no mp4 files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    args = build_parser().parse_args(argv)

    def work() -> int:
        write_film_set(
            args.out / args.split,
            range(args.first_seed, args.first_seed + args.films),
            split=args.split,
            duration_s=args.minutes * 60,
            num_present=args.present,
            num_absent=args.absent,
            videos=not args.annotations_only,
        )
        print(f"wrote {args.out / args.split}")
        return 0

    return run_entry_point(work, "films")


if __name__ == "__main__":
    raise SystemExit(main())
