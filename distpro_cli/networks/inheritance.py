"""A student that starts with parts of its teacher: a detector's neck and heads, or any modules of the same name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError, nearest
from distpro_cli.networks.dry_run import title


def inherited(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """Returns the teacher's tensors that a student takes over, by name: those of the parts with equal shapes.

    Args:
        student: What starts with them.
        teacher: Whose they are.
        parts: Names of modules in both networks, or names that a network's `parts` gives to several.

    Raises:
        DistproError: a network has no such part, or no tensor of one agrees in both.
    """
    found: dict[str, Tensor] = {}
    states = [network.state_dict() for network in (student, teacher)]
    for part in parts:
        own, theirs = (
            _tensors(network, state, part) for network, state in zip((student, teacher), states, strict=True)
        )
        agreeing = {name: theirs[name] for name in own if name in theirs and own[name].shape == theirs[name].shape}
        if not agreeing:
            raise DistproError(
                f"student.inherit: {part}: none of its {len(own)} tensors has the teacher's name and shape; leave it "
                "out, or give both networks the same options"
            )
        found |= agreeing
    return found


def inherit(student: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fills a network with what `inherited` returned."""
    own = student.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _tensors(network: nn.Module, state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    named: dict[str, tuple[str, ...]] = getattr(network, "parts", {})
    modules = dict(network.named_modules())
    if part not in named and (not part or part not in modules):
        known = [*named, *(name for name, _ in network.named_children())]
        raise DistproError(
            f"student.inherit: {title(network)} has no part '{part}'{nearest(part, known)}; there are: "
            f"{', '.join(known)}, and the modules inside them"
        )
    prefixes = tuple(f"{name}." for name in named.get(part, (part,)))
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
