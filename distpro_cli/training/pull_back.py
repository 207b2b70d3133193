"""The way back through an update: from the outer gradient at w_{t+1} to what it says about the gradient at w_t.

An update is w_{t+1} = w_t - lr · direction(g), where g is the gradient after clipping. With v = ∇_w L_outer(w_{t+1})
and u = (∂direction/∂g)ᵀ v, d L_outer / d weight_k = -lr · ⟨u, ∇_w D_k⟩. SGD has u = v, up to momentum's factor. SAMA
(Choe et al. 2023) pulls back through Adam likewise, without the path through the second moment.

Shape legend: k pathways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import SGDW, AdamWLegacy, Lamb, Lion
from torch import Tensor, nn

from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import Distiller
from distpro_cli.training.tensors import clones


@dataclass(frozen=True)
class GroupUpdate:
    """What an optimiser made its update of one parameter group from; lists by parameter.

    Attributes:
        options: Of the group.
        states: Of the optimiser, after the update.
        before: w_t.
        gradients: g, after all clipping.
    """

    options: Mapping[str, Any]
    states: list[dict[str, Any]]
    before: list[Tensor]
    gradients: list[Tensor]


Transpose = Callable[[GroupUpdate, list[Tensor]], list[Tensor]]  # the group's part of v in, of u out


def _sgd(update: GroupUpdate, v: list[Tensor]) -> list[Tensor]:
    """m' = μ m + (1 - dampening) g; direction m', or g + μ m' (Nesterov).

    The factor 1 - dampening, or 1 + μ (1 - dampening), is one for all parameters and is left out: Adam on alpha does
    not see it, and a search by momentum SGD keeps its numbers.
    """
    if not update.options["momentum"] or not update.options.get("caution", False):
        return v
    directions = [state["momentum_buffer"] for state in update.states]
    if update.options["nesterov"]:
        directions = list(torch._foreach_add(update.gradients, directions, alpha=update.options["momentum"]))
    return _cautious(update, directions, v)


def _adam(update: GroupUpdate, v: list[Tensor]) -> list[Tensor]:
    """Adam with the weight decay inside the gradient: what its moments see is g + decay · w."""
    decay = update.options["weight_decay"]
    gradients = update.gradients
    if decay and not update.options.get("decoupled_weight_decay", False):
        gradients = list(torch._foreach_add(gradients, update.before, alpha=decay))
    _, slopes = _adam_direction(update, gradients)
    return list(torch._foreach_mul(v, slopes))


def _adamw(update: GroupUpdate, v: list[Tensor]) -> list[Tensor]:
    directions, slopes = _adam_direction(update, update.gradients)
    return list(torch._foreach_mul(_cautious(update, directions, v), slopes))


def _adam_direction(update: GroupUpdate, gradients: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns Adam's direction m̂ / (√v̂ + ε) and its derivative by the gradient, element by element.

    With m' = β₁ m + (1 - β₁) g, s' = β₂ s + (1 - β₂) g², corrections c = 1 - βᵗ and D = √(s'/c₂) + ε, the derivative
    of (m'/c₁) / D is (1 - β₁) / (c₁ D) - direction · (1 - β₂) g / (c₂ √(s'/c₂) D).
    """
    options, states = update.options, update.states
    beta1, beta2 = options["betas"]
    share = 1 - beta1 if options.get("grad_averaging", True) else 1.0
    corrections1, corrections2 = _bias_corrections(update, beta1), _bias_corrections(update, beta2)
    squares = [state["exp_avg_sq"] for state in states]
    if options.get("amsgrad", False):
        largest = [state["max_exp_avg_sq"] for state in states]
        # Where an older square is the largest, the gradient does not move the denominator.
        gradients = [g * (s == most) for g, s, most in zip(gradients, squares, largest, strict=True)]
        squares = largest
    root = torch._foreach_sqrt(squares)
    torch._foreach_div_(root, [math.sqrt(c) for c in corrections2])
    denominators = torch._foreach_add(root, options["eps"])
    directions = torch._foreach_div([state["exp_avg"] for state in states], denominators)
    torch._foreach_div_(directions, corrections1)
    slopes = torch._foreach_mul(directions, gradients)
    # Where no gradient ever came, the root is zero, and so is what is divided by it.
    torch._foreach_clamp_min_(root, torch.finfo(root[0].dtype).tiny)
    torch._foreach_div_(slopes, root)
    torch._foreach_mul_(slopes, [(beta2 - 1) / c for c in corrections2])
    torch._foreach_add_(slopes, [share / c for c in corrections1])
    torch._foreach_div_(slopes, denominators)
    return list(directions), list(slopes)


def _bias_corrections(update: GroupUpdate, beta: float) -> list[float]:
    """Returns 1 - βᵗ by parameter; timm's Lamb counts the steps of a group, Adam those of a parameter."""
    if not update.options.get("bias_correction", True):
        return [1.0] * len(update.states)
    if "step" in update.options:
        steps = [float(update.options["step"])] * len(update.states)
    else:
        # Stacked, since the counters of a fused optimiser lie on the device: one wait, not one per parameter.
        steps = torch.stack([state["step"] for state in update.states]).tolist()
    return [1 - beta**step for step in steps]


def _lamb(update: GroupUpdate, v: list[Tensor]) -> list[Tensor]:
    """r = Adam's direction + decay · w, then ‖w‖/‖r‖ · r, tensor by tensor; its clipping is in `largest_norm`."""
    options = update.options
    directions, slopes = _adam_direction(update, update.gradients)
    masks = _cautious(update, directions, [torch.ones_like(direction) for direction in directions])
    if options["weight_decay"] or options["always_adapt"]:
        weights = update.before
        totals = list(torch._foreach_mul(directions, masks))
        if options.get("decoupled_decay", False):
            weights = list(torch._foreach_mul(weights, 1 - options["lr"] * options["weight_decay"]))
        else:
            torch._foreach_add_(totals, weights, alpha=options["weight_decay"])
        v = [
            _through_trust_ratio(part, total, weight, clipped=options["trust_clip"])
            for part, total, weight in zip(v, totals, weights, strict=True)
        ]
    return list(torch._foreach_mul(torch._foreach_mul(v, masks), slopes))


def _through_trust_ratio(v: Tensor, direction: Tensor, weight: Tensor, *, clipped: bool) -> Tensor:
    """Returns the transpose of r ↦ ‖w‖/‖r‖ · r at `direction`: ‖w‖/‖r‖ · (v - r̂ ⟨r̂, v⟩)."""
    ratio = weight.norm() / direction.norm()
    unit = direction / direction.norm()
    constant = ~torch.isfinite(ratio) | (ratio == 0)
    if clipped:
        constant |= ratio >= 1
    return torch.where(constant, v, ratio * (v - unit * torch.sum(unit * v)))


def _lion(update: GroupUpdate, v: list[Tensor]) -> list[Tensor]:
    """The direction is sign(c), c = β₁ m + (1 - β₁) g, which has no derivative; a stated surrogate stands in for it.

    The surrogate is the derivative of the sign's mean when c is normally distributed around the momentum m' with the
    tensor's own root mean square σ of m': √(2/π)/σ · exp(-m'²/2σ²), times 1 - β₁. What is near to a change of sign
    counts, what is far from it does not, and the scale of the gradients drops out as it does in Lion.
    """
    momenta = [state["exp_avg"] for state in update.states]
    v = _cautious(update, momenta, v)
    pulled = []
    for part, momentum in zip(v, momenta, strict=True):
        sigma = momentum.square().mean().sqrt()
        density = math.sqrt(2 / math.pi) / sigma * torch.exp(-((momentum / sigma) ** 2) / 2)
        pulled.append(torch.where(sigma > 0, part * density * (1 - update.options["betas"][0]), 0.0))
    return pulled


def _cautious(update: GroupUpdate, directions: Sequence[Tensor], v: list[Tensor]) -> list[Tensor]:
    """Returns the transpose of timm's `caution` (Liang et al. 2024): what disagrees with the gradient stands still."""
    if not update.options.get("caution", False):
        return v
    masks = [(d * g > 0).to(g.dtype) for d, g in zip(directions, update.gradients, strict=True)]
    return [part * mask / mask.mean().clamp_min(1e-3) for part, mask in zip(v, masks, strict=True)]


# A subclass is what its nearest ancestor here is: the first that fits.
_TRANSPOSES: dict[type[torch.optim.Optimizer], Transpose] = {
    torch.optim.SGD: _sgd,
    SGDW: _sgd,
    torch.optim.AdamW: _adamw,
    AdamWLegacy: _adamw,
    torch.optim.Adam: _adam,
    Lamb: _lamb,
    Lion: _lion,
}


def _transpose(optimizer: torch.optim.Optimizer) -> Transpose | None:
    return next((found for kind, found in _TRANSPOSES.items() if isinstance(optimizer, kind)), None)


def missing_pull_back(optimizer: torch.optim.Optimizer) -> str | None:
    """Returns what a search should say once about an optimiser that is passed as if it were plain SGD, else None."""
    if _transpose(optimizer) is not None:
        return None
    return (
        f"the hypergradient passes {type(optimizer).__name__} as if it were plain SGD and may point elsewhere; "
        "it goes exactly through SGD, SGDW, AdamW, AdamWLegacy, Adam and Lamb, and through Lion by a surrogate"
    )


def pull_back(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    before: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    v: Sequence[Tensor],
) -> list[Tensor]:
    """Returns u, the transpose of ∂direction/∂g applied to v; element-wise but for Lamb's norm of a tensor.

    The learning rate of the first parameter group is left out; that of another group enters as its ratio to it.

    Args:
        optimizer: After the update.
        parameters: Of the student.
        before: w_t, by parameter.
        gradients: g after all clipping, by parameter; None where the update had none.
        v: The outer gradient at w_{t+1}, by parameter.
    """
    transpose = _transpose(optimizer) or (lambda update, v: v)
    number_of = {parameter: number for number, parameter in enumerate(parameters)}
    first_rate = learning_rate(optimizer)
    u: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        members = [number_of[p] for p in group["params"] if p in number_of and gradients[number_of[p]] is not None]
        if not members:
            continue
        update = GroupUpdate(
            options=group,
            states=[optimizer.state[parameters[n]] for n in members],
            before=[before[n] for n in members],
            gradients=[g for n in members if (g := gradients[n]) is not None],
        )
        rate = float(group["lr"]) / first_rate if first_rate else 1.0
        pulled = torch._foreach_mul(transpose(update, [v[n] for n in members]), rate)
        u |= zip(members, pulled, strict=True)
    return [u[n] if n in u else torch.zeros_like(part) for n, part in enumerate(v)]


def largest_norm(optimizer: torch.optim.Optimizer, clip_grad: float | None) -> float | None:
    """Returns the norm to which the whole gradient is clipped, by the step or by timm's Lamb itself; None: any."""
    own = optimizer.defaults["max_grad_norm"] if isinstance(optimizer, Lamb) else None
    return min((limit for limit in (clip_grad, own) if limit is not None), default=None)


@dataclass(frozen=True)
class PulledBack:
    """What the outer gradient says about the gradient at w_t, before it was clipped.

    With s = c/‖G‖ where the gradient G of all that is trained is clipped to the norm c, and 1 elsewhere,

        d L_outer / d weight_k = -lr · s · (⟨u - κ g, ∇_w D_k⟩ - κ ⟨g_θ, ∇_θ D_k⟩),  κ = ⟨u, g⟩/‖G‖² or 0,

    where g and g_θ are the parts of G that belong to the student and to the transform blocks.

    Attributes:
        direction: u - κ g, then -κ g_θ of the blocks that were asked for; where nothing ever clips, u alone.
        scale: s.
        kappa: κ.
    """

    direction: list[Tensor]
    scale: Tensor | float = 1.0
    kappa: Tensor | float = 0.0


class Update:
    """Keeps, before an update, what the way back through it needs.

    Args:
        distiller: After `backward`.
        blocks: The parameters of transform blocks whose part in the clipping is wanted.

    Attributes:
        before: The student's parameters, then the blocks', as they are.
    """

    def __init__(self, distiller: Distiller, blocks: Sequence[Tensor]) -> None:
        self.optimizer, self.student = distiller.optimizer, distiller.student_parameters
        self.before = clones([*self.student, *blocks])
        self.limit = largest_norm(self.optimizer, distiller.clip_grad)
        kept = self.student if self.limit is None else [*self.student, *blocks]
        # Copies, because torch's Nesterov SGD may add the momentum to the gradients themselves.
        copies = iter(clones([p.grad for p in kept if p.grad is not None]))
        self.gradients = [None if p.grad is None else next(copies) for p in kept]
        if self.limit is not None:
            self.norm = nn.utils.get_total_norm([p.grad for p in distiller.trained_parameters if p.grad is not None])

    def pull_back(self, v: list[Tensor]) -> PulledBack:
        """Returns what v, the outer gradient by the student's parameters after the update, says about ∇_w D_k."""
        size = len(self.student)
        before, gradients = self.before[:size], self.gradients[:size]
        if self.limit is None:
            return PulledBack(pull_back(self.optimizer, self.student, before, gradients, v))
        scale = (self.limit / self.norm).clamp(max=1.0)
        clipped = [None if g is None else g * scale for g in gradients]
        u = pull_back(self.optimizer, self.student, before, clipped, v)
        kappa = torch.where(scale < 1, inner_product(u, gradients) / self.norm**2, 0.0)
        u += [torch.zeros_like(p) for p in self.before[size:]]
        direction = [part if g is None else part - kappa * g for part, g in zip(u, self.gradients, strict=True)]
        return PulledBack(direction, scale, kappa)


def inner_product(left: Sequence[Tensor], right: Sequence[Tensor | None]) -> Tensor:
    """Returns ⟨left, right⟩ over all parameters, a scalar; None counts as zero."""
    products = [torch.sum(a * b) for a, b in zip(left, right, strict=True) if b is not None]
    return torch.stack(products).sum() if products else left[0].new_zeros(())
