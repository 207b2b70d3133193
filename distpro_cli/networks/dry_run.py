"""A dry forward: every module call of a network with what went in and what came out.

It holds every tensor until it is dropped, so that identities (`is`) and versions (in-place writes) stay true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError, first_line
from distpro_cli.image_size import Size, covers, height_width, nearest_multiples

BATCH = 2  # one image would hide layouts whose first dimension is not the batch


@dataclass
class Call:
    """One execution of a module.

    Attributes:
        name: Canonical module name.
        module: The module.
        index: Which execution of that module it is, from 0.
        image_size: Of the images that the network was given.
        start: When it began; starts and finishes share one counter.
        finish: When it ended.
        input: Its first tensor argument.
        input_version: `_version` of the input when the call began.
        output: What it returned.
        output_version: `_version` of the output when the call ended, 0 if it is no tensor.
        part_versions: Of an output of several tensors, likewise, by key or index.
        nonnegative: Whether the output was nowhere negative and not all zero when the call ended.
    """

    name: str
    module: nn.Module
    index: int
    image_size: Size
    start: int
    input: Tensor | None
    input_version: int
    finish: int = 0
    output: Any = None
    output_version: int = 0
    part_versions: dict[int | str, int] = field(default_factory=dict)
    nonnegative: bool = False


@dataclass
class Trace:
    """All calls of one forward, in the order in which they ended, the network's output, and whether a head made it."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None
    has_head: bool = True

    @property
    def logits(self) -> Tensor | None:
        """The network's output where it is a tensor [B, N] that a head made."""
        is_logits = self.has_head and isinstance(self.output, Tensor) and self.output.ndim == 2
        return self.output if is_logits else None

    def of(self, name: str) -> list[Call]:
        """Returns the executions of a module."""
        return [call for call in self.calls if call.name == name]


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the first tensor among a call's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def parts_of(output: Any) -> dict[int | str, Tensor]:
    """Returns the tensors in a tuple, list or mapping that a module returned, by index or key; of others none."""
    if isinstance(output, Mapping):
        items: Iterable[tuple[Any, Any]] = output.items()
    else:
        items = enumerate(output) if isinstance(output, (tuple, list)) else ()
    return {key: value for key, value in items if isinstance(key, (int, str)) and isinstance(value, Tensor)}


def version(tensor: Tensor) -> int:
    """Returns how often the tensor's memory was written in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def trace_forward(model: nn.Module, images_bchw: Tensor) -> Trace:
    """Runs the network once and returns what happened; flags, buffers and random state stay as they were.

    Raises:
        DistproError: the network cannot take these images.
    """
    trace = Trace()
    size = height_width(images_bchw.shape[-2:])
    clock = iter(range(1 << 62))
    running: dict[str, list[Call]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    handles = []
    for name, module in model.named_modules():
        if not name or isinstance(module, torch.jit.ScriptModule):  # that takes no hooks
            continue

        def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            given = first_tensor(args, kwargs)
            running[name].append(
                Call(name, module, counts[name], size, next(clock), given, 0 if given is None else version(given))
            )
            counts[name] += 1

        def leave(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            call = running[name].pop()
            call.finish, call.output = next(clock), output
            if isinstance(output, Tensor) and output.is_floating_point():
                call.output_version = version(output)
                call.nonnegative = bool((output >= 0).all()) and bool((output > 0).any())
            call.part_versions = {part: version(tensor) for part, tensor in parts_of(output).items()}
            trace.calls.append(call)

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        trace.output = dry_forward(model, images_bchw, training=False)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def dry_forward(model: nn.Module, images_bchw: Tensor, *, training: bool) -> Any:
    """Runs the network without graph in the mode asked for, and leaves no trace of it in the network.

    Raises:
        DistproError: the network cannot take these images.
    """
    with untouched(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model.train(training)
        try:
            return model(images_bchw)
        except Exception as error:
            size = height_width(images_bchw.shape[-2:])
            raise DistproError(
                f"{title(model)} cannot take images of {size[0]}×{size[1]} pixels and {images_bchw.shape[1]} "
                f"channels ({first_line(error)}); set data.image_size{_own_size(model)}, or the network's size in its "
                f"options{likely_sizes(model, size)}"
            ) from error


def likely_sizes(model: nn.Module, image_size: Size) -> str:
    """Returns, as the end of a message, the next sizes that the coarsest stage that timm lists divides, if any."""
    info = getattr(model, "feature_info", None) or []
    reductions = [stage.get("reduction") for stage in getattr(info, "info", info)]
    coarsest = max((number for number in reductions if isinstance(number, int)), default=1)
    near = nearest_multiples(image_size, (coarsest, coarsest))
    return f"; its coarsest cells have {coarsest}×{coarsest} pixels, the nearest multiples are {near}" if near else ""


def _own_size(model: nn.Module) -> str:
    """Returns the pixels of the images that timm's configuration of the network says it is for, with a word."""
    size: list[int] = list((getattr(model, "pretrained_cfg", None) or {}).get("input_size") or [])
    return f" (its own is {size[-1]})" if size else ""


def channels_last(shape: tuple[int, ...], image_size: Size) -> bool:
    """Says whether a map's shape is [B, H, W, C], by which of its dimensions can cover the image alone."""
    _, first, middle, last = shape
    return covers(first, middle, image_size) and not covers(middle, last, image_size)


def dry_images(image_size: Size, mean: Tensor, std: Tensor) -> Tensor:
    """Returns normalised noise [2, C, H, W] from a generator of its own; mean and std are [1, C, 1, 1]."""
    generator = torch.Generator().manual_seed(0)
    images_bchw = torch.rand(BATCH, mean.shape[1], *image_size, generator=generator)
    return (images_bchw.to(mean.device) - mean) / std


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores training flags and buffers."""
    flags = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


def describe(value: Any) -> str:
    """Says in words what a module returned."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(str(key)[:40] for key in list(value)[:10])})"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def stated_classifiers(model: nn.Module) -> list[nn.Module]:
    """Returns what `get_classifier` gives; of distilled transformers several, the class token's head first."""
    getter = getattr(model, "get_classifier", None)
    stated = getter() if callable(getter) else None
    heads = stated if isinstance(stated, (tuple, list)) else [stated]
    return [head for head in heads if isinstance(head, nn.Module)]


def title(model: nn.Module) -> str:
    """Returns what a network is called in messages."""
    return type(model).__name__
