"""How many channels of an image a network takes: three, or one of a network for grey images."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.image_size import Size
from distpro_cli.networks.dry_run import BATCH, dry_forward

COLOUR, GREY = 3, 1
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow's mode L; they sum to 1


def image_channels(name: str, model: nn.Module, image_size: Size) -> int:
    """Returns the channels of the images that a network takes: 3, or 1 where it takes grey images alone.

    Its first convolution need not be the first to run, so that where this one does not take 3, images are tried.

    Args:
        name: Of the network, for the message.
        model: Left as it was.
        image_size: Height and width of the images in pixels.

    Raises:
        DistproError: it takes images of another number of channels.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels == COLOUR:
        return COLOUR
    for channels in (COLOUR, GREY):
        if _takes(model, channels, image_size):
            return channels
    if first is not None and _takes(model, first.in_channels, image_size):
        raise DistproError(
            f"network {name}: it takes images of {first.in_channels} channels, and images have 3, or 1 for a network "
            "of grey ones; set in_chans (in_channels of the CIFAR families) to 3 or 1 in its options"
        )
    return COLOUR  # what else is wrong is said when its levels are looked for


def _takes(model: nn.Module, channels: int, image_size: Size) -> bool:
    try:
        dry_forward(model, torch.zeros(BATCH, channels, *image_size), training=False)
    except DistproError:
        return False
    return True


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns a mean or std for another number of channels, as timm does: the average of what there is, for each."""
    numbers = tuple(map(float, values))
    return numbers if len(numbers) == channels else (sum(numbers) / len(numbers),) * channels


def as_grey(images_bchw: Tensor) -> Tensor:
    """Returns images [B, 3, H, W] as grey ones [B, 1, H, W]; those that are grey already keep their values."""
    # Images without values, which estimate memory, take none that has them, and leave none behind.
    luma = _kept_luma if type(images_bchw) is Tensor else _luma
    return (images_bchw * luma(images_bchw.device, images_bchw.dtype)).sum(1, keepdim=True)


def _luma(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(LUMA, device=device, dtype=dtype).reshape(1, -1, 1, 1)


@functools.cache
def _kept_luma(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the weights of the channels [1, 3, 1, 1], copied to a device once: every copy makes it wait."""
    return _luma(device, dtype)
