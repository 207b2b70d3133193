"""The stages of a network that lists none, found in its dry forward by the shape and the depth of what modules return.

Maps: the last at each resolution on the way to the coarsest, by the outermost module that returns it. Tokens: the
modules of one kind that run one after the other at the same depth and hold most of the parameters. Names of modules do
not count.

A unit is a call that is not looked into: it returns one map or one sequence of tokens, and no two stages lie inside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from distpro_cli.image_size import longer_side
from distpro_cli.networks.dry_run import BATCH, Call, Trace, channels_last

_LOCAL_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_LOCAL_KERNEL = 3  # the largest of pools between stages; a larger one that leaves a single cell ends the network


def find_stages(trace: Trace, classifier: Call | None) -> tuple[list[str], bool]:
    """Returns the names of all stages, shallow to deep, and whether they are equally deep blocks.

    Args:
        trace: The network's dry forward.
        classifier: The call whose input is the pooled vector; stages lie before it.
    """
    tree = _Tree(trace, classifier)
    units = _before_pooling(tree.units(tree.roots))
    tokens = [unit for unit in units if _is_tokens(unit)]
    maps = [unit for unit in units if not _is_tokens(unit)]
    if _parameters(tokens) <= _parameters(maps):
        return [unit.name for unit in _last_maps(maps)], False
    pyramid = _last_tokens(tokens)
    if len(pyramid) > 1:
        return [unit.name for unit in pyramid], False
    return [block.name for block in tree.blocks(tokens)], True


class _Tree:
    """The calls of a forward up to the classifier, each with those inside it."""

    def __init__(self, trace: Trace, classifier: Call | None) -> None:
        self._end = float("inf") if classifier is None else classifier.start
        self._inside: dict[int, list[Call]] = defaultdict(list)
        self._num_runs: dict[str, int] = defaultdict(int)
        self.roots: list[Call] = []
        around: list[Call] = []
        for call in sorted(trace.calls, key=lambda call: call.start):
            self._num_runs[call.name] += 1
            while around and around[-1].finish < call.start:
                around.pop()
            if call.start < self._end:
                (self._inside[id(around[-1])] if around else self.roots).append(call)
            around.append(call)

    def units(self, calls: Iterable[Call]) -> list[Call]:
        """Returns the units among calls and inside them, in order.

        A module that returns several tensors cannot be tapped; what stands for it is found inside.
        """
        found = []
        for call in calls:
            inner = self.units(self._inside[id(call)])
            output = _feature(call) if call.finish <= self._end and self._num_runs[call.name] == 1 else None
            if output is None or _spans_stages(call, output, inner):
                found += inner
            elif output is call.output:
                found += [] if _does_nothing(call) else [call]
            else:
                found += _standing_for(output, inner)
        return found

    def blocks(self, tokens: Sequence[Call]) -> list[Call]:
        """Returns the siblings of one kind and shape that hold most parameters; without such, the units themselves."""
        groups: dict[tuple[int, type, torch.Size], list[Call]] = defaultdict(list)
        waiting: list[tuple[int, Call]] = [(0, call) for call in tokens]
        while waiting:
            parent, call = waiting.pop(0)
            if call in self.units([call]) and _is_tokens(call):
                groups[parent, type(call.module), call.output.shape].append(call)
            waiting += [(id(call), inner) for inner in self._inside[id(call)]]
        several = [group for group in groups.values() if len(group) > 1]
        largest = max(several, key=_parameters, default=[])
        most = max(_parameters([unit]) for unit in tokens)
        return largest if 2 * _parameters(largest) >= most else list(tokens)  # else they are but norms in a block


def _feature(call: Call) -> Tensor | None:
    """Returns the first map or tokens of what a call returned; windows and parts of patches fill other batches."""
    several = call.output if isinstance(call.output, (tuple, list)) else [call.output]
    tensors = (value for value in several if isinstance(value, Tensor))
    return next((tensor for tensor in tensors if tensor.ndim in (3, 4) and len(tensor) == BATCH), None)


def _standing_for(output: Tensor, inner: Sequence[Call]) -> Sequence[Call]:
    """Returns the last unit of the output's shape inside a call; all units if more is computed after it than before."""
    places = [place for place, unit in enumerate(inner, start=1) if unit.output.shape == output.shape]
    last = places[-1] if places else 0
    return inner[last - 1 : last] if _parameters(inner[last:]) <= _parameters(inner[:last]) else inner


def _is_tokens(call: Call) -> bool:
    return bool(call.output.ndim == 3)


def _cells(call: Call, tensor: Tensor | None) -> int | None:
    """Cells of a map along the image's longer side, channels first or last; None of anything else."""
    if tensor is None or tensor.ndim != 4:
        return None
    shape = tuple(tensor.shape)
    return shape[(1 if channels_last(shape, call.image_size) else 2) + longer_side(call.image_size)]


def _spans_stages(call: Call, output: Tensor, inner: Sequence[Call]) -> bool:
    """Says whether a call goes down by more than one stage: maps of two resolutions below its input lie inside it."""
    end, start = _cells(call, output), _cells(call, call.input) or float("inf")
    if end is None:
        return False
    inside = {cells for unit in inner if (cells := _cells(unit, unit.output)) is not None}
    return len({cells for cells in inside if end <= cells < start}) > 1


def _before_pooling(units: Sequence[Call]) -> list[Call]:
    """Drops all from the pooling on that ends the network's maps."""
    kept: list[Call] = []
    for number, unit in enumerate(units):
        if (_pools_all(unit, kept) or _is_class_token(unit, kept)) and not any(
            map(_computes_maps, units[number + 1 :])
        ):
            break
        kept.append(unit)
    return kept


def _does_nothing(call: Call) -> bool:
    return call.output is call.input and call.output_version == call.input_version


def _computes_maps(call: Call) -> bool:
    cells = call.output.shape[1] if _is_tokens(call) else _cells(call, call.output) or 0
    return _has_parameters(call) and cells > 1


def _pools_all(call: Call, before: Sequence[Call]) -> bool:
    """Says whether a call pools a whole map, or starts from one that was pooled outside of any module."""
    start, end, module = _cells(call, call.input), _cells(call, call.output), call.module
    if call.input is None or start is None or end is None:
        return False
    if _has_parameters(call):
        last = next((cells for unit in reversed(before) if (cells := _cells(unit, unit.output)) is not None), 1)
        return start == 1 < last
    if isinstance(module, _ADAPTIVE_POOLS):
        return True
    if isinstance(module, _LOCAL_POOLS):
        size = module.kernel_size
        return end == 1 < start and max(size if isinstance(size, tuple) else (size,)) > _LOCAL_KERNEL
    return end == 1 and (start > 1 or (call.output is not call.input and torch.equal(call.output, call.input)))


def _is_class_token(call: Call, before: Sequence[Call]) -> bool:
    """Says whether of many tokens one is left, which no merging of 2×2 or 3×3 neighbours explains."""
    if not before or not _is_tokens(call) or not _is_tokens(before[-1]):
        return False
    return bool(call.output.shape[1] == 1 and before[-1].output.shape[1] not in (1, 4, 9))


def _last_maps(units: Sequence[Call]) -> list[Call]:
    """Returns, from the last of the coarsest maps back, the last before it of each finer resolution."""
    stages: list[tuple[int, Call]] = []
    coarsest = min((_cells(unit, unit.output) or 0 for unit in units), default=0)
    for unit in reversed(units):
        cells = _cells(unit, unit.output) or 0
        if cells == coarsest if not stages else cells > stages[-1][0]:
            stages.append((cells, unit))
    return [unit for _, unit in reversed(stages)]


def _last_tokens(units: Iterable[Call]) -> list[Call]:
    """Returns the last unit before the tokens become at most half as many, each time, and the last of all."""
    stages: list[Call] = []
    for unit in filter(_has_parameters, units):
        while stages and 2 * unit.output.shape[1] > stages[-1].output.shape[1]:
            stages.pop()
        stages.append(unit)
    return stages


def _has_parameters(call: Call) -> bool:
    return next(call.module.parameters(), None) is not None


def _parameters(calls: Iterable[Call]) -> int:
    return sum(parameter.numel() for call in calls for parameter in call.module.parameters())
