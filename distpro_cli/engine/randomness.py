"""Seeds for everything random, derived from the run's seed, so that any step can be replayed alone."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Returns a 63-bit seed for the named use: the same names give the same seed on every machine."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_torch(seed: int, *names: str | int) -> None:
    """Seeds torch's global generators for the named use; a run seeds anew at every step, so it holds no state."""
    torch.manual_seed(derive_seed(seed, *names))
