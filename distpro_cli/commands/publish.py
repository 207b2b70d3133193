"""distpro publish: put a process on the Hugging Face hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from distpro_cli.commands.options import Force, Json, Quiet
from distpro_cli.commands.running import print_json
from distpro_cli.errors import DistproError, escaped


def publish(
    process: Annotated[str, typer.Argument(metavar="PROCESS", help="A process file or name.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A new repository is seen by its owner alone.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a process and a card written from what it says of itself on the Hugging Face hub (after hf auth login)."""
    from distpro_cli.process import hub
    from distpro_cli.process.card import card
    from distpro_cli.process.file import load_process
    from distpro_cli.process.library import find_process
    from distpro_cli.process.trust import places_of
    from distpro_cli.recipe.load import parse_recipe
    from distpro_cli.report.terminal import encodable, say

    hub.check_repo(repo)
    path = find_process(process)
    loaded = load_process(path)
    text = card(loaded, path.name, repo)
    try:
        places = places_of(parse_recipe(loaded.recipe))
    except DistproError:  # the recipe is of another version
        places = []
    if places and not quiet:
        print(escaped(f"the recipe inside names {', '.join(places)}; all will see it"), file=sys.stderr)
    address = f"hf://{repo}/{path.name}"
    if not dry_run:
        address = hub.publish(path, repo, text, private=private, force=force)
    if json:
        print_json({"process": address, "published": not dry_run, "card": text})
    elif dry_run:
        print(encodable(escaped(text, keep="\n"), sys.stdout.encoding), end="")
    else:
        say(f"published: {address}")
