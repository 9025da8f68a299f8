"""The `revisionllm` command: a table of verbs, each a module with `add_arguments` and `run`.

`revisionllm --help` and `revisionllm VERB --help` import nothing heavy: verb modules keep torch and
friends inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from revisionllm import __version__
from revisionllm.errors import run_entry_point
from revisionllm.options import OutOfRange, Parser

# verb -> (module with add_arguments(parser) and run(args) -> exit code, one line of help)
VERBS = {
    "demo": ("revisionllm.demo.cli", "render a film, ground sentences in it, write out/demo/"),
    "find": ("revisionllm.find", "ground sentences in any video file, or in a library of them"),
    "index": ("revisionllm.library.index", "read films once, for `find` to search all of them"),
    "app": ("revisionllm.app", "search an index of films in the browser"),
    "serve": ("revisionllm.service.serve", "an index of films over HTTP"),
    "mcp": ("revisionllm.service.mcp_tools", "an index of films as tools for agents"),
    "library": ("revisionllm.library.manage", "list, verify or remove films of an index"),
    "cut": ("revisionllm.library.cut", "moments as clips, and as markers for editors"),
    "features": ("revisionllm.data.features_cli", "extract, convert, verify or describe features"),
    "data": ("revisionllm.train.data_cli", "check a recipe and its data before training"),
    "train": ("revisionllm.train.cli", "train the stages of a recipe, one's own or a shipped one"),
    "eval": ("revisionllm.eval.cli", "score predictions, compare runs"),
    "run": ("revisionllm.train.run_cli", "export, push, or take out of an unfinished training"),
    "doctor": ("revisionllm.doctor", "what is installed, what this machine can do, a self-test"),
    "models": ("revisionllm.model.models_cli", "what is installed; download more"),
    "convert-checkpoint": ("revisionllm.model.convert", "released checkpoint -> run folder"),
    "convert-data": ("revisionllm.interop.cli", "convert between the field's file formats"),
}

PASSES_ON = ("train",)  # verbs whose further flags are another program's


def build_parser(only_verb: str | None = None) -> argparse.ArgumentParser:
    """Build the parser with the arguments of `only_verb` alone, so that others cost nothing."""
    parser = Parser(
        prog="revisionllm", description="Find when an event happens in an hour-long video."
    )
    parser.add_argument("--version", action="version", version=f"revisionllm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (module_name, help_text) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=help_text, description=help_text)
        if verb == only_verb:
            module = importlib.import_module(module_name)
            module.add_arguments(verb_parser)
            verb_parser.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code (2: bad input)."""
    argv = sys.argv[1:] if argv is None else argv
    verb = next((word for word in argv if not word.startswith("-")), None)
    try:
        parser = build_parser(only_verb=verb)
        if verb in PASSES_ON:
            args, args.flags = parser.parse_known_args(argv)
        else:
            args = parser.parse_args(argv)
    except OutOfRange as error:
        return error.code
    return run_entry_point(lambda: args.run(args), f"revisionllm {args.verb}")


if __name__ == "__main__":
    raise SystemExit(main())
