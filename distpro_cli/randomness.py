"""Randomness by name: seeds derived from what they are for, and the global states left as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """Returns a seed in [0, 2^63) for the named use: the same parts give the same seed on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_globals(seed: int) -> None:
    """Seeds the global CPU generators of Python, NumPy and torch: timm's transforms draw from all three."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def global_states_kept() -> Iterator[None]:
    """Puts the global CPU generators of Python, NumPy and torch back to where they were."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
