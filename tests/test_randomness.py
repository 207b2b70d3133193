"""Seeds by name are the same on every machine and in every version; global states are given back."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_a_seed_is_a_hash_of_what_it_is_for() -> None:
    digest = hashlib.blake2b(b"(3, 'mixing', 5)", digest_size=8).digest()
    assert derived_seed(3, "mixing", 5) == int.from_bytes(digest, "little") // 2
    assert len({derived_seed(0, "a"), derived_seed("0", "a"), derived_seed("a", 0), derived_seed(0, "b")}) == 4


def test_global_states_are_given_back_whatever_happens() -> None:
    seed_globals(derived_seed(1))
    expected = draw()
    seed_globals(derived_seed(1))
    try:
        with global_states_kept():
            seed_globals(2)
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected
