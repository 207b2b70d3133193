"""Named registries of transforms and distances, open to a user's own Python file.

A recipe names an entry (`conv2`) or a class in a file (`my_transforms.py:Gated`). The file's class may also
carry `@register_transform("gated")`; then `my_transforms.py:gated` finds it too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from distpro_cli.errors import DistproError, nearest
from distpro_cli.user_code import load_python_file

Entry = TypeVar("Entry")
Registered = TypeVar("Registered", bound=type)


class Registry(Generic[Entry]):
    """Classes by name.

    Attributes:
        noun: What the entries are, as error messages call them: `transform`, `distance`.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, type[Entry]] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Returns a class decorator that makes the class known as `name`; a later one replaces an earlier."""

        def decorate(entry: Registered) -> Registered:
            self._entries[name] = entry
            return entry

        return decorate

    def names(self) -> list[str]:
        """Returns the names there are, sorted."""
        return sorted(self._entries)

    def find(self, name: str) -> type[Entry]:
        """Returns the class called `name`, or `Class` from `file.py:Class`.

        Raises:
            DistproError: no such name, file or class.
        """
        path, separator, member = name.rpartition(":")
        if separator and path.endswith(".py"):
            return self._find_in_file(path, member)
        if name not in self._entries:
            raise DistproError(
                f"unknown {self.noun} '{name}'{nearest(name, self._entries)}; "
                f"there are: {', '.join(self.names())}, or your own as path/to/file.py:Name"
            )
        return self._entries[name]

    def _find_in_file(self, path: str, member: str) -> type[Entry]:
        module = load_python_file(path, f"{self.noun} {path}:{member}")
        found = getattr(module, member, None)
        if isinstance(found, type):
            return found
        registered = self._entries.get(member)
        if registered is not None and registered.__module__ == module.__name__:
            return registered
        classes = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise DistproError(
            f"{path} has no {self.noun} '{member}'{nearest(member, classes)}; it defines: "
            f"{', '.join(sorted(classes)) or 'nothing'}"
        )


def check_options(noun: str, name: str, entry: type, options: Mapping[str, Any]) -> None:
    """Checks that every option is a keyword argument of the class.

    Raises:
        DistproError: an option the class does not take, or one it needs and does not get.
    """
    parameters = inspect.signature(entry).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    allowed = ", ".join(keywords) or "none"
    problems = [
        f"{noun} {name} has no option '{option}'{nearest(option, keywords)}; its options: {allowed}"
        for option in options
        if option not in keywords
    ]
    problems += [
        f"{noun} {name} needs the option '{option}'"
        for option, parameter in keywords.items()
        if parameter.default is parameter.empty and option not in options
    ]
    if problems:
        raise DistproError("\n".join(problems))


def positive_number(option: str, value: object) -> float:
    """Returns the option's value as a float > 0, or raises DistproError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise DistproError(f"option '{option}' is {value!r}; it must be a number above 0")
    return float(value)


def positive_integer(option: str, value: object) -> int:
    """Returns the option's value as an int ≥ 1, or raises DistproError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DistproError(f"option '{option}' is {value!r}; it must be a whole number of at least 1")
    return value
