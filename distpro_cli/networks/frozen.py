"""A teacher that is ready to teach, made cheaper: fewer kernels, and weights that are rounded once.

Its weights are not to be read any more afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops.misc import FrozenBatchNorm2d

from distpro_cli.image_size import ImageSize, height_width
from distpro_cli.networks.compiled import as_written
from distpro_cli.networks.dry_run import dry_images
from distpro_cli.networks.levels import TappedNetwork

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
# Of these exact types autocast rounds weight and bias as they are; a subclass may make others from them in float32.
_ROUNDED = (*_CONVOLUTIONS, nn.Linear, nn.Conv1d, nn.Conv3d)


class _FoldedBeforeActivation(nn.Module):
    """What is left of timm's BatchNorm with an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, map_bchw: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(map_bchw))
        return activated


# What is left of a BatchNorm.
_LEFT: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d), nn.Identity),
    **dict.fromkeys((BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d), _FoldedBeforeActivation),
}


def fold_batch_norm(network: TappedNetwork, image_size: ImageSize) -> int:
    """Folds BatchNorm in eval mode into the convolution before it, in place; the same function but for rounding.

    A dry forward shows which convolutions' outputs are read by one BatchNorm and by nothing else, each once; what is
    a level, or the network's output, stays as it is.

    Args:
        network: Frozen, in eval mode.
        image_size: Of its images in pixels.

    Returns:
        The number of folded ones.
    """
    modules = list(network.model.modules())
    convolutions = {id(module.weight): module for module in modules if type(module) in _CONVOLUTIONS}
    readers, calls = _Readers(), Counter[nn.Module]()
    behind: dict[nn.Module, int] = {}  # of a BatchNorm, the output of a convolution that it was given, by its id

    def called(module: nn.Module, args: Any) -> None:
        calls[module] += 1
        if readers.wrote(args[0]):  # asked now: whatever is gone later leaves its id to another tensor
            behind[module] = id(args[0])

    norms = [module for module in modules if type(module) in _LEFT and module.running_mean is not None]
    handles = [norm.register_forward_pre_hook(called) for norm in norms]
    try:
        with readers:
            seen = {id(tensor) for tensor in _all_of(network, image_size)}
    finally:
        for handle in handles:
            handle.remove()
    pairs = [
        (convolutions[weight], norm)
        for norm, given in behind.items()
        if calls[norm] == 1 and given not in seen and (weight := readers.weight_behind(given)) in convolutions
    ]
    for convolution, norm in pairs:
        _fold(convolution, norm)
    return len(pairs)


class _Readers(TorchDispatchMode):
    """Follows, through one forward, who reads what convolutions write; holds those tensors until it is dropped."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._written: dict[int, tuple[Tensor, int]] = {}  # by id a convolution's output, and the id of its weight
        self._uses: Counter[int] = Counter()  # how many operations were given such an output or weight, by its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if func._overloadpacket.__name__ == "convolution":
            self._written[id(out)] = out, id(args[1])
            self._uses[id(out)] = 0  # whatever had this id before is gone
        return out

    def wrote(self, tensor: Tensor) -> bool:
        """Says whether a tensor is what a convolution wrote."""
        return id(tensor) in self._written

    def weight_behind(self, tensor: int) -> int:
        """Returns the weight of the convolution that wrote a tensor, both by id; 0 where several operations were given
        one of the two, or none was."""
        _, weight = self._written[tensor]
        return weight if self._uses[tensor] == self._uses[weight] == 1 else 0


@torch.no_grad()
def _fold(convolution: nn.Module, norm: Any) -> None:
    """Gives the convolution what the BatchNorm behind it does; the latter stays where it is, and does nothing more."""
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = fuse_conv_bn_weights(
        _exactly(convolution.weight),
        _exactly(convolution.bias),
        _exactly(norm.running_mean),
        _exactly(norm.running_var),
        norm.eps,
        _exactly(norm.weight),
        _exactly(norm.bias),
    )
    own = convolution.weight
    own.copy_(weight)
    convolution.bias = nn.Parameter(bias.to(own.device, own.dtype), requires_grad=False)
    norm.__class__ = _LEFT[type(norm)]
    norm._parameters.clear()
    norm._buffers.clear()


def _exactly(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.cpu().double()  # some devices have no float64


def round_once(
    network: TappedNetwork, image_size: ImageSize, autocast: Callable[[], AbstractContextManager[object]]
) -> int:
    """Rounds to bfloat16, in place, the weights that autocast would round in every forward.

    Nothing is rounded where features or output would not be the same to the bit.

    Args:
        network: Frozen, in eval mode.
        image_size: Of its images in pixels.
        autocast: Makes the context of its forwards.

    Returns:
        How many tensors were rounded.
    """
    found = rounded_by_autocast(network.model)
    with autocast():
        before = _all_of(network, image_size)
    exact = [parameter.data for parameter in found]
    round_to_bfloat16(found)
    try:
        with autocast():
            after = _all_of(network, image_size)
        same = len(before) == len(after) and all(map(torch.equal, before, after))
    except Exception:  # whatever a network says of weights that are not float32
        same = False
    if not same:
        for parameter, data in zip(found, exact, strict=True):
            parameter.data = data
    return len(found) if same else 0


def rounded_by_autocast(model: nn.Module) -> list[nn.Parameter]:
    """Returns the float32 weights and biases that autocast rounds in every forward."""
    return [
        parameter
        for module in model.modules()
        if type(module) in _ROUNDED
        for parameter in module._parameters.values()
        if parameter is not None and parameter.dtype == torch.float32
    ]


def round_to_bfloat16(parameters: Iterable[nn.Parameter]) -> None:
    """Rounds parameters in place."""
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.bfloat16)


def _all_of(network: TappedNetwork, image_size: ImageSize) -> list[Tensor]:
    """Returns output and all features of noise, in eval mode."""
    images_bchw = dry_images(height_width(image_size), torch.zeros_like(network.mean), torch.ones_like(network.std))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), as_written(network):
        output, features = network(images_bchw, levels=[level.number for level in network.levels])
    return [leaf for leaf in tree_leaves([output, features]) if isinstance(leaf, Tensor)]
