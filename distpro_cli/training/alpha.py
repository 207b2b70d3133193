"""Alpha: the raw scores of the pathways, what turns them into weights, and Adam that moves them.

Shape legend: k pathways, t recorded rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distpro_cli.process.schedule import rows_to_keep
from distpro_cli.recipe.schema import Search

Normalization = Callable[[Tensor, float, float], Tensor]


def _biased_softmax(alpha_k: Tensor, kappa: float, bias: float) -> Tensor:
    extended = torch.cat([alpha_k, alpha_k.new_tensor([bias])])
    return alpha_k.numel() * kappa * torch.softmax(extended, dim=0)[:-1]


def _softmax(alpha_k: Tensor, kappa: float, bias: float) -> Tensor:
    return alpha_k.numel() * kappa * torch.softmax(alpha_k, dim=0)


def _sigmoid(alpha_k: Tensor, kappa: float, bias: float) -> Tensor:
    return kappa * torch.sigmoid(alpha_k)


def _abs(alpha_k: Tensor, kappa: float, bias: float) -> Tensor:
    return kappa * alpha_k.abs()


def _none(alpha_k: Tensor, kappa: float, bias: float) -> Tensor:
    # Straight through: the forward is max(alpha, 0), the gradient that of alpha, so that a weight can return from 0.
    return kappa * (alpha_k + (alpha_k.clamp(min=0) - alpha_k).detach())


NORMALIZATIONS: dict[str, Normalization] = {
    "biased-softmax": _biased_softmax,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "abs": _abs,
    "none": _none,
}


class AlphaOptimizer:
    """Source of weights of a search: holds alpha, moves it by Adam, and records what it was.

    `biased-softmax` is weight_k = K κ exp(α_k) / (e^b + Σ exp α) (Deng et al. 2022): the bias takes a share of its
    own, so all weights can go to zero together. Every normalisation gives weights ≥ 0.

    Row t of the record holds what step t used, at progress t / total_steps; the last row, at progress 1, what the
    last update left.
    """

    def __init__(self, num_pathways: int, spec: Search, total_steps: int, device: torch.device) -> None:
        self.spec = spec
        self.total_steps = total_steps
        self.alpha_k = torch.full((num_pathways,), float(spec.alpha_start), device=device, requires_grad=True)
        betas = (spec.alpha_betas[0], spec.alpha_betas[1])
        self.adam = torch.optim.Adam([self.alpha_k], lr=spec.alpha_lr, betas=betas)
        self.kept_steps = [*rows_to_keep(total_steps), total_steps]
        self._row_of_step = {step: row for row, step in enumerate(self.kept_steps)}
        self.alpha_tk = torch.zeros(len(self.kept_steps), num_pathways, device=device)
        self.weight_tk = torch.zeros_like(self.alpha_tk)

    def weights(self) -> Tensor:
        """Returns the weights in force, [K] ≥ 0, without gradient."""
        with torch.no_grad():
            return self._normalized()

    def record(self, step: int) -> None:
        """Writes alpha and weights of `step` (0..total_steps) into the record, if that row is kept."""
        row = self._row_of_step.get(step)
        if row is not None:
            self.alpha_tk[row] = self.alpha_k.detach()
            self.weight_tk[row] = self.weights()

    def update(self, hypergradient_k: Tensor) -> None:
        """Takes one step of Adam; `hypergradient_k` is d(outer loss)/d(weight), [K]."""
        self.adam.zero_grad(set_to_none=True)
        self._normalized().backward(hypergradient_k.to(self.alpha_k))
        self.adam.step()

    def table(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Returns progress [T], weights [T, K] and alpha [T, K] of the whole search."""
        progress_t = np.asarray(self.kept_steps, dtype=np.float64) / self.total_steps
        return progress_t.astype(np.float32), self.weight_tk.cpu().numpy(), self.alpha_tk.cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed search needs; live tensors, as an optimiser's."""
        return {
            "alpha": self.alpha_k.detach().clone(),
            "adam": self.adam.state_dict(),
            "alpha_rows": self.alpha_tk,
            "weight_rows": self.weight_tk,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        with torch.no_grad():
            self.alpha_k.copy_(state["alpha"])
        self.adam.load_state_dict(state["adam"])
        self.alpha_tk.copy_(state["alpha_rows"])
        self.weight_tk.copy_(state["weight_rows"])

    def _normalized(self) -> Tensor:
        return NORMALIZATIONS[self.spec.normalization](self.alpha_k, self.spec.weight, self.spec.bias)
