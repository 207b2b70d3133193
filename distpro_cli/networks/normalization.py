"""Mean and standard deviation off the images, as a network expects them.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalize(images_bchw: Tensor, mean_1c11: Tensor, std_1c11: Tensor) -> Tensor:
    """Returns (images - mean) / std.

    Where channels come last in memory, torch's loop over three channels takes five times as long on a CPU as one over a
    row of pixels; the numbers are the same.
    """
    width = images_bchw.shape[3]
    if images_bchw.device.type != "cpu" or width < 2 or not _rows_of_pixels(images_bchw):
        return (images_bchw - mean_1c11).div_(std_1c11)
    mean_r, std_r = (value.flatten().repeat(width) for value in (mean_1c11, std_1c11))
    images_bhwc = images_bchw.permute(0, 2, 3, 1)
    normalized = (images_bhwc.reshape(-1, len(mean_r)) - mean_r).div_(std_r)
    return normalized.view(images_bhwc.shape).permute(0, 3, 1, 2)


def _rows_of_pixels(images_bchw: Tensor) -> bool:
    return images_bchw.shape[1] > 1 and images_bchw.is_contiguous(memory_format=torch.channels_last)
