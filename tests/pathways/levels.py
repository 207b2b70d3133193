"""Levels and features that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distpro_cli.process.pathway import LevelInfo

KINDS = {3: "map", 2: "tokens", 1: "vector"}


def level(*shape: int, number: int = 1, count: int = 5, kind: str | None = None) -> LevelInfo:
    """A level of this shape without batch; its kind follows from the number of axes unless told."""
    kind = kind or KINDS[len(shape)]
    reduction = 32 // shape[1] if kind == "map" else None
    return LevelInfo(number, count, f"stage{number}", kind, reduction, shape)


def levels(*shapes: tuple[int, ...], logits: int | None = None) -> tuple[LevelInfo, ...]:
    """Levels numbered from 1; `logits` classes add the logits as the last level."""
    count = len(shapes) + (logits is not None)
    found = [level(*shape, number=n, count=count) for n, shape in enumerate(shapes, 1)]
    if logits is not None:
        found.append(LevelInfo(count, count, "logits", "logits", None, (logits,)))
    return tuple(found)


def feature(info: LevelInfo, num_images: int = 2, seed: int = 0, **options: Any) -> Tensor:
    """A random feature of the level."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, *info.shape, generator=generator, **options)
