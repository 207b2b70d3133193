"""BatchNorm over the images of all ranks, by torch's SyncBatchNorm."""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from distpro_cli.errors import DistproError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Lets every BatchNorm in `module` take mean and variance over all ranks.

    The modules stay where and what they are, and only change their class, since levels may be tapped at them.

    Raises:
        DistproError: torch cannot do that on this device, or with a BatchNorm of another kind.
    """
    found = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    if found and device.type != "cuda":
        raise DistproError(
            f"sync_batch_norm: torch's SyncBatchNorm computes on CUDA only, this run on {device.type}; set it to false "
            "(every rank then normalises by its own images), or run in one process"
        )
    for norm in found:
        if type(norm) is BatchNormAct2d:
            norm.__class__ = SyncBatchNormAct
        elif type(norm) in _PLAIN:
            norm.__class__ = nn.SyncBatchNorm
        elif not isinstance(norm, nn.SyncBatchNorm):
            raise DistproError(f"sync_batch_norm: a {type(norm).__name__} cannot be synchronised; set it to false")
        norm.process_group = None  # type: ignore[assignment]  # all ranks
