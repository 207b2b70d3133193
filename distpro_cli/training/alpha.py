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
    extended = torch.cat([alpha_k, alpha_k.new_full((1,), bias)])
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


class Record:
    """Alpha and weights over time, as a process keeps them: a few thousand rows at most.

    Row t holds what step t used, at progress t / total_steps; the last row, at progress 1, what the last update left.
    """

    def __init__(self, num_pathways: int, total_steps: int, device: torch.device) -> None:
        self.total_steps = total_steps
        self.kept_steps = [*rows_to_keep(total_steps), total_steps]
        self._row_of_step = {step: row for row, step in enumerate(self.kept_steps)}
        self.alpha_tk = torch.zeros(len(self.kept_steps), num_pathways, device=device)
        self.weight_tk = torch.zeros_like(self.alpha_tk)
        self.scale_tk = torch.ones_like(self.alpha_tk)

    def write(self, step: int, alpha_k: Tensor, weight_k: Tensor, scale_k: Tensor | None = None) -> None:
        """Records a step (0..total_steps), if its row is kept."""
        row = self._row_of_step.get(step)
        if row is not None:
            self.alpha_tk[row] = alpha_k.detach()
            self.weight_tk[row] = weight_k.detach()
            if scale_k is not None:
                self.scale_tk[row] = scale_k

    def table(self) -> dict[str, NDArray[np.float32]]:
        """Returns `progress` [T], `weights`, `alpha` and `scale`, [T, K] each."""
        progress_t = np.asarray(self.kept_steps, dtype=np.float64) / self.total_steps
        tables = {"weights": self.weight_tk, "alpha": self.alpha_tk, "scale": self.scale_tk}
        return {"progress": progress_t.astype(np.float32), **{name: tk.cpu().numpy() for name, tk in tables.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows so far."""
        return {"alpha_rows": self.alpha_tk, "weight_rows": self.weight_tk, "scale_rows": self.scale_tk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.alpha_tk.copy_(state["alpha_rows"])
        self.weight_tk.copy_(state["weight_rows"])
        self.scale_tk.copy_(state.get("scale_rows", self.scale_tk))  # 0.1.0 had none


class AlphaOptimizer:
    """Source of weights of a search: holds alpha, moves it by Adam, and pulls it back to where it started.

    `biased-softmax` is weight_k = K κ exp(α_k) / (e^b + Σ exp α) (Deng et al. 2022): the bias takes a share of its
    own, so all weights can go to zero together. Every normalisation gives weights ≥ 0.

    After each step of Adam α ← α - lr · d · (α - start), with d = `search.alpha_decay`. Adam's step is a running
    signal-to-noise ratio of the hypergradient in [-1, 1], so α becomes that ratio averaged over 1/(lr · d) updates and
    stays within 1/d of its start: a small steady lead on a pathway cannot take all of the weight.

    Args:
        start_k: Alpha at the start, [K].
        factor_k: Factor of every weight, [K] > 0.
        spec: The recipe's `search`.
        num_updates: Of the whole search; `alpha_lr` may follow from it.
        device: Where to compute.

    Attributes:
        scale_k: Unit of every weight, [K] > 0: a further factor, which may be set at any time.
    """

    def __init__(self, start_k: Tensor, factor_k: Tensor, spec: Search, num_updates: int, device: torch.device) -> None:
        self.spec = spec
        self.start_k, self.factor_k = start_k.to(device), factor_k.to(device)
        self.scale_k = torch.ones_like(self.factor_k)
        self.alpha_k = self.start_k.clone().requires_grad_()
        self.log_kappa = torch.zeros((), device=device, requires_grad=spec.learn_weight)  # beside log(spec.kappa)
        moved = [self.alpha_k, self.log_kappa] if spec.learn_weight else [self.alpha_k]
        betas = (spec.alpha_betas[0], spec.alpha_betas[1])
        self.lr = alpha_lr(spec, num_updates)
        self.adam = torch.optim.Adam(moved, lr=self.lr, betas=betas)

    def weights(self) -> Tensor:
        """Returns the weights in force, [K] ≥ 0, without gradient."""
        with torch.no_grad():
            return self._weights_at_start_of_kappa() * self.log_kappa.exp()

    def update(self, hypergradient_k: Tensor) -> None:
        """Takes one step; `hypergradient_k` is d(outer loss)/d(weight), [K], up to a factor.

        A learnt κ moves by Σ_k weight_k / κ · d(outer loss)/d(weight_k), so that Adam does not see κ's own growth.
        """
        self.adam.zero_grad(set_to_none=True)
        hypergradient_k = hypergradient_k.to(self.alpha_k)
        weight_k = self._weights_at_start_of_kappa()
        weight_k.backward(hypergradient_k)
        self.log_kappa.grad = weight_k.detach() @ hypergradient_k if self.spec.learn_weight else None
        self.adam.step()
        pull = self.lr * self.spec.alpha_decay
        if pull:
            with torch.no_grad():
                self.alpha_k -= pull * (self.alpha_k - self.start_k)
                self.log_kappa -= pull * self.log_kappa

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed search needs; live tensors, as an optimiser's."""
        kappa = {"log_kappa": self.log_kappa.detach().clone()} if self.spec.learn_weight else {}
        return {"alpha": self.alpha_k.detach().clone(), **kappa, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        with torch.no_grad():
            self.alpha_k.copy_(state["alpha"])
            if self.spec.learn_weight:
                self.log_kappa.copy_(state["log_kappa"])
        self.adam.load_state_dict(state["adam"])

    def _weights_at_start_of_kappa(self) -> Tensor:
        relative_k = NORMALIZATIONS[self.spec.normalization](self.alpha_k, self.spec.kappa, self.spec.bias)
        return relative_k * self.factor_k * self.scale_k


def alpha_lr(spec: Search, num_updates: int) -> float:
    """Returns the learning rate of alpha: as set, lowered where a pulled alpha would remember less than it is to."""
    if spec.alpha_memory is None or spec.alpha_decay == 0:
        return spec.alpha_lr
    return min(spec.alpha_lr, 1 / (spec.alpha_decay * spec.alpha_memory * num_updates))
