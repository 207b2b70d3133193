"""Calls what builds a network, a registered family or a class or function of the user's, with options it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from distpro_cli.errors import DistproError, nearest
from distpro_cli.networks.dry_run import first_line


def call_factory(
    factory: Callable[..., Any], name: str, task_options: Mapping[str, Any], options: Mapping[str, Any]
) -> nn.Module:
    """Builds the network.

    Args:
        factory: What builds it.
        name: Of the network, for messages.
        task_options: What the task gives; of these the factory gets those that it accepts.
        options: The recipe's.

    Raises:
        DistproError: an option is unknown, building fails, or what is returned is no module.
    """
    accepted = _accepted(factory)
    for option in options:
        if accepted is not None and option not in accepted:
            allowed = [name for name in accepted if name not in task_options]
            raise DistproError(
                f"network {name}: it takes no option '{option}'{nearest(option, allowed)}; "
                f"there are {', '.join(allowed) or 'none'}"
            )
    given = {key: value for key, value in task_options.items() if accepted is None or key in accepted} | dict(options)
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


def _accepted(factory: Callable[..., Any]) -> list[str] | None:
    """Returns the options that a factory takes; None if it takes any, or if that cannot be known."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    filled_in = factory.keywords if isinstance(factory, partial) else ()
    return [name for name in named if name not in filled_in]
