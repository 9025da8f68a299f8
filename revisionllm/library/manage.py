"""`revisionllm library`: what an index holds, and taking films out.

revisionllm library list library
revisionllm library remove library films/old.mp4
revisionllm library verify library
revisionllm library move library old_disk/films new_disk/films
revisionllm library share library s3://bucket/library
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from revisionllm.errors import EXIT_BAD_INPUT, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `revisionllm library`."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    helps = {
        "list": "its films",
        "info": "encoder, rate, films, hours, bytes",
        "verify": "read every row; exit code 2 if something is damaged, or a film has gone",
        "remove": "take films out with their features; the films themselves stay",
        "share": "bring a copy for other machines up to date, in a folder or an object store (pip"
        " install lancedb)",
        "move": "tell it that films were moved, by you, from one folder to another",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("library", type=Path, help="folder of the index")
        if name == "remove":
            command.add_argument("films", nargs="+", metavar="FILM", help="path as in `list`")
        if name == "share":
            command.add_argument("place", metavar="PLACE", help="s3://bucket/library, or a folder")
        if name == "move":
            command.add_argument("old", metavar="OLD", help="folder or film, as in `list`")
            command.add_argument("new", type=Path, metavar="NEW", help="where it is now")


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; returns its exit code."""
    from revisionllm.library.store import Library
    from revisionllm.library.words import LEVELS, WordsIndex
    from revisionllm.records.clock import clock

    library = Library(args.library)
    films = library.films()
    if args.command == "list":
        for film in films:
            print(f"{film.film_id}  {clock(film.duration_s)}  {film.path}")
    elif args.command == "share":
        from revisionllm.library.shared import share

        added, removed = share(library, args.place)
        print(f"{args.place}: {len(films)} films, {added} added, {removed} removed")
    elif args.command == "info":
        size = sum(f.stat().st_size for f in args.library.rglob("*") if f.is_file())
        hours = sum(film.duration_s for film in films) / 3600
        print(f"encoder: {library.encoder} ({library.fingerprint})")
        print(f"{len(films)} films, {hours:.1f} hours, {library.feature_fps:g} frames per second")
        for name, level in LEVELS.items():
            if (library.folder / name).is_file():
                index = WordsIndex(library.folder / name)
                counts = index.counts()
                by = f"sentence encoder {index.place}" if index.place else "by words alone"
                print(f"{level}: {sum(counts.values())} passages in {len(counts)} films, {by}")
        print(f"{size / 1e6:.1f} MB")
    elif args.command == "remove":
        wanted = {os.path.abspath(name): name for name in args.films}
        chosen = [film for film in films if str(film.path) in wanted]
        unknown = wanted.keys() - {str(film.path) for film in chosen}
        if unknown:
            raise UserError(f"{wanted[min(unknown)]} is not in {args.library}; see `list`")
        for film in chosen:
            library.remove(film)
            print(f"removed {film.path}")
    elif args.command == "move":
        _move(library, films, Path(os.path.abspath(args.old)), args.new)
    else:
        return _verify(library, films)
    return 0


def _move(library, films, old: Path, new: Path) -> None:
    """Note new places of films; nothing is noted unless all of them are there."""
    moved = [film for film in films if film.path == old or old in film.path.parents]
    places = [new / film.path.relative_to(old) if film.path != old else new for film in moved]
    if not moved:
        raise UserError(f"no film of {library.folder} is in {old}; see `list`")
    for film, place in zip(moved, places, strict=True):
        if not place.is_file():
            raise UserError(f"no film {place}, where {film.path} should be now")
        if not library.has_size_of(film, place):
            raise UserError(f"{place} is not {film.path}: another size; index it instead")
    for film, place in zip(moved, places, strict=True):
        library.note_place(film.film_id, place)
        print(f"{film.path} -> {place}")


def _verify(library, films) -> int:
    from revisionllm.data.stores.feature_store import open_features

    store = open_features(library.folder / "films")
    problems = []
    for film in films:
        try:
            bad = store.bad_rows(film.film_id)
            if not bad and not library.fits(film):
                bad = "its pieces are not those of its rows; remove it and index it again"
        except UserError as error:
            bad = str(error)
        if bad:
            problems.append(f"{film.path}: {bad}")
        if not film.path.exists():
            problems.append(f"{film.path}: gone; it can be searched, not shown or cut")
    for problem in problems:
        print(problem)
    print(f"{len(films)} films, {len(problems)} problems")
    return EXIT_BAD_INPUT if problems else 0
