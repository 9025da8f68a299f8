"""`revisionllm find VIDEO "sentence" ...`: ground sentences in any video file.

    revisionllm find film.mp4 "a red ball bounces on the beach" --view view.html
    revisionllm find film.mp4 "a dog on a beach" --model clip:ViT-B-32:laion2b_s34b_b79k
    revisionllm find library "a dog on a beach"          # made by `revisionllm index`
    revisionllm find library "a dog jumps" --model my_model --films 3

With an encoder alone no LLM is asked: spans come from the similarity of frames and sentence. In a
library the encoder looks at all films, and a model's runs at the best of them.

Results go to stdout (a table, or one JSON object per sentence with --json), progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revisionllm.errors import UserError
from revisionllm.files import claim_output
from revisionllm.grounder import (
    DEFAULT_BUDGET,
    DEFAULT_CHECKPOINT,
    DEFAULT_KEEP,
    SEARCHES,
    check_sentences,
    default_features_dir,
)
from revisionllm.library.cut import add_cut_options
from revisionllm.library.words import add_words_option
from revisionllm.model.hub import path_argument

if TYPE_CHECKING:
    from revisionllm.library.model_file import ModelFile
    from revisionllm.library.shared import SharedLibrary
    from revisionllm.library.store import Library
    from revisionllm.records.predictions import Prediction

    Answers = list[tuple[Path, Prediction]]  # films, and predictions about them

NOTHING_FOUND = 3  # exit code of --exit-code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("video", type=_place, help="any video file, or a library")
    parser.add_argument("sentences", nargs="+", metavar="sentence", help="what to look for")
    parser.add_argument("--top-k", type=int, default=5, help="moments per sentence (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per sentence")
    parser.add_argument("--view", type=Path, metavar="HTML", help="also write a page that shows it")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="also write a clip of each moment")
    add_words_option(parser.add_argument)
    parser.add_argument(
        "--snap",
        choices=["shots"],
        help="moments, and the windows of --grounder, begin and end with cuts that are within 2 s"
        " (pip install scenedetect)",
    )
    add_cut_options(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that this project did not make"
    )
    parser.add_argument(
        "--model",
        help="an encoder alone: clip:NAME:TAG of open_clip, clip:FOLDER, hf:owner/name; or a folder"
        " with a model.json (an encoder and runs above it); or demo",
    )
    parser.add_argument(
        "--films",
        type=int,
        default=3,
        help="of a library: films that levels above the encoder read, per sentence (%(default)s)",
    )
    parser.add_argument("--checkpoint", type=path_argument, help="run folder (the demo's)")
    parser.add_argument(
        "--grounder",
        help="another model for dense windows, below the encoder of --model or of the library:"
        " http://host:port/v1#model, vlm:FOLDER or vlm:hf:owner/name (docs/grounders.md)",
    )
    parser.add_argument(
        "--grounder-profile", type=Path, metavar="TOML", help="how it is asked; unset: by its name"
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=DEFAULT_BUDGET,
        help="windows per sentence that --grounder is asked about; with --search exhaustive it is"
        " asked about all (%(default)s)",
    )
    parser.add_argument(
        "--exit-code", action="store_true", help="exit with 3 if no sentence was found"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="found means a score of at least this (0.5)"
    )
    parser.add_argument(
        "--long",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of the long stage for coarse levels, the coarsest first",
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="planned",
        help="planned: coarse to fine, the cheapest way (default) | recursive: through all levels"
        " | exhaustive: every window",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=DEFAULT_KEEP,
        help=f"segments the coarse level keeps, times the root of their number ({DEFAULT_KEEP})",
    )
    parser.add_argument(
        "--features-dir",
        type=Path,
        default=None,
        help=f"where frame features are kept for the next call ({default_features_dir()})",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _place(text: str) -> Path | str:
    from revisionllm.library.shared import is_url

    return text if is_url(text) else Path(text)


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from revisionllm.library.cut import take_away
    from revisionllm.library.markers import check_markers
    from revisionllm.library.shared import open_library
    from revisionllm.library.shots import check_shots

    check_sentences(args.sentences)
    if args.snap:
        check_shots()
    read = [args.video] if isinstance(args.video, Path) else []
    if args.view:
        claim_output(args.view, inputs=read, overwrite=args.overwrite)
    library = open_library(args.video)
    model = _model(args, library)
    if library is not None and args.model and model.is_alone:
        raise UserError(
            f"{args.video} is a library, searched by its own encoder: no --model {args.model}"
        )
    for path in args.markers:
        check_markers(path, inputs=read, overwrite=args.overwrite)
    if library is not None:
        answers = find_in_library(args, model, library)
    else:
        answers = find_in_film(args, model)
    if args.cut or args.markers:
        take_away(answers, args, args.cut, args.top_k)
    was_found = any(prediction.found for _, prediction in answers)
    return NOTHING_FOUND if args.exit_code and not was_found else 0


def _model(args: argparse.Namespace, library: Library | SharedLibrary | None) -> ModelFile:
    """What searches, by --model, --checkpoint and --long, or --grounder; what they leave open is
    the library's encoder, or `default_model`.

    Raises:
        UserError: they contradict each other.
    """
    from revisionllm.library.model_file import ModelFile, default_model, read_model

    of_runs = [f"--{name}" for name in ("checkpoint", "long") if getattr(args, name)]
    others = [f"--{name}" for name in ("model", "grounder") if getattr(args, name)]
    if of_runs and others:
        raise UserError(f"{others[0]} and {of_runs[0]}: give one of them")
    if args.budget < 1:
        raise UserError(f"--budget {args.budget}: at least 1 window")
    if of_runs:
        model = ModelFile("", str(args.checkpoint or DEFAULT_CHECKPOINT), tuple(args.long))
    elif args.model or library is None:
        args.model = args.model or default_model([args.video])
        model = read_model(args.model)
    else:
        model = ModelFile(library.encoder)
    if args.grounder:
        model = model.above(args.grounder)
    if args.grounder_profile:
        if model.grounder is None:
            raise UserError("--grounder-profile: of which --grounder?")
        model = replace(model, profile=args.grounder_profile)
    return model


def find_in_library(
    args: argparse.Namespace, model: ModelFile, library: Library | SharedLibrary
) -> Answers:
    """Search all films of a library by its encoder, and the best by a model's levels, if any."""
    from revisionllm.library.find import LibrarySearch

    searching = LibrarySearch(
        library,
        None if model.is_alone else model,
        best_films=args.films,
        device=args.device,
        options=_search_options(args),
        words=args.words,
        snap=bool(args.snap),
    )
    found = searching.find(args.sentences, threshold=args.threshold, top_k=args.top_k)
    for sentence, answers in zip(args.sentences, found, strict=True):
        if args.json:
            for film, prediction in answers:
                print(as_json(film, prediction))
            continue
        print(sentence)
        ranked = [(m, film) for film, answer in answers if answer.found for m in answer.moments]
        ranked.sort(key=lambda pair: -pair[0].score)
        for rank, (moment, film) in enumerate(ranked, 1):
            print(f"  {rank}. {_span(moment)}  score {moment.score:.2f}  {film}{_quoted(moment)}")
        if not ranked:
            print(f"  not present in {len(searching.films)} films")
    if args.view:
        from revisionllm.viewer.library_page import write_library_view

        write_library_view(args.view, found, num_films=len(searching.films))
        print(f"wrote {args.view}", file=sys.stderr)
    return [answer for answers in found for answer in answers]


def _search_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"search": args.search, "keep": args.keep, "budget": args.budget, "verbose": True}


def find_in_film(args: argparse.Namespace, model: ModelFile) -> Answers:
    """Search one film."""
    from revisionllm.data.video import probe
    from revisionllm.library.film_search import FilmSearch

    probe(args.video)  # a bad file is told before the model is loaded
    searching = FilmSearch(
        model,
        device=args.device,
        features_dir=args.features_dir,
        words=args.words,
        run=args.model,
        snap=bool(args.snap),
    )
    film, predictions = searching.find(
        args.video,
        args.sentences,
        threshold=args.threshold,
        top_k=args.top_k,
        **_search_options(args),
    )
    num_windows = searching.num_windows(film)
    for prediction in predictions:
        as_line = as_json(args.video, prediction) if args.json else None
        print(as_line or as_text(prediction, num_windows))
    if args.view:
        from revisionllm.viewer.page import write_view

        write_view(
            args.view,
            video_path=film.video_path,
            duration_s=film.duration_s,
            predictions=predictions,
            num_windows=num_windows,
        )
        print(f"wrote {args.view}", file=sys.stderr)
    return [(args.video, prediction) for prediction in predictions]


def as_json(film: Path, prediction: Prediction) -> str:
    """One line of `--json`: the prediction and its film (docs/json.md)."""
    return json.dumps(prediction.to_json() | {"film": str(film)})


def _span(moment) -> str:
    from revisionllm.records.clock import clock

    return f"{clock(moment.start_s, 1)} - {clock(moment.end_s, 1)}"


def _quoted(moment) -> str:
    how = "on screen" if moment.level == "screen" else "said"
    return f'  {how}: "{moment.said}"' if moment.said else ""


def as_text(prediction, num_windows: int | None) -> str:
    """A prediction as a few lines for people.

    Args:
        num_windows: of the film; None: no windows were asked.
    """
    visited = "frames alone"
    if num_windows is not None:
        visited = f"{prediction.cost.dense_windows} of {num_windows} windows"
    lines = [f"{prediction.query}"]
    if not prediction.found:
        best = prediction.moments[0].score if prediction.moments else 0.0
        lines.append(f"  not present (best candidate scores {best:.2f}; {visited})")
        return "\n".join(lines)
    for rank, moment in enumerate(prediction.moments, 1):
        lines.append(f"  {rank}. {_span(moment)}  score {moment.score:.2f}{_quoted(moment)}")
    return "\n".join([*lines, f"  ({visited})"])
