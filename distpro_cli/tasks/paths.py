"""Paths as a user writes them. Stands in for `distpro_cli.recipe.shipped.expand_path`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from distpro_cli.errors import DistproError


def expand_path(text: str) -> Path:
    """Returns the path with ~ and variables expanded; an unset variable is a DistproError naming it."""
    expanded = os.path.expandvars(text)
    left = re.search(r"\$\{?(\w+)", expanded)
    if left:
        raise DistproError(f"'{text}': the environment variable {left.group(1)} is not set")
    return Path(expanded).expanduser()
