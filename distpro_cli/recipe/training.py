"""How a network is trained, in a recipe."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distpro_cli.recipe.base import (
    BelowOne,
    Fraction,
    Model,
    NonNegative,
    PositiveInt,
    PositiveNumber,
    PositiveShare,
    wrong,
)


class Optimizer(Model):
    """A timm optimiser."""

    name: str = Field(
        "sgd", description="timm's name: sgd is Nesterov SGD, momentum is plain momentum SGD, adamw, lamb, ..."
    )
    lr: PositiveNumber = Field(0.1, description="peak learning rate at this batch size")
    momentum: BelowOne = Field(0.9, description="momentum, where the optimiser has one")
    weight_decay: NonNegative = Field(
        5e-4, description="weight decay; not applied to biases and norms when no_decay is set"
    )
    no_decay: bool = Field(False, description="leave biases and normalisation parameters out of weight decay")
    options: dict[str, Any] = Field({}, description="further keyword arguments of the optimiser, such as betas")


class Schedule(Model):
    """A timm learning-rate schedule, stepped every update."""

    name: Literal["cosine", "step", "constant"] = Field("cosine", description="shape of the learning rate over time")
    milestones: list[Fraction] = Field(
        [],
        description="step: shares of the run, increasing, after which the rate is multiplied by gamma",
        examples=[[0.3, 0.6, 0.9]],
    )
    gamma: PositiveShare = Field(0.1, description="step: the factor at a milestone")
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up from 1 percent of lr")
    min_lr: NonNegative = Field(0.0, description="cosine: learning rate at the end")

    @field_validator("milestones")
    @classmethod
    def _milestones_increase(cls, milestones: list[float]) -> list[float]:
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise wrong("each milestone must be larger than the one before")
        return milestones

    @model_validator(mode="after")
    def _step_has_milestones(self) -> Self:
        if self.name == "step" and not self.milestones:
            raise wrong("step needs milestones, such as milestones: [0.3, 0.6, 0.9]", "name")
        return self


class Training(Model):
    """How a network is trained: alone (`teacher.train`, `distpro train`) or distilled (`distill`)."""

    epochs: PositiveInt = Field(100, description="passes over the train set")
    batch_size: PositiveInt = Field(128, description="images per step; on many ranks, of all of them")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images that go forward and backward at a time, whose gradients add up to the batch's; less "
        "memory, and the same step but for BatchNorm and dropout; default: the whole batch",
    )
    optimizer: Optimizer = Field(
        Optimizer(), description="optimiser of the network and, when it is distilled, of the transform blocks"
    )
    schedule: Schedule = Field(Schedule(), description="learning rate over time")
    label_smoothing: BelowOne = Field(0.0, description="label smoothing of the task loss; not of the outer one")
    mixup: NonNegative = Field(0.0, description="alpha of mixup; 0 disables it")
    cutmix: NonNegative = Field(0.0, description="alpha of CutMix; 0 disables it")
    augment_repeats: PositiveInt = Field(
        1,
        description="repeated augmentation (timm's --aug-repeats; DeiT: 3): an epoch shows as many samples as without, "
        "of fewer images, each so many times in a row with other augmentations",
    )
    clip_grad: PositiveNumber | None = Field(None, description="largest norm of the gradient")
    ema_decay: Fraction | None = Field(
        None,
        description="decay per step of a running average of the network's weights, such as 0.9998, evaluated and saved "
        "beside it; of teacher.train it is what teaches; not in a search",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        check_warmup(self.schedule, self.epochs)
        return self


class Distillation(Training):
    """How a student is distilled."""

    scale: Literal["measured", "recorded"] = Field(
        "measured",
        description="unit of a process's weights, where it was searched in one (search.scale); measured: anew in this "
        "run, by its own losses; recorded: as in its file, which fits runs that are much like the search alone",
    )


def check_warmup(schedule: Schedule, epochs: int) -> None:
    """Raises if the warm-up is longer than the run."""
    if schedule.warmup_epochs > epochs:
        raise wrong(
            f"schedule.warmup_epochs is {schedule.warmup_epochs:g}, longer than the run of {epochs} epochs; set a "
            "shorter warm-up or more epochs",
            "schedule",
        )
