"""A network whose levels can be seen: taps, normalisation, and a forward that stops when it has seen enough.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token or vector.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distpro_cli.errors import DistproError
from distpro_cli.image_size import ImageSize, Size, height_width, longer_side
from distpro_cli.networks.activations import Point
from distpro_cli.networks.channels import COLOUR, GREY, as_grey
from distpro_cli.networks.compiled import without_compiling
from distpro_cli.networks.dry_run import (
    channels_last,
    describe,
    dry_forward,
    dry_images,
    first_tensor,
    parts_of,
    title,
    trace_forward,
    version,
)
from distpro_cli.networks.heads import NewHead, head_modules
from distpro_cli.networks.level_choice import DISTILLATION_LOGITS, LOGITS, POOLED, Choice, choose_levels
from distpro_cli.networks.normalization import normalize
from distpro_cli.networks.tokens import TokenOrder, rolled_block, stated_grid
from distpro_cli.process.pathway import Grid, LevelInfo, guess_grid
from distpro_cli.tasks.task import Sizes

# Whose convolutions in channels_last end torch's process on the CPU (segmentation fault; seen with torch 2.14).
CONTIGUOUS = frozenset({"timm.models.fastvit"})


Normalized = dict[Any, tuple[Tensor, int]]  # images by what a network expects, and how often they were written to then


class TappedNetwork(nn.Module):
    """A network that also returns the features at its levels.

    Attributes:
        model: The network itself; nothing is added to its state dict.
        levels: Its levels, shallow to deep, numbered from 1.
        points: For every level what is tapped, such as "output of block2.layer.0.bn1".
        needs_contiguous: Whether it must stay out of channels_last, weights and images alike.
        new_head: What its weights lack of a head that fits; None if they lack nothing.
    """

    mean: Tensor
    std: Tensor
    new_head: NewHead | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        levels: Sequence[int | str] | None = None,
        feature: str = "output",
        logits: bool = False,
        tokens: str = "all",
        mean: Sequence[float],
        std: Sequence[float],
        image_size: ImageSize,
        check_output: Callable[[Any], object] | None = None,
        output: int | str | None = None,
        head: bool = True,
    ) -> None:
        """Finds the levels by a dry forward, which leaves the network as it was, and taps them.

        Args:
            model: Takes normalised images [B, C, H, W], returns anything.
            levels: See `choose_levels`; None for the default.
            feature: `output`: as a stage returns it; `before-activation` or `after-activation`: before or
                after the activation that ends the stage or, behind normalisation, follows it. Holds for stages,
                not for `pooled` and `logits`.
            logits: Whether the default levels end with the logits.
            tokens: `all`, or `patches`: of tokens those on the grid alone.
            mean: Per channel, what the network expects to be subtracted from images in [0, 1].
            std: Per channel, what it expects them to be divided by.
            image_size: Of the images in pixels, one number or height and width.
            check_output: Is given what the network returns for two images in eval mode; raises if that is wrong.
            output: Which part of what the network returns is its output, see `part_of`; None: all of it.
            head: False: what it returns are features, of any kind, and no level.

        Raises:
            DistproError: the images do not fit the network, or a level cannot be tapped.
        """
        super().__init__()
        self.model = model
        self.needs_contiguous = type(model).__module__ in CONTIGUOUS
        self._trained_heads: list[nn.Module] = []
        self._expects = (tuple(mean), tuple(std), self.needs_contiguous)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        size = height_width(image_size)
        images_bchw = dry_images(size, self.mean, self.std)
        trace = trace_forward(model, images_bchw)
        self._output = output
        trace.output, trace.has_head = self._part(trace.output), head
        if check_output is not None:
            check_output(trace.output)
        choices = choose_levels(model, trace, levels, feature, logits=logits and head)
        self._layouts: dict[int, str] = {}
        self._orders: dict[int, TokenOrder] = {}
        self._recorder = _Recorder()
        self._taps: list[RemovableHandle] = []
        self.levels = tuple(self._tapped(choices, trace.output, tokens, size, feature))
        self.points = tuple("the network's output" if c.point is None else c.point.text for c in choices)
        self._distillation = {info.number for info in self.levels if info.name == DISTILLATION_LOGITS}
        self._find_writes_in_training(images_bchw)

    def _tapped(self, choices: Sequence[Choice], output: Any, tokens: str, size: Size, feature: str) -> list[LevelInfo]:
        """Taps the chosen levels, each in the layout and order of its dry tensor, and returns what they are."""
        infos: list[LevelInfo] = []
        for number, choice in enumerate(choices, start=1):
            point = choice.point
            tensor = output if point is None else point.tensor
            self._layouts[number] = _layout(choice, tensor, size)
            if self._layouts[number] == "bnd":
                self._orders[number] = TokenOrder(block=rolled_block(self.model, choice.name))
            shape = tuple(self._arranged(number, tensor).shape[1:])
            info = _level_info((number, len(choices)), choice, shape, size)
            if info.kind == "tokens":
                grid = self._orders[number].grid_of(self.model, tensor)
                info = _on_grid(info, grid or stated_grid(self.model, shape[0], choice.reduction, size), size)
            if tokens == "patches" and info.kind == "tokens" and info.prefix:
                self._orders[number] = replace(self._orders[number], prefix=info.prefix)
                info = replace(info, shape=(shape[0] - info.prefix, shape[1]), prefix=0)
            if info.kind != LOGITS and choice.name != POOLED:
                info = replace(info, feature=feature)
            infos.append(info)
            if point is not None:
                self._taps.append(self._recorder.tap(number, point))
        return infos

    @property
    def num_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def channels(self) -> int:
        """Channels of the images that the network takes: 3, or 1 of grey ones."""
        return self.mean.shape[1]

    def freeze_backbone(self) -> None:
        """Leaves only the head to training: the rest keeps its weights, stays in eval mode and draws nothing."""
        self._trained_heads = head_modules(self.model)
        self.model.requires_grad_(False)
        for head in self._trained_heads:
            head.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode as torch does; of a network with a frozen backbone, the head's alone."""
        super().train(mode and not self._trained_heads)
        for head in self._trained_heads:
            head.train(mode)
        return self

    def released(self) -> nn.Module:
        """Takes taps and compilation off and returns the network itself, in eval mode; levels are seen no more."""
        for tap in self._taps:
            tap.remove()
        return without_compiling(self.model).eval()

    def forward(
        self,
        images_bchw: Tensor,
        levels: Collection[int] = (),
        output: bool = True,
        sizes: Sizes | None = None,
        normalized: Normalized | None = None,
    ) -> tuple[Any, dict[int, Tensor]]:
        """Returns output and features of images in [0, 1], which are normalised here.

        Args:
            images_bchw: [B, C, H, W], float, in [0, 1]; colour becomes grey for a network of grey images, and grey
                is repeated for one of colour.
            levels: Numbers of the levels wanted.
            output: False: not wanted; the forward stops as soon as the deepest wanted level is there.
            sizes: Of images that are padded, see `Batch`; the network sees zeros beyond them.
            normalized: Keeps these images once they are normalised, for another network that expects the same.

        Returns:
            What the network returns, None if not wanted (in train mode and with distillation logits among the
            levels, what the class token says alone), and by level number the features: maps [B, C, H, W],
            tokens [B, N, D], vectors [B, D], logits [B, N].
        """
        wanted = {int(level) for level in levels}
        if unknown := wanted - set(self._layouts):
            raise ValueError(f"no level {sorted(unknown)}: there are 1 to {len(self.levels)}")
        if not wanted and not output:
            return None, {}
        final = {level for level in wanted if self._layouts[level] == LOGITS}
        normalized_bchw = self._normalized(images_bchw, sizes, {} if normalized is None else normalized)
        if self._distillation:
            # In train mode the classifiers part where the distillation token learns from the teacher.
            self.model.set_distilled_training(bool(wanted & self._distillation))  # type: ignore[operator]
        returned, tapped = self._run(normalized_bchw, wanted - final, stop=not output and not final)
        if wanted & self._distillation and isinstance(returned, tuple):
            returned = returned[0]
        if final and not isinstance(returned, Tensor):
            raise DistproError(
                f"{title(self.model)}: {self._names(final)} is not there: in this mode the network returns "
                f"{describe(returned)}"
            )
        features = {level: self._arranged(level, tapped[level]) for level in sorted(tapped)}
        features |= dict.fromkeys(sorted(final), returned)
        return (returned if output else None), features

    def _normalized(self, images_bchw: Tensor, sizes: Sizes | None, made: Normalized) -> Tensor:
        """Returns the images as the network expects them; from `made` if it holds them as they were put there."""
        if self._expects in made:
            kept_bchw, writes = made[self._expects]
            if version(kept_bchw) == writes:
                return kept_bchw
        if self.needs_contiguous:
            images_bchw = images_bchw.contiguous()
        if self.channels == GREY and images_bchw.shape[1] == COLOUR:
            images_bchw = as_grey(images_bchw)
        normalized_bchw = normalize(images_bchw, self.mean, self.std)
        for image_chw, (height, width) in zip(normalized_bchw, sizes or (), strict=sizes is not None):
            image_chw[:, height:] = 0
            image_chw[:, :, width:] = 0
        made[self._expects] = normalized_bchw, version(normalized_bchw)
        return normalized_bchw

    def _arranged(self, level: int, tensor: Tensor) -> Tensor:
        tensor = _arrange(tensor, self._layouts[level])
        order = self._orders.get(level)
        return tensor if order is None else order.apply(self.model, tensor)

    def _run(self, normalized_bchw: Tensor, wanted: set[int], stop: bool) -> tuple[Any, dict[int, Tensor]]:
        self._recorder.start(wanted, stop)
        returned: Any = None
        try:
            returned = self._part(self.model(normalized_bchw))
        except StopForward as reached:
            if reached.recorder is not self._recorder:
                raise
        finally:
            tapped, overwritten = self._recorder.finish()
        if missing := wanted - set(tapped):
            raise DistproError(f"{title(self.model)}: {self._names(missing)} did not run in this forward")
        if overwritten:
            raise DistproError(
                f"{title(self.model)}: {self._names(overwritten)} is overwritten in place in training only; "
                "tap another module, or make the network not write in place"
            )
        return returned, tapped

    def _part(self, returned: Any) -> Any:
        return returned if self._output is None else part_of(returned, self._output, title(self.model))

    def _find_writes_in_training(self, normalized_bchw: Tensor) -> None:
        """Makes those taps take copies that only a module in training mode (dropout) writes into."""
        dropouts = [module for module in self.model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        if not any(dropout.inplace and dropout.p > 0 for dropout in dropouts):
            return
        wanted = {level for level, layout in self._layouts.items() if layout != LOGITS}
        self._recorder.start(wanted, stop=False)
        try:
            dry_forward(self.model, normalized_bchw, training=True)
        finally:
            _, overwritten = self._recorder.finish()
        self._recorder.cloned |= overwritten

    def _names(self, levels: Collection[int]) -> str:
        return ", ".join(f"level {level} ({self.levels[level - 1].name})" for level in sorted(levels))


def part_of(returned: Any, part: int | str, name: str) -> Any:
    """Returns a part of what a network returned: a key, an attribute or an index; a tensor is returned as it is.

    Networks with auxiliary heads return several tensors in training, and one in eval mode.

    Raises:
        DistproError: there is no such part; the message lists what there is.
    """
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping) and part in returned:
        return returned[part]
    if isinstance(part, str) and hasattr(returned, part):
        return getattr(returned, part)
    if isinstance(part, int) and isinstance(returned, (list, tuple)) and -len(returned) <= part < len(returned):
        return returned[part]
    raise DistproError(f"{name}: output: there is no {part} in {describe(returned)}")


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

    def tap(self, level: int, point: Point) -> RemovableHandle:
        """Hooks on the module where a level is; a deep copy of the network gets a hook, and a recorder, of its own."""
        if point.overwritten:
            self.cloned.add(level)
        module, call_index = point.call.module, point.call.index
        if point.side == "input":
            return module.register_forward_pre_hook(partial(self._on_input, level, call_index), with_kwargs=True)
        return module.register_forward_hook(partial(self._on_output, level, call_index, point.part))

    def _on_input(self, level: int, call_index: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._take(level, call_index, first_tensor(args, kwargs))

    def _on_output(
        self, level: int, call_index: int, part: int | str | None, module: nn.Module, args: Any, output: Any
    ) -> None:
        self._take(level, call_index, output if part is None else parts_of(output).get(part))

    def start(self, wanted: Collection[int], stop: bool) -> None:
        """Asks for levels; with `stop` the forward is left when the last of them is there."""
        self._wanted, self._stop = frozenset(wanted), stop
        self._calls, self._tapped, self._versions = {}, {}, {}

    def _take(self, level: int, call_index: int, tensor: Tensor | None) -> None:
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


def _layout(choice: Choice, tensor: Tensor, size: Size) -> str:
    """`bchw`, `bhwc`, `bnd`, `bd`, `logits`; `mean-...` where the classifier's input is pooled here."""
    if choice.name == LOGITS:
        return LOGITS
    layout = {2: "bd", 3: "bnd"}.get(tensor.ndim) or _map_layout(tuple(tensor.shape), choice.channels, size)
    return f"mean-{layout}" if choice.name == POOLED and layout != "bd" else layout


def _map_layout(shape: tuple[int, ...], channels: int | None, size: Size) -> str:
    """The known channels decide; else the two dimensions that cover the image are positions."""
    _, first, _, last = shape
    if channels is not None and (first == channels) != (last == channels):
        return "bchw" if first == channels else "bhwc"
    return "bhwc" if channels_last(shape, size) else "bchw"


def _arrange(tensor: Tensor, layout: str) -> Tensor:
    if layout.endswith("bhwc"):
        tensor = tensor.permute(0, 3, 1, 2)
    if layout.startswith("mean-"):
        return tensor.mean(1) if tensor.ndim == 3 else tensor.mean((2, 3))
    return tensor


def _level_info(place: tuple[int, int], choice: Choice, shape: tuple[int, ...], size: Size) -> LevelInfo:
    """Returns what a level is; `place` is its number and how many there are. Tokens have no grid yet."""
    kind = LOGITS if choice.name in (LOGITS, DISTILLATION_LOGITS) else {1: "vector", 2: "tokens", 3: "map"}[len(shape)]
    info = LevelInfo(*place, choice.name, kind, None, shape)
    if kind == "tokens" and choice.reduction:
        return replace(info, reduction=choice.reduction)
    return _reduced(info, size) if kind == "map" else info


def _on_grid(info: LevelInfo, stated: tuple[int, Grid | None], size: Size) -> LevelInfo:
    """Returns a level of tokens with their prefix and grid, as stated or else as their number and the image say."""
    prefix, grid = stated if stated[1] else guess_grid(info.shape[0], size)
    info = replace(info, prefix=prefix, grid=grid, guess=False)
    return info if info.reduction or grid is None else _reduced(info, size)


def _reduced(info: LevelInfo, size: Size) -> LevelInfo:
    assert info.grid is not None
    side = longer_side(size)
    return replace(info, reduction=max(1, round(size[side] / info.grid[side])))
