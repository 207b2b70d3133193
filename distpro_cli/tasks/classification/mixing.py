"""Mixup and CutMix of a batch, replayable by step.

Shape legend: b images, c channels, h height, w width, n classes.
"""

from __future__ import annotations

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional

from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals


class Mixing:
    """timm's Mixup, whose draws depend on the seed and the step alone.

    With both alphas set, each batch takes one of the two with probability ½. An odd batch leaves its last
    image as it is, since images are mixed in pairs. Smoothing is left to the loss.

    Args:
        mixup: Alpha of mixup (Zhang et al. 2018, arXiv 1710.09412), ≥ 0; 0 is without.
        cutmix: Alpha of CutMix (Yun et al. 2019, arXiv 1905.04899), ≥ 0; 0 is without.
        num_classes: N.
        seed: Seed of the run.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.active = mixup > 0 or cutmix > 0
        self._num_classes = num_classes
        self._seed = seed
        self._mixup = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images_bchw: Tensor, targets_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns mixed copies of the images and their targets; both untouched where nothing is mixed.

        Args:
            images_bchw: Float images on any device.
            targets_b: Class numbers int64.
            step: Number of the step in the run.

        Returns:
            Images of the same shape, and probabilities float32 [B, N].
        """
        pairs = len(images_bchw) // 2 * 2
        if not self.active:
            return images_bchw, targets_b
        targets_bn = functional.one_hot(targets_b, self._num_classes).float()
        if pairs == 0:
            return images_bchw, targets_bn
        with global_states_kept():
            seed_globals(derived_seed(self._seed, "mixing", step))
            mixed, mixed_targets = self._mixup(images_bchw[:pairs].clone(), targets_b[:pairs])
        images = torch.cat([mixed, images_bchw[pairs:]])
        return images, torch.cat([mixed_targets.to(targets_bn.dtype), targets_bn[pairs:]])
