"""Other sources of weights over time, from the literature, each recorded as a process.

What every pathway pulls with is at hand in a step: g_k = ∂D_k/∂F and g_0 = ∂L_task/∂F at the student's feature F of
its level, over the whole batch (`FeatureGradients`). What a step shows decides the weights of the steps after it. κ is
`search.weight`; rules that have seen nothing yet start with weights of κ.

| name | weight_k, its group's factor apart |
| --- | --- |
| random | K κ softmax(z)_k, z ~ N(0, 1) |
| metabalance | κ (r ‖g_0‖ / ‖g_k‖ + 1 - r) |
| cosine | κ max(0, cos(g_0, g_k)) |
| cosine-outer | κ max(0, cos(Ḟ, g_k)), Ḟ the feature's change along the outer gradient |
| share | c, so that Σ_k c ‖g_k‖ / ‖g_0‖ = κ |
| uncertainty | κ / (2 e^{s_k}) |
| loss | κ / D̄_k, D̄_k a running average |

Shape legend: k pathways.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Search
from distpro_cli.tasks.task import Batch
from distpro_cli.training.alpha import Record, alpha_lr
from distpro_cli.training.feature_gradients import FeatureGradients, cosines, norms
from distpro_cli.training.hypergradients.cheap import CheapHypergradient
from distpro_cli.training.scale import inverse_loss, running
from distpro_cli.training.step import Distiller, Kept, StepLosses
from distpro_cli.training.weights import Batches, MovedWeights

RELAX = 0.7  # r of MetaBalance
KEPT = 0.9  # of MetaBalance's averages, per move


class Rival(MovedWeights):
    """Weights by a rule: κ · factor_k · relative_k, of which a subclass moves `relative_k`.

    Args:
        distiller: Runs the steps.
        spec: The recipe's `search`.
        factor_k: Factor of every weight, [K] > 0.
        record: Of the weights.
        outer_batches: By number of the move; few rules look at them.
        steps_per_epoch: Of the run.
    """

    def __init__(
        self,
        distiller: Distiller,
        spec: Search,
        factor_k: Tensor,
        record: Record,
        outer_batches: Batches,
        steps_per_epoch: int,
    ) -> None:
        super().__init__(distiller, record, spec.steps_per_update(record.total_steps), outer_batches)
        self.spec = spec
        self.steps_per_epoch = steps_per_epoch
        self.factor_k = factor_k.to(distiller.device)
        self.state = {"relative": torch.ones_like(self.factor_k)}  # all that is moved, [K] each

    @override
    def weights(self) -> Tensor:
        return self.spec.kappa * self.factor_k * self.state["relative"]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rule": dict(self.state)}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.state = {name: values_k.to(self.factor_k) for name, values_k in state["rule"].items()}


class RandomWeights(Rival):
    """New random weights at every move: K κ softmax(z), z ~ N(0, 1).

    Random loss weighting (Lin et al. 2022, "Reasonable effectiveness of random weighting", TMLR): what any rule has to
    beat. The draw depends on the run's seed and the step alone.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._draw(0)

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        losses = self.distiller.step(batch, weights_k, step)
        self._draw(step + self.interval)
        return losses, None

    def _draw(self, step: int) -> None:
        generator = torch.Generator().manual_seed(derived_seed(self.distiller.seed, "random weights", step))
        drawn_k = torch.randn(self.factor_k.numel(), generator=generator)
        self.state["relative"] = (drawn_k.numel() * drawn_k.softmax(0)).to(self.factor_k)


class GradientRule(Rival):
    """A rule that looks at g_0 and g_k."""

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        found: dict[int, FeatureGradients] = {}
        losses = self.distiller.backward(batch, weights_k, step, Kept(at_student=found))
        self.distiller.update()
        self.look([found[k] for k in range(weights_k.numel())], step)
        return losses, None

    @abstractmethod
    def look(self, gradients: list[FeatureGradients], step: int) -> None:
        """Moves `relative_k` by what the step showed, pathway by pathway."""


class NormRule(GradientRule):
    """A rule that adds up ‖g_0‖ and ‖g_k‖ over the moves."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state |= {"task": torch.zeros_like(self.factor_k), "pathway": torch.zeros_like(self.factor_k)}


class MetaBalance(NormRule):
    """Pulls every pathway's gradient towards the size of the task's: weight_k = κ (r ‖g_0‖ / ‖g_k‖ + 1 - r).

    MetaBalance (He et al. 2022, WWW, algorithm 1, both larger and smaller gradients):
    g_k ← r · ‖g_0‖ / ‖g_k‖ · g_k + (1 - r) · g_k with r = 0.7, norms averaged over the moves at 0.9, from 0.
    """

    @override
    def look(self, gradients: list[FeatureGradients], step: int) -> None:
        task_k, pathway_k = norms(gradients, self.distiller.world)
        self.state["task"] = KEPT * self.state["task"] + (1 - KEPT) * task_k
        self.state["pathway"] = KEPT * self.state["pathway"] + (1 - KEPT) * pathway_k
        self.state["relative"] = RELAX * _ratio(self.state["task"], self.state["pathway"]) + (1 - RELAX)


class Cosine(GradientRule):
    """Lets a pathway pull as far as it agrees with the task: weight_k = κ max(0, cos(g_0, g_k)).

    Du et al. 2018, "Adapting auxiliary losses using gradient similarity" (arXiv 1812.02224, weighted variant), at the
    student's feature in the place of the parameters.
    """

    @override
    def look(self, gradients: list[FeatureGradients], step: int) -> None:
        self.state["relative"] = cosines([(pair.task, pair.pathway) for pair in gradients], self.distiller.world).clamp(
            min=0
        )


class CosineOuter(Rival):
    """As `Cosine`, with the outer gradient in the task's place: weight_k = κ max(0, cos(Ḟ, g_k)).

    Ḟ is the change of what the pathway starts from along u, the outer gradient pulled back through the optimiser, which
    the cheap hypergradient computes. ⟨g_k, Ḟ⟩ = ⟨u, ∇_w D_k⟩, so the sign is that of the cosine between u and ∇_w D_k.
    ‖∇_w D_k‖ would cost a backward pass per pathway; ‖g_k‖ ‖Ḟ‖ bounds the product as well, and makes it the cosine of
    g_k and Ḟ at the feature.
    """

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        cheap = CheapHypergradient(self.distiller)
        found = cheap.differentiate(batch, self.next_outer(step), weights_k, step)
        self.state["relative"] = cosines(
            [(change, gradient) for gradient, change in found.pairs], self.distiller.world
        ).clamp(min=0)
        return found.losses, found.outer_losses


class Share(NormRule):
    """Keeps distillation's part of the gradient's norm: Σ_k weight_k ‖g_k‖ / ‖g_0‖ = κ, a share of κ / (1 + κ).

    All pathways have one factor c; it is set after the first move and after every epoch, by the sums of the norms over
    the moves since. Pathways at whose level the task does not pull are not counted. Our own baseline: the hand-tuned
    weight of a fixed scheme, made to follow the sizes of the gradients.
    """

    @override
    def look(self, gradients: list[FeatureGradients], step: int) -> None:
        task_k, pathway_k = norms(gradients, self.distiller.world)
        self.state["task"] = self.state["task"] + task_k
        self.state["pathway"] = self.state["pathway"] + pathway_k
        if step == 0 or step // self.steps_per_epoch != (step + self.interval) // self.steps_per_epoch:
            total = (self.factor_k * _ratio(self.state["pathway"], self.state["task"])).sum()
            if total > 0:
                self.state["relative"] = torch.ones_like(self.factor_k) / total
            if step > 0:
                self.state |= {name: torch.zeros_like(self.factor_k) for name in ("task", "pathway")}


class Uncertainty(Rival):
    """Learns how noisy every pathway's loss is: weight_k = κ / (2 e^{s_k}), s_k from 0.

    Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses" (CVPR): s_k = log σ_k² minimises
    D_k / (2 e^{s_k}) + s_k / 2, here by Adam with `search.alpha_lr` and `search.alpha_betas`; the task's own weight
    stays 1. At rest e^{s_k} = D_k, so every pathway adds κ / 2 to the loss.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.s_k = torch.zeros_like(self.factor_k).requires_grad_()
        num_moves = -(-self.record.total_steps // self.interval)
        betas = (self.spec.alpha_betas[0], self.spec.alpha_betas[1])
        self.adam = torch.optim.Adam([self.s_k], lr=alpha_lr(self.spec, num_moves), betas=betas)

    @override
    def weights(self) -> Tensor:
        return self.spec.kappa * self.factor_k * (-self.s_k.detach()).exp() / 2

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        losses = self.distiller.step(batch, weights_k, step)
        self.adam.zero_grad(set_to_none=True)
        (losses.distance_k / (2 * self.s_k.exp()) + self.s_k / 2).sum().backward()
        self.adam.step()
        return losses, None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "s": self.s_k.detach().clone(), "adam": self.adam.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.s_k.copy_(state["s"])
        self.adam.load_state_dict(state["adam"])


class InverseLoss(Rival):
    """Lets every pathway add κ to the loss: weight_k = κ / D̄_k, the unit `scale: loss` of a search without its alpha.

    Our own control: what such a search has to beat. D̄_k is averaged as in `LossScale`, from the first step on, which
    trains without distillation.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state["relative"] = torch.zeros_like(self.factor_k)

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        return self.between(batch, weights_k, step), None

    @override
    def between(self, batch: Batch, weights_k: Tensor, step: int) -> StepLosses:
        losses = super().between(batch, weights_k, step)
        if "loss" in self.state:
            self.state["loss"] = running(self.state["loss"], losses)
        else:
            self.state["loss"] = self.state["first"] = losses.distance_k.to(self.factor_k)
        self.state["relative"] = inverse_loss(self.state["loss"], self.state["first"])
        return losses


RIVALS: dict[str, type[Rival]] = {
    "random": RandomWeights,
    "metabalance": MetaBalance,
    "cosine": Cosine,
    "cosine-outer": CosineOuter,
    "share": Share,
    "uncertainty": Uncertainty,
    "loss": InverseLoss,
}


def _ratio(above_k: Tensor, below_k: Tensor) -> Tensor:
    """Returns above / below, 0 where below is 0."""
    return torch.where(below_k > 0, above_k / below_k, torch.zeros_like(above_k))
