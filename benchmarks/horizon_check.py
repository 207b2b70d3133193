"""The check of `horizon.py`: its derivatives beside finite differences and the package's own.

Shape legend: t steps, k pathways.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from horizon_run import Bench, Settings, TwiceDifferentiable, differentiate, held_out, train
from torch import Tensor

from distpro_cli.pathways.distances import HierarchicalContext
from distpro_cli.pathways.hcl import hierarchical_mse
from distpro_cli.training.hypergradients import make_hypergradient

CHECK = (  # small enough for the two runs per weight of a finite difference
    "data.image_size=16", "teacher.name=wrn_10_1", "distill.batch_size=16", "data.augment.padding=1",
)  # fmt: skip
CHECK_STEPS = 3
WEIGHT_CHANGE = 3e-8  # larger ones meet ReLUs that switch
LARGEST_ERROR = 1e-5


def check() -> dict[str, float]:
    """Returns how far every derivative of a run of three steps is from its finite difference in float64.

    All differences are relative to the largest entry.
    """
    settings = Settings("quickstart", CHECK, None, CHECK_STEPS, (2, CHECK_STEPS), 100)
    outers = {"truth": None, f"horizon_{CHECK_STEPS}": CHECK_STEPS - 1}

    def losses(weights_tk: Tensor) -> Tensor:
        bench = make()
        train(bench, weights_tk)
        found = [held_out(bench, bench.final if n is None else [bench.outer[n]])[0] for n in outers.values()]
        return torch.tensor(found, dtype=torch.float64)

    def make() -> Bench:
        bench = Bench(settings, 0, "cpu", Path("unused"))
        bench.pair.teacher.requires_grad_(False).eval()  # of random weights
        bench.double()
        return bench

    bench = make()
    weights_tk = bench.weights_k.expand(CHECK_STEPS, -1).clone()
    found = differentiate(bench, train(bench, weights_tk))
    expected = {name: np.zeros_like(found[name]) for name in outers}
    for t, k in np.ndindex(*weights_tk.shape):
        change_tk = torch.zeros_like(weights_tk)
        change_tk[t, k] = WEIGHT_CHANGE
        difference = (losses(weights_tk + change_tk) - losses(weights_tk - change_tk)) / (2 * WEIGHT_CHANGE)
        for name, value in zip(outers, difference.tolist(), strict=True):
            expected[name][t, k] = value
    result = {name: _error(found[name], values) for name, values in expected.items()}
    return result | {"one_step": _one_step_error(make(), found), "hcl": _hcl_error()}


def _one_step_error(bench: Bench, found: dict[str, np.ndarray]) -> float:
    """Compares ⟨v, ∇D_k⟩ of the first step with the package's exact hypergradient."""
    exact = make_hypergradient("exact", bench.distiller)
    _, _, hypergradient_k = exact.step(bench.inner[0], bench.outer[0], bench.weights_k, 0)
    return _error(-found["rate"][0] * found["product"][0], hypergradient_k.numpy())


def _hcl_error() -> float:
    """Compares the HCL that is differentiated with the package's."""
    prediction, target = torch.randn(2, 4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = TwiceDifferentiable(HierarchicalContext())(prediction, target)
    return _error(ours.numpy(), hierarchical_mse(prediction - target).numpy())


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
