"""`revisionllm data check RECIPE`: everything that is wrong with a recipe and its data.

    revisionllm data check my.toml

Nothing is trained, and no LLM is loaded. Exit code 2 if there is a problem.
"""

from __future__ import annotations

import argparse
import sys

from revisionllm.errors import UserError
from revisionllm.train.cli import wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `revisionllm data check`."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "report everything that is wrong with a recipe and its data, before any training"
    check = commands.add_parser("check", help=text, description=text)
    check.add_argument("recipe", metavar="RECIPE", help="mad, chapters, demo, or a .toml file")
    check.add_argument("--stages", nargs="+", metavar="STAGE", help="of the recipe's (all)")


def run(args: argparse.Namespace) -> int:
    """Check the recipe's stages and print what each will ask.

    Raises:
        UserError: something is wrong; every problem of every stage stands in it.
    """
    from revisionllm.train.arguments import parse
    from revisionllm.train.stages import read_recipe

    stages = read_recipe(args.recipe)
    written = {stage.defaults.get("output_dir") for stage in stages.values()}
    problems, lines = [], []
    for words in wanted(args):
        given = parse(["--recipe", args.recipe, *words])
        found, said = check_stage(given, written)
        problems += [f"{given.stage}: {problem}" for problem in found]
        lines += [f"{given.stage}: {line}" for line in said]
    for line in lines:
        print(line)
    if problems:
        for problem in problems:
            print(f"- {problem}", file=sys.stderr)
        raise UserError(f"{args.recipe}: {len(problems)} problems, listed above")
    return 0


def check_stage(args, written: set[str]) -> tuple[list[str], list[str]]:
    """A stage's problems, and what it will ask if there are none; what an earlier stage of the
    recipe writes need not be there."""
    from revisionllm.train.arguments import argument_problems
    from revisionllm.train.train import sample_spec

    made = ("init_projector", "init_lora", "init_adapter")
    later = [name for name in made if getattr(args, name) in written]
    problems = [p for p in argument_problems(args) if not any(f"--{name} " in p for name in later)]
    if problems:
        return problems, []
    from revisionllm.train.dataset import build_dataset

    sets = {"": (args.data_path, args.features, args.text_features)}
    if args.val_data_path:
        sets["validation: "] = (
            args.val_data_path,
            args.val_features or args.features,
            args.val_text_features or args.text_features,
        )
    said: list[str] = []
    for name, (files, features, text_features) in sets.items():
        try:
            dataset = build_dataset(
                sample_spec(args, reads_sentence=args.reads_sentence),
                annotations=files,
                features=features,
                text_features=text_features,
                seed=args.seed,
                skip_bad=args.skip_bad,
            )
        except UserError as error:
            problems.append(f"{name}{error}")
        else:
            said += [f"{name}{line}" for line in dataset.report()]
    return problems, said
