"""The hypergradient where torch rounds: TF32 emulated on the CPU, and bfloat16 by autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cosine_similarity

from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import full_float32, rounds_float32
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.step import Distiller
from tests.helpers import classification
from tests.training.test_hypergradients import RECIPE, make_distiller, weights

CUDA = torch.device("cuda")
STATES = (10, 15, 20, 25, 30)  # steps before the one that is looked at


def to_tf32(tensor: Tensor) -> Tensor:
    """Rounds to TF32's ten bits of mantissa; the gradient passes."""
    bits = tensor.detach().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return tensor + (rounded - tensor).detach()


@pytest.fixture
def emulated_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions and linear layers round their weights and inputs as CUDA does, wherever its switches allow it."""

    def rounding(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def rounded(inputs: Tensor, weight: Tensor, *rest: object) -> Tensor:
            if rounds_float32(CUDA) and not torch.is_autocast_enabled("cpu"):
                inputs, weight = to_tf32(inputs), to_tf32(weight)
            return compute(inputs, weight, *rest)

        return rounded

    monkeypatch.setattr(functional, "conv2d", rounding(functional.conv2d))
    monkeypatch.setattr(functional, "linear", rounding(functional.linear))
    # The CPU has CUDA's switches, but no TF32 of its own.
    monkeypatch.setattr("distpro_cli.training.hypergradients.cheap.rounds_float32", lambda _: rounds_float32(CUDA))
    yield


def found(name: str, distiller: Distiller, inner: Batch, outer: Batch, step: int, precision: str) -> Tensor:
    distiller = copy.deepcopy(distiller)
    distiller.precision = precision
    return make_hypergradient(name, distiller).step(inner, outer, weights(distiller), step)[2]


@pytest.mark.usefixtures("emulated_tf32")
def test_cheap_stays_exact_in_tf32_and_bfloat16() -> None:
    """Against autograd without any rounding, in five states of training on real images."""
    distiller = make_distiller(momentum=0.9)
    digits = list(classification().data(RECIPE.data, 0).train_batches(32, STATES[-1] + 2))
    for step, batch in enumerate(digits[:-1]):
        if step in STATES:
            assert rounds_float32(CUDA)
            outer = digits[step + 1]
            with full_float32():
                exact = found("exact", distiller, batch, outer, step, "float32")
            for precision in ("float32", "bfloat16"):
                cheap = found("cheap", distiller, batch, outer, step, precision)
                assert cosine_similarity(cheap, exact, dim=0) >= 0.99, (step, precision)
        distiller.step(batch, weights(distiller), step)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_full_float32_turns_tf32_off_and_back(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        assert rounds_float32(CUDA) and not rounds_float32(torch.device("cpu"))
        with pytest.raises(KeyError), full_float32():
            assert not rounds_float32(CUDA)
            raise KeyError
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
