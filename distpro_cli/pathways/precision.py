"""Which precision parts of a pathway keep under any precision of the recipe."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leaves mixed precision while inside; the meta device knows none and would refuse."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
