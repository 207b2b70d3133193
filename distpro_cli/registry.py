"""Named parts of distpro, open to a user's own Python file: one registry per kind of part.

A recipe names an entry (`conv2`), or what a file of the user's defines (`my_transforms.py:Gated`). The file may also
register it (`@register_transform("gated")`); then `my_transforms.py:gated` finds it too.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from distpro_cli.errors import DistproError, nearest
from distpro_cli.user_code import load_python_file

Entry = TypeVar("Entry", bound=Callable[..., Any])
Base = TypeVar("Base")
Registered = TypeVar("Registered", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Known(Generic[Entry]):
    names: tuple[str, ...]
    pattern: re.Pattern[str]
    entry: Entry


class Registry(Generic[Entry]):
    """Named entries: types, or functions that make something.

    Attributes:
        noun: What the entries are, as error messages call them: `transform`, `distance`.
    """

    def __init__(
        self, noun: str, *, package: str | tuple[str, ...] = (), canonical: Callable[[str], str] = lambda name: name
    ) -> None:
        """Makes an empty registry.

        Args:
            noun: What the entries are.
            package: Its modules (or those of several) register entries; they are imported when a name is looked up for
                the first time.
            canonical: What two spellings of one name have in common.
        """
        self.noun = noun
        self._packages = (package,) if isinstance(package, str) else package
        self._canonical = canonical
        self._known: list[_Known[Entry]] = []

    def register(self, *names: str, pattern: str | None = None) -> Callable[[Registered], Registered]:
        """Returns a decorator that makes a class or function known; a later one replaces an earlier.

        Args:
            names: What it is called.
            pattern: Regular expression of further names; its named groups, numbers, become keyword arguments.
        """
        compiled = re.compile(pattern or "|".join(re.escape(self._canonical(name)) for name in names))

        def decorate(entry: Registered) -> Registered:
            self._known.append(_Known(names, compiled, entry))  # type: ignore[arg-type]
            return entry

        return decorate

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        self._import_package()
        return sorted({name for known in self._known for name in known.names})

    def get(self, name: str) -> Entry | None:
        """Returns the entry called `name`, None if there is none; numbers in the name are filled in."""
        self._import_package()
        for known in reversed(self._known):
            if match := known.pattern.fullmatch(self._canonical(name)):
                numbers = {key: int(value) for key, value in match.groupdict("1").items()}
                return partial(known.entry, **numbers) if numbers else known.entry  # type: ignore[return-value]
        return None

    def find(self, name: str) -> Entry:
        """Returns the entry called `name`, or `Name` from `file.py:Name`.

        Raises:
            DistproError: no such name, file, class or function.
        """
        if is_user_file(name):
            return self._find_in_file(name)
        found = self.get(name)
        if found is None:
            names = self.names()
            raise DistproError(
                f"unknown {self.noun} '{name}'{nearest(name, names)}; "
                f"there are: {', '.join(names)}, or your own as path/to/file.py:Name"
            )
        return found

    def find_subclass(self, name: str, base: type[Base]) -> type[Base]:
        """Returns what `find` does, if it is a subclass of `base` that lacks nothing.

        Raises:
            DistproError: it is something else, or lacks a method that `base` asks for.
        """
        found: object = self.find(name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise DistproError(f"{self.noun} {name}: it is no subclass of {base.__module__}.{base.__qualname__}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise DistproError(f"{self.noun} {name}: it lacks {', '.join(missing)}, which {base.__qualname__} asks for")
        return found

    def _find_in_file(self, name: str) -> Entry:
        path, _, member = name.rpartition(":")
        if not path.endswith(".py"):
            raise DistproError(f"{self.noun} {name}: which one? Write {name}:Name, a class or function of that file")
        module = load_python_file(path, f"{self.noun} {name}")
        found = getattr(module, member, None)
        if found is None:
            found = self.get(member)
            if getattr(getattr(found, "func", found), "__module__", None) != module.__name__:
                found = None  # registered under that name, but elsewhere
        if callable(found):
            return found  # type: ignore[return-value]
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        defined = sorted(key for key in own if not key.startswith("_"))
        raise DistproError(
            f"{self.noun} {name}: {path} has no class or function '{member}'{nearest(member, defined)}; "
            f"there are {', '.join(defined) or 'none'}"
        )

    def _import_package(self) -> None:
        if not self._packages:
            return
        packages, self._packages = self._packages, ()
        own, self._known = self._known, []
        for package in packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
                importlib.import_module(module.name)
        self._known += own  # what was registered before counts as later than what ships


def is_user_file(name: str) -> bool:
    """Tells `path/to/file.py:Name` (or a `.py` that lacks its `:Name`) from other names."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def options_taken(entry: Callable[..., Any]) -> list[str]:
    """Returns the options of a class: its keyword-only arguments."""
    return [p.name for p in inspect.signature(entry).parameters.values() if p.kind is p.KEYWORD_ONLY]


def check_options(noun: str, name: str, entry: Callable[..., Any], options: Mapping[str, Any]) -> None:
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
        raise DistproError(*problems)


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


def yes_or_no(option: str, value: object) -> bool:
    """Returns the option's value as a bool, or raises DistproError."""
    if not isinstance(value, bool):
        raise DistproError(f"option '{option}' is {value!r}; it must be true or false")
    return value


def share_below_one(option: str, value: object) -> float:
    """Returns the option's value as a float in [0, 1), or raises DistproError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise DistproError(f"option '{option}' is {value!r}; it must be a number from 0 to below 1")
    return float(value)
