"""The student's optimiser and learning-rate schedule, both timm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from distpro_cli.errors import DistproError, nearest
from distpro_cli.recipe.schema import Optimizer, Schedule


def make_optimizer(modules: Mapping[str, nn.Module], spec: Optimizer) -> torch.optim.Optimizer:
    """Builds timm's optimiser `spec.name` over the parameters of all `modules`.

    Raises:
        DistproError: timm has no optimiser of that name, or it does not take the options.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            nn.ModuleDict(modules),
            opt=spec.name,
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            momentum=spec.momentum,
            filter_bias_and_bn=spec.no_decay,
            **spec.options,
        )
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        hint = nearest(spec.name, list_optimizers()) if "not found" in str(error) else ""
        raise DistproError(f"optimizer '{spec.name}' cannot be made: {error}{hint}") from None
    if getattr(optimizer, "is_second_order", False):
        raise DistproError(f"optimizer '{spec.name}' needs second derivatives, which are not computed; use another one")
    return optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, spec: Schedule, total_steps: int, steps_per_epoch: int
) -> Scheduler:
    """Builds timm's schedule over `total_steps` updates; `step_update(step)` sets the rate of that step."""
    warmup_steps = round(spec.warmup_epochs * steps_per_epoch)
    base_lr = float(optimizer.param_groups[0]["lr"])
    common: dict[str, Any] = {
        "warmup_t": warmup_steps,
        "warmup_lr_init": base_lr * 0.01,
        "t_in_epochs": False,
        "initialize": True,
    }
    curve_steps = total_steps - warmup_steps
    if spec.name == "cosine" and curve_steps > 1:  # a curve of one step is its start, as below; timm would complain
        return CosineLRScheduler(optimizer, t_initial=curve_steps, lr_min=spec.min_lr, warmup_prefix=True, **common)
    milestones = spec.milestones if spec.name == "step" else []
    decay_steps = [round(share * total_steps) for share in milestones]
    return MultiStepLRScheduler(optimizer, decay_t=decay_steps, decay_rate=spec.gamma, **common)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the learning rate in force, of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
