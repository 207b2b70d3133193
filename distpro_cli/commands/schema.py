"""distpro schema: print the schema of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the readable reference instead.")] = False,
) -> None:
    """Print the JSON Schema of a recipe, or its reference with --markdown."""
    from distpro_cli.recipe import reference

    typer.echo(reference.markdown() if markdown else reference.json_schema(), nl=False)
