"""A network whose levels can be seen: taps, normalisation, and a forward that stops when it has seen enough.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token or vector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.networks.dry_run import dry_forward, dry_images, first_tensor, title, trace_forward, version
from distpro_cli.networks.level_choice import LOGITS, POOLED, Choice, choose_levels
from distpro_cli.process.pathway import LevelInfo


class TappedNetwork(nn.Module):
    """A classifier that also returns the features at its levels.

    Attributes:
        model: The network itself; nothing is added to its state dict.
        levels: Its levels, shallow to deep, numbered from 1.
        num_classes: Width of its logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        levels: Sequence[int | str] | None = None,
        feature: str = "output",
        logits: bool = False,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        in_channels: int = 3,
    ) -> None:
        """Finds the levels by a dry forward, which leaves the network as it was, and taps them.

        Args:
            model: Takes normalised images [B, C, H, W], returns logits [B, classes].
            levels: See `choose_levels`; None for the default.
            feature: `output`: as a stage returns it; `before-activation` or `after-activation`: before or
                after the activation at the stage's end. Holds for stages, not for `pooled` and `logits`.
            logits: Whether the default levels end with the logits.
            mean: Per channel, what the network expects to be subtracted from images in [0, 1].
            std: Per channel, what it expects them to be divided by.
            image_size: Height and width of the images in pixels.
            in_channels: Channels of the images.

        Raises:
            DistproError: the images do not fit the network, or a level cannot be tapped.
        """
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        images_bchw = dry_images(image_size, in_channels, self.mean, self.std)
        trace = trace_forward(model, images_bchw)
        self.num_classes = int(trace.output.shape[1])
        choices = choose_levels(model, trace, levels, feature, logits=logits)
        layouts = [_layout(choice, _tapped_tensor(choice, trace.output)) for choice in choices]
        self.levels: tuple[LevelInfo, ...] = tuple(
            _level_info(number, len(choices), choice, layouts[number - 1], trace.output, image_size)
            for number, choice in enumerate(choices, start=1)
        )
        self._layouts = dict(enumerate(layouts, start=1))
        self._recorder = _Recorder()
        modules = dict(model.named_modules())
        for level, choice in enumerate(choices, start=1):
            if choice.point is not None:
                tap = _Tap(self._recorder, level, choice.point.call.index, clone=choice.point.overwritten)
                tap.attach(modules[choice.point.call.name], choice.point.side)
        if any(_writes_in_training(module) for module in model.modules()):
            self._find_writes_in_training(images_bchw)

    @property
    def num_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def forward(
        self, images_bchw: Tensor, levels: Collection[int] = (), logits: bool = True
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Returns logits and features of images in [0, 1], which are normalised here.

        Args:
            images_bchw: [B, C, H, W], float, in [0, 1].
            levels: Numbers of the levels wanted.
            logits: False: not wanted; the forward stops as soon as the deepest wanted level is there.

        Returns:
            Logits [B, classes], None if not wanted, and by level number the features: maps [B, C, H, W],
            tokens [B, N, D], vectors [B, D], logits [B, classes].
        """
        wanted = {int(level) for level in levels}
        if unknown := wanted - set(self._layouts):
            raise ValueError(f"no level {sorted(unknown)}: there are 1 to {len(self.levels)}")
        if not wanted and not logits:
            return None, {}
        final = {level for level in wanted if self._layouts[level] == LOGITS}
        normalized_bchw = (images_bchw - self.mean) / self.std
        output, tapped = self._run(normalized_bchw, wanted - final, stop=not logits and not final)
        features = {level: _arrange(tapped[level], self._layouts[level]) for level in sorted(tapped)}
        features |= {level: output for level in final if output is not None}
        return (output if logits else None), features

    def _run(self, normalized_bchw: Tensor, wanted: set[int], stop: bool) -> tuple[Tensor | None, dict[int, Tensor]]:
        self._recorder.start(wanted, stop)
        output: Any = None
        try:
            output = self.model(normalized_bchw)
        except StopForward as reached:
            if reached.recorder is not self._recorder:
                raise
        finally:
            tapped, overwritten = self._recorder.finish()
        if not stop and not isinstance(output, Tensor):
            raise DistproError(f"{title(self.model)} returns no tensor of logits in this mode")
        if missing := wanted - set(tapped):
            raise DistproError(f"{title(self.model)}: {self._names(missing)} did not run in this forward")
        if overwritten:
            raise DistproError(
                f"{title(self.model)}: {self._names(overwritten)} is overwritten in place in training only; "
                "tap another module, or make the network not write in place"
            )
        return output, tapped

    def _find_writes_in_training(self, normalized_bchw: Tensor) -> None:
        """Makes those taps take copies that only a module in training mode (dropout) writes into."""
        wanted = {level for level, layout in self._layouts.items() if layout != LOGITS}
        self._recorder.start(wanted, stop=False)
        try:
            dry_forward(self.model, normalized_bchw, training=True)
        finally:
            _, overwritten = self._recorder.finish()
        self._recorder.cloned |= overwritten

    def _names(self, levels: Collection[int]) -> str:
        return ", ".join(f"level {level} ({self.levels[level - 1].name})" for level in sorted(levels))


class StopForward(BaseException):
    """Leaves a forward whose remaining part is not needed; no `Exception`, so that no network catches it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder


class _Recorder:
    """What the taps of one network share during one forward."""

    def __init__(self) -> None:
        self.cloned: set[int] = set()
        self._wanted: frozenset[int] = frozenset()
        self._stop = False
        self._calls: dict[int, int] = {}
        self._tapped: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}

    def start(self, wanted: Collection[int], stop: bool) -> None:
        """Asks for levels; with `stop` the forward is left when the last of them is there."""
        self._wanted, self._stop = frozenset(wanted), stop
        self._calls, self._tapped, self._versions = {}, {}, {}

    def take(self, level: int, call_index: int, tensor: Tensor | None) -> None:
        """Takes a tensor if it is of a wanted level and of the execution that is tapped."""
        if level not in self._wanted:
            return
        index = self._calls.get(level, 0)
        self._calls[level] = index + 1
        if index != call_index or not isinstance(tensor, Tensor):
            return
        if level in self.cloned:
            tensor = tensor.clone()
        self._tapped[level] = tensor
        self._versions[level] = version(tensor)
        if self._stop and len(self._tapped) == len(self._wanted):
            raise StopForward(self)

    def finish(self) -> tuple[dict[int, Tensor], set[int]]:
        """Returns what was tapped, and the levels that were written into since; forgets both."""
        tapped = self._tapped
        overwritten = {level for level, tensor in tapped.items() if version(tensor) != self._versions[level]}
        self.start((), stop=False)
        return tapped, overwritten


class _Tap:
    """A hook on one module. An object, not a closure, so that a deep copy of the network gets its own."""

    def __init__(self, recorder: _Recorder, level: int, call_index: int, clone: bool) -> None:
        self.recorder = recorder
        self.level = level
        self.call_index = call_index
        if clone:
            recorder.cloned.add(level)

    def attach(self, module: nn.Module, side: str) -> None:
        """Registers with the module, for its input or its output."""
        if side == "input":
            module.register_forward_pre_hook(self.on_input, with_kwargs=True)
        else:
            module.register_forward_hook(self.on_output)

    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Takes the first tensor that goes in."""
        self.recorder.take(self.level, self.call_index, first_tensor(args, kwargs))

    def on_output(self, module: nn.Module, args: Any, output: Any) -> None:
        """Takes what comes out."""
        self.recorder.take(self.level, self.call_index, output)


def _writes_in_training(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace and module.p > 0


def _tapped_tensor(choice: Choice, output: Tensor) -> Tensor:
    return output if choice.point is None else choice.point.tensor


def _layout(choice: Choice, tensor: Tensor) -> str:
    """`bchw`, `bhwc`, `bnd`, `bd`, `logits`; `mean-...` where the classifier's input is pooled here."""
    if choice.name == LOGITS:
        return LOGITS
    layout = {2: "bd", 3: "bnd"}.get(tensor.ndim) or _map_layout(tensor, choice.channels)
    return f"mean-{layout}" if choice.name == POOLED and layout != "bd" else layout


def _map_layout(tensor: Tensor, channels: int | None) -> str:
    """The known channels decide; else, images being square here, the two equal dimensions are positions."""
    _, first, middle, last = tensor.shape
    if channels is not None and (first == channels) != (last == channels):
        return "bchw" if first == channels else "bhwc"
    return "bhwc" if first == middle != last else "bchw"


def _arrange(tensor: Tensor, layout: str) -> Tensor:
    if layout.endswith("bhwc"):
        tensor = tensor.permute(0, 3, 1, 2)
    if layout.startswith("mean-"):
        return tensor.mean(1) if tensor.ndim == 3 else tensor.mean((2, 3))
    return tensor


def _level_info(number: int, count: int, choice: Choice, layout: str, output: Tensor, image_size: int) -> LevelInfo:
    shape = tuple(_arrange(_tapped_tensor(choice, output), layout).shape[1:])
    kind = LOGITS if layout == LOGITS else {1: "vector", 2: "tokens", 3: "map"}[len(shape)]
    reduction = None
    if kind == "map":
        reduction = max(1, round(image_size / shape[1]))
    elif kind == "tokens":
        reduction = choice.reduction or _token_reduction(shape[0], image_size)
    return LevelInfo(number, count, choice.name, kind, reduction, shape)


def _token_reduction(num_tokens: int, image_size: int) -> int | None:
    """Pixels per token when the tokens are a square grid with at most two class tokens, else None."""
    side = math.isqrt(num_tokens)
    return max(1, round(image_size / side)) if 0 <= num_tokens - side * side <= 2 else None
