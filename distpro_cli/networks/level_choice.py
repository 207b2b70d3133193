"""Which tensors of a network are its levels: as listed, or by default its stages and the pooled vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError, nearest
from distpro_cli.networks.activations import Point, after_activation, before_activation
from distpro_cli.networks.dry_run import Call, Trace, describe, parts_of, stated_classifiers, title
from distpro_cli.networks.found_stages import find_stages

POOLED = "pooled"
LOGITS = "logits"
DISTILLATION_LOGITS = "distillation-logits"
DEFAULT_STAGES = 4
_BLOCK_LISTS = ("blocks", "stages", "layers", "encoder.layers", "transformer.layers", "features")
_NAMES_SHOWN = 40
_RANKS = (2, 3, 4)  # of vectors, tokens and maps


@dataclass(frozen=True)
class Choice:
    """A level that was chosen.

    Attributes:
        name: Module name, `pooled`, `logits` or `distillation-logits`.
        point: What is tapped; None for the logits, which are the network's own output.
        channels: Channels as timm's feature info states them, None if it does not name this module.
        reduction: Input pixels per cell, likewise.
    """

    name: str
    point: Point | None
    channels: int | None = None
    reduction: int | None = None


def choose_levels(
    model: nn.Module, trace: Trace, levels: Sequence[int | str] | None, feature: str, *, logits: bool = False
) -> list[Choice]:
    """Returns the levels, shallow to deep.

    Args:
        model: The traced network.
        trace: Its dry forward.
        levels: Stage or block indices (from 0, negative from the end), module names (`name:part` of one that returns
            several tensors), `pooled`, `logits`, `distillation-logits`; None for the last four stages (of equally deep
            blocks: four, equally spaced) and `pooled`. A network that cannot be looked into has its logits alone.
        feature: `output`, `before-activation` or `after-activation`; the last two hold for stages only.
        logits: Whether the default ends with the logits.

    Raises:
        DistproError: a level is unknown, no tensor, never executed, double, or out of order.
    """
    if levels is not None:
        entries = list(levels)
    elif trace.logits is not None and not _tappable(trace):
        entries = [LOGITS]
    else:
        # A network that states its levels, and returns no logits, has none that could end them.
        logits = logits and (trace.logits is not None or not getattr(model, "default_levels", None))
        entries = [*default_levels(model, trace), *([LOGITS] if logits else [])]
    if not entries:
        raise DistproError(f"{title(model)}: levels is empty; leave it out for the default, or name a level")
    chosen = [_choose(model, trace, entry, feature) for entry in entries]
    places = [math.inf if choice.point is None else choice.point.order for choice in chosen]
    for (before, earlier), (after, later) in pairwise(zip(chosen, places, strict=True)):
        if earlier > later:
            raise DistproError(
                f"{title(model)}: levels go from shallow to deep, but {before.name} comes after {after.name} "
                "in the forward; swap them"
            )
        same_part = before.point is None or after.point is None or before.point.part == after.point.part
        if earlier == later and same_part:
            raise DistproError(f"{title(model)}: level {after.name} is given twice ({before.name} is the same tensor)")
    return chosen


def default_levels(model: nn.Module, trace: Trace) -> list[str]:
    """Returns the names of the default levels: those that the network states, else its last stages and pooled.

    Raises:
        DistproError: nothing suitable is found.
    """
    if stated := getattr(model, "default_levels", None):
        return list(stated)
    stages = feature_stages(model)
    names = [str(stage["module"]) for stage in stages]
    if stages and all(_is_tappable(trace, name) for name in names):
        is_pyramid = len({stage.get("reduction") for stage in stages}) > 1
        entries = names[-DEFAULT_STAGES:] if is_pyramid else _spaced(names)
    else:
        # Some of timm's names are no modules, or modules that return several tensors.
        names, are_blocks = find_stages(trace, _classifier_call(model, trace))
        entries = _spaced(names) if are_blocks else names[-DEFAULT_STAGES:]
    if not entries and any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise DistproError(
            f"{title(model)}: TorchScript cannot be looked into, so that it has no levels but its logits; build the "
            "network in Python and give the archive as its weights"
        )
    if not entries:
        raise DistproError(
            f"{title(model)}: no stages found; set levels to module names. There are: {_listing(_tappable(trace))}"
        )
    if _classifier_call(model, trace) is not None:
        entries.append(POOLED)
    return entries


def feature_stages(model: nn.Module) -> list[dict[str, Any]]:
    """Returns timm's `feature_info` as a list of dicts, empty if the network has none."""
    info = getattr(model, "feature_info", None) or []
    info = getattr(info, "info", info)
    return [dict(entry) for entry in info if "module" in entry]


def _choose(model: nn.Module, trace: Trace, entry: int | str, feature: str) -> Choice:
    if entry == LOGITS:
        if trace.logits is None:
            found = f"the network returns {describe(trace.output)} and not a tensor [batch, N]"
            raise DistproError(
                f"{title(model)}: there is no level {LOGITS}, because {found if trace.has_head else 'head is false'}; "
                f"leave {LOGITS} out of the levels, and distances between them (kl)"
            )
        return Choice(LOGITS, None)
    if entry == DISTILLATION_LOGITS:
        return Choice(DISTILLATION_LOGITS, Point(_distillation_call(model, trace), "output"))
    if entry == POOLED:
        call = _classifier_call(model, trace)
        if call is None:
            raise DistproError(
                f"{title(model)}: no classifier found, so there is no pooled vector; name a module instead. "
                f"There are: {_listing(_tappable(trace))}"
            )
        return Choice(POOLED, Point(call, "input"))
    name, colon, part = (_indexed(model, trace, entry), "", "") if isinstance(entry, int) else entry.partition(":")
    name = name if isinstance(entry, int) else _named(model, trace, name)
    stage = _single_call(model, trace, name)
    if colon or not isinstance(stage.output, Tensor):
        return _part_choice(model, stage, part if colon else None, feature)
    if stage.output.ndim not in _RANKS:
        raise DistproError(_no_feature(model, name, stage.output))
    points = {"before-activation": before_activation, "after-activation": after_activation}
    point = points[feature](trace, stage) if feature in points else Point(stage, "output")
    info = next((info for info in feature_stages(model) if info["module"] == name), {})
    return Choice(name, point, info.get("num_chs"), info.get("reduction"))


def _distillation_call(model: nn.Module, trace: Trace) -> Call:
    """The run of the second classifier of timm's distilled transformers, behind the distillation token."""
    classifiers = stated_classifiers(model)
    calls = [call for call in trace.calls if call.module in classifiers[1:]]
    if not hasattr(model, "set_distilled_training") or len(calls) != 1:
        raise DistproError(
            f"{title(model)}: there is no level {DISTILLATION_LOGITS}, because it has no distillation token with a "
            "classifier of its own; take a distilled network, such as deit_tiny_distilled_patch16_224"
        )
    return calls[0]


def _indexed(model: nn.Module, trace: Trace, index: int) -> str:
    names = [str(stage["module"]) for stage in feature_stages(model)] or _block_names(model, trace)
    if not -len(names) <= index < len(names):
        found = f"it has {len(names)} stages, 0 to {len(names) - 1}" if names else "it has no numbered stages"
        raise DistproError(f"{title(model)}: there is no level {index}: {found}: {_listing(names)}")
    return names[index]


def _named(model: nn.Module, trace: Trace, name: str) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in modules:
        names = _tappable(trace)
        hint = nearest(name, [*(call.name for call in trace.calls), POOLED, LOGITS])
        raise DistproError(
            f"{title(model)}: there is no level '{name}'{hint}. There are: {POOLED}, {LOGITS}, {_listing(names)}"
        )
    canonical: str = next(first for first, module in model.named_modules() if module is modules[name])
    return canonical


def _single_call(model: nn.Module, trace: Trace, name: str) -> Call:
    calls = trace.of(name)
    if not calls:
        raise DistproError(
            f"{title(model)}: level {name} is not a module of the network that runs in its forward; "
            f"name another. There are: {_listing(_tappable(trace))}"
        )
    if len(calls) > 1:
        raise DistproError(
            f"{title(model)}: level {name} runs {len(calls)} times in a forward, so it is not one level; "
            "name a module that runs once"
        )
    return calls[0]


def _part_choice(model: nn.Module, stage: Call, part: str | None, feature: str) -> Choice:
    """Returns the level at a part of what a module returns: the one named, else the only one that can be a level."""
    parts = {str(key): key for key, tensor in parts_of(stage.output).items() if tensor.ndim in _RANKS}
    if part is None and len(parts) == 1:
        (part,) = parts
    if not parts:
        raise DistproError(_no_feature(model, stage.name, stage.output))
    if part not in parts:
        shapes = (f"{stage.name}:{text} {list(parts_of(stage.output)[key].shape)}" for text, key in parts.items())
        found = "" if part is None else f", none of them {part}"
        raise DistproError(
            f"{title(model)}: level {stage.name} returns {describe(stage.output)}{found}; name one of "
            f"{_listing(list(shapes))}"
        )
    if feature != "output":
        raise DistproError(
            f"{title(model)}: level {stage.name} is a part of what its module returns, whose activation is not looked "
            f"for; set feature: output, or name a module that returns one tensor"
        )
    return Choice(f"{stage.name}:{part}", Point(stage, "output", parts[part]))


def _no_feature(model: nn.Module, name: str, output: Any) -> str:
    return (
        f"{title(model)}: level {name} returns {describe(output)}; a map [B, C, H, W], tokens [B, N, D] or a vector "
        "[B, D] is needed: name a module inside it or after it"
    )


def _classifier_call(model: nn.Module, trace: Trace) -> Call | None:
    """The last run of the classifier: what the network calls so, else its last linear or convolution.

    None where the output is more than a vector per image, or no head made it: the last linear layer may then lie
    anywhere.
    """
    stated = stated_classifiers(model)[:1]
    for call in reversed(trace.calls):
        if call.module in stated and call.input is not None:
            return call
    if not trace.has_head or not isinstance(trace.output, Tensor) or trace.output.ndim > 2:
        return None
    width = None if trace.logits is None else trace.logits.shape[1]
    for call in reversed(trace.calls):
        is_linear = isinstance(call.module, nn.Linear)
        is_conv = isinstance(call.module, nn.Conv2d) and call.module.out_channels == width
        if (is_linear or is_conv) and call.input is not None:
            return call
    return None


def _maps(model: nn.Module, parent: str, trace: Trace) -> list[Call]:
    """The parent's children before the classifier that run once and return a map, in order."""
    names = {f"{parent}.{name}".lstrip(".") for name, _ in model.get_submodule(parent).named_children()}
    once = [call for call in trace.calls if call.name in names and len(trace.of(call.name)) == 1]
    classifier = _classifier_call(model, trace)
    before = [call for call in once if classifier is None or call.finish <= classifier.start]
    return [call for call in before if getattr(call.output, "ndim", 0) == 4]


def _block_names(model: nn.Module, trace: Trace) -> list[str]:
    modules = dict(model.named_modules())
    for name in _BLOCK_LISTS:
        block = modules.get(name)
        if isinstance(block, (nn.Sequential, nn.ModuleList)) and len(block):
            return [f"{name}.{child}" for child, _ in block.named_children()]
    return [call.name for call in _maps(model, "", trace)]


def _spaced(names: list[str]) -> list[str]:
    """Of equally deep blocks at most four, equally spaced, the last included."""
    if len(names) <= DEFAULT_STAGES:
        return names
    return [names[(i + 1) * len(names) // DEFAULT_STAGES - 1] for i in range(DEFAULT_STAGES)]


def _is_tappable(trace: Trace, name: str) -> bool:
    calls = trace.of(name)
    return len(calls) == 1 and isinstance(calls[0].output, Tensor) and calls[0].output.ndim in _RANKS


def _tappable(trace: Trace) -> list[str]:
    names = {call.name: call.start for call in trace.calls if _is_tappable(trace, call.name)}
    return sorted(names, key=lambda name: (name.count("."), names[name]))


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
