"""Networks from the user's own Python file: `path/to/file.py:Name`, a class or function that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from distpro_cli.errors import DistproError, nearest
from distpro_cli.networks.dry_run import first_line
from distpro_cli.networks.registry import find_network
from distpro_cli.user_code import load_python_file


def is_user_file(name: str) -> bool:
    """Tells `path/to/file.py:Name` (or a `.py` that lacks its `:Name`) from other names."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def load_factory(name: str) -> Callable[..., Any]:
    """Imports the file and returns what `Name` stands for there: an attribute, or a registered network.

    Raises:
        DistproError: no such file, it cannot be imported, or there is no such name in it.
    """
    text, _, attribute = name.rpartition(":")
    if not text.endswith(".py"):
        raise DistproError(f"network {name}: which one? Write {name}:Name, a class or function of that file")
    module = load_python_file(text, f"network {name}")
    factory = getattr(module, attribute, None) or find_network(attribute)
    if callable(factory):
        return factory
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    own = [key for key in public if getattr(getattr(module, key), "__module__", None) == module.__name__]
    raise DistproError(
        f"network {name}: {text} has no class or function '{attribute}'{nearest(attribute, own)}; "
        f"there are {', '.join(own) or 'none'}"
    )


def call_factory(factory: Callable[..., Any], name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Builds the network, giving `num_classes` if it is accepted.

    Raises:
        DistproError: an option is unknown, building fails, or what is returned is no module.
    """
    given = {"num_classes": num_classes, **options} if _accepts(factory, "num_classes") else options
    for option in options:
        if not _accepts(factory, option):
            allowed = _parameters(factory)
            raise DistproError(
                f"network {name}: it takes no option '{option}'{nearest(option, allowed)}; "
                f"there are {', '.join(allowed) or 'none'}"
            )
    try:
        model = factory(**given)
    except DistproError:
        raise
    except Exception as error:
        raise DistproError(
            f"network {name} cannot be built with {given}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise DistproError(f"network {name}: it returns a {type(model).__name__}, a torch.nn.Module is needed")
    return model


def _accepts(factory: Callable[..., Any], option: str) -> bool:
    if isinstance(factory, partial) and option in factory.keywords:
        return False
    parameters = _signature(factory)
    if parameters is None or any(kind is inspect.Parameter.VAR_KEYWORD for kind in parameters.values()):
        return True
    return parameters.get(option, inspect.Parameter.POSITIONAL_ONLY) is not inspect.Parameter.POSITIONAL_ONLY


def _parameters(factory: Callable[..., Any]) -> list[str]:
    names = _signature(factory) or {}
    return [name for name in names if name != "num_classes" and _accepts(factory, name)]


def _signature(factory: Callable[..., Any]) -> dict[str, Any] | None:
    """The kinds of the parameters by name; None if they cannot be known."""
    try:
        return {name: given.kind for name, given in inspect.signature(factory).parameters.items()}
    except (TypeError, ValueError):
        return None
