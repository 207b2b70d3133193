"""Named network families: what is not timm's. A new family is one file and one decorator.

Names are compared in lower case with `-` read as `_`, so that WRN-16-2 is wrn_16_2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import nn

Builder = Callable[..., nn.Module]
BuilderT = TypeVar("BuilderT", bound=Builder)


@dataclass(frozen=True)
class Family:
    """A builder and the names it answers to.

    Attributes:
        pattern: Matches a whole name; its named groups (numbers) become keyword arguments of `build`.
        names: Usual names, for listings and for nearest-name help.
        build: Takes the pattern's groups, `num_classes` and the recipe's options.
    """

    pattern: re.Pattern[str]
    names: tuple[str, ...]
    build: Builder


_families: list[Family] = []


def register_network(*names: str, pattern: str | None = None) -> Callable[[BuilderT], BuilderT]:
    """Registers a builder `build(*, num_classes, **options) -> nn.Module` under names.

    A network may carry timm's `feature_info` (a list of `module`, `num_chs`, `reduction`), from which the
    default levels are taken, and `get_classifier()`.

    Args:
        names: Names it answers to.
        pattern: Regular expression of further names; its named groups are passed to the builder as integers.
    """
    compiled = re.compile(pattern or "|".join(re.escape(_canonical(name)) for name in names))

    def register(build: BuilderT) -> BuilderT:
        _families.append(Family(compiled, names, build))
        return build

    return register


def find_network(name: str) -> partial[nn.Module] | None:
    """Returns the builder for `name` with the numbers in its name filled in, or None if none answers."""
    for family in reversed(_families):
        if match := family.pattern.fullmatch(_canonical(name)):
            numbers: dict[str, Any] = {key: int(value) for key, value in match.groupdict("1").items()}
            return partial(family.build, **numbers)
    return None


def network_names() -> tuple[str, ...]:
    """Returns the usual names of every registered network, sorted."""
    return tuple(sorted({name for family in _families for name in family.names}))


def _canonical(name: str) -> str:
    return name.strip().lower().replace("-", "_")
