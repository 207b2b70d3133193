"""The schema of a recipe. Frozen models; `None` means "not set"; every key carries its description.

A recipe is a task, two networks, the pathways between their levels, and how to search and distil.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distpro_cli.recipe.base import (
    BelowOne,
    Connection,
    Deviation,
    Fraction,
    Mean,
    Model,
    NonNegative,
    PositiveInt,
    PositiveNumber,
    Seed,
    UserFile,
    wrong,
)
from distpro_cli.recipe.data import Augmentation, Data, check_normalization
from distpro_cli.recipe.scheme_names import SearchMethod
from distpro_cli.recipe.schemes import Schemes
from distpro_cli.recipe.training import Distillation, Optimizer, Schedule, Training

__all__ = [
    "Augmentation", "Data", "Distillation", "Network", "Optimizer", "PathwayGroup", "Recipe", "Schedule", "Schemes",
    "Search", "Student", "Teacher", "Training",
]  # fmt: skip

# Of search.interval where a recipe leaves it out.
KAPPA = {"loss": 10.0, "distance": 3.0, "gradient": 1.0}  # by search.scale, where search.weight is not set
LEAST_INTERVAL, MOST_INTERVAL, ENOUGH_UPDATES = 2, 8, 500


class Network(Model):
    """A network, its weights and the levels that are tapped."""

    name: Annotated[str, Field(min_length=1)] = Field(
        ...,
        description="timm name (also hf-hub:owner/model), path/to/file.py:Name, or a CIFAR family name: "
        "wrn_<depth>_<width> such as wrn_40_2; resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, resnet110; "
        "resnet8x4, resnet32x4; vgg8_cifar, vgg11_cifar, vgg13_cifar; mobilenet_v2_cifar (half width); "
        "shufflenet_v1_cifar, shufflenet_v2_cifar; resnet50_cifar",
        examples=["wrn_16_2", "resnet18", "network.py:Student"],
    )
    options: dict[str, Any] = Field({}, description="keyword arguments of the network's constructor")
    weights: str | None = Field(
        None, description="pretrained (timm), or a .safetensors or weights-only checkpoint file"
    )
    levels: Annotated[list[int | str], Field(min_length=1)] | None = Field(
        None,
        description="levels from shallow to deep: stage or block indices (from 0, negative from the end), "
        "module names (name:part where a module returns several tensors, such as encoder:0), pooled, logits, "
        "distillation-logits (a distilled DeiT's distillation token, beside which the class token alone learns the "
        "task); default: the last four stages, then pooled, then logits where a distance is between logits (kl)",
        examples=[[0, 1, 2, 3, "pooled"]],
    )
    feature: Literal["output", "before-activation", "after-activation"] = Field(
        "output",
        description="where a stage is tapped: as it comes out, or before or after the activation that ends it or, "
        "behind normalisation, follows it (pre-activation networks: before-activation is after the next BatchNorm); "
        "distpro inspect shows the point",
    )
    output: int | str | None = Field(
        None,
        description="which part of what the network returns is its output: a key of a dict, an attribute such as "
        "logits, or an index of a tuple; default: all of it. A network that returns one tensor is taken as it is",
        examples=["logits", 0],
    )
    head: bool = Field(
        True,
        description="false: a teacher without a classifier, or whose classifier does not count: it teaches through its "
        "features alone, by pathways that need no logits",
    )
    tokens: Literal["all", "patches"] = Field(
        "all",
        description="which tokens of a transformer's level count; patches: without those before the grid (class, "
        "distillation and register tokens)",
    )
    mean: Mean | None = Field(
        None, description="mean per channel this network was trained with; default: its own, else the data's"
    )
    std: Deviation | None = Field(None, description="standard deviation per channel; default as for mean")

    _normalization_fits = model_validator(mode="after")(check_normalization)


class Student(Network):
    """The student: a network, and what of the teacher it starts with."""

    inherit: list[str] = Field(
        [],
        description="parts of the teacher whose weights the student starts with where names and shapes agree, when it "
        "is distilled: neck and heads of detectors, or modules of both networks by name",
        examples=[["neck", "heads"]],
    )


class Teacher(Network):
    """The teacher: a network with weights, or with a `train` section by which it is trained first.

    With both, weights whose head fits the data are taken as they are; others get a new head and are fine-tuned by
    `train`. `distpro inspect` says which it will be.
    """

    train: Training | None = Field(
        None,
        description="how to train the teacher when it has no weights, or to fine-tune it when the head of its weights "
        "does not fit; the result is cached by content",
    )
    freeze: Literal["backbone"] | None = Field(
        None,
        description="backbone: train alone the head of a teacher with weights (a linear head), whether theirs fits "
        "or not",
    )
    seed: Seed = Field(
        0,
        description="seed of the teacher's training; the run's seed does not change it, so all runs share one teacher",
    )

    @model_validator(mode="after")
    def _without_head_is_not_trained(self) -> Self:
        if not self.head and self.train is not None:
            raise wrong("false: without a head there is nothing to train it by; leave train out, or head", "head")
        return self

    @model_validator(mode="after")
    def _frozen_has_weights(self) -> Self:
        if self.freeze is not None:
            for key, what in (("weights", "pretrained or a file"), ("train", "how its head is trained")):
                if getattr(self, key) is None:
                    raise wrong(f"backbone needs {key}, which is not set; set teacher.{key} to {what}", "freeze")
        return self


class PathwayGroup(Model):
    """Pathways that share a set of connections, a transform block and a distance."""

    connections: Literal["lower", "upper", "same", "all"] | list[Connection] = Field(
        "lower",
        description="lower: student level ≤ teacher level; upper: ≥; same: =; all; or pairs "
        "[teacher, student] of level numbers from 1. The sets go by number where both networks have as many maps or "
        "tokens and vectors, else by reduction or depth; distpro inspect shows which",
        examples=["lower", [[5, 3], [5, 5]]],
    )
    transform: str = Field(
        "auto",
        description="transform block: conv1, conv2, conv3, attention, gated, linear, orthogonal, transformer, review, "
        "resize, identity, or one of your own as path/to/file.py:Name; auto: transformer where a side has tokens, "
        "conv2 elsewhere",
    )
    transform_options: dict[str, Any] = Field({}, description="keyword arguments of the transform block")
    distance: str = Field(
        "hcl",
        description="distance between the transformed student feature and the teacher's: hcl, mse, cosine, "
        "l1, attention-map, relations, kl and hard-label (logits), or your own as path/to/file.py:Name",
    )
    distance_options: dict[str, Any] = Field({}, description="keyword arguments of the distance, such as temperature")
    weight: PositiveNumber = Field(
        1.0, description="factor of the group's weights in a search and in the scheme uniform"
    )
    alpha_start: float | None = Field(None, description="alpha of the group at the start; default: search.alpha_start")

    @field_validator("connections")
    @classmethod
    def _connections_are_unique(cls, connections: str | list[list[int]]) -> str | list[list[int]]:
        if isinstance(connections, list):
            if not connections:
                raise wrong("no pair is given; allowed: lower, upper, same, all, or at least one pair")
            twice = sorted({f"[{a}, {b}]" for a, b in connections if connections.count([a, b]) > 1})
            if twice:
                raise wrong(f"given more than once: {', '.join(twice)}")
        return connections


class Search(Model):
    """How the process is searched.

    `method` says where the weights come from; formulas and sources are in docs/method.md. Those that do not judge by
    outer images (all but hypergradient and cosine-outer) hold none out.

    Of `batch_size`, `optimizer` and `schedule`, what is left out is taken from `distill`: whole sections, and
    the missing keys of a section with the same `name`.
    """

    method: SearchMethod = Field(
        "hypergradient",
        description="where the weights come from: hypergradient moves alpha by the outer loss; the others are rules "
        "from the literature",
    )
    epochs: PositiveInt = Field(40, description="passes over the inner part of the train set")
    batch_size: PositiveInt | None = Field(None, description="images per step; default: distill.batch_size")
    optimizer: Optimizer | None = Field(None, description="optimiser of the student; default: distill.optimizer")
    schedule: Schedule | None = Field(None, description="learning rate over time; default: distill.schedule")
    outer_share: Fraction = Field(
        0.2, description="share of the train set used for the outer loss; the rest trains the student"
    )
    outer: Literal["held-out", "train"] = Field(
        "held-out",
        description="where outer batches come from: a held-out part of the train set (outer_share), or all of the "
        "train set, never from the train batch of the same step",
    )
    outer_batch_size: PositiveInt | None = Field(
        None,
        description="images per outer batch; default: half of an inner one, rounded up (the paper: as many as per "
        "inner one)",
    )
    alpha_lr: PositiveNumber = Field(
        0.2, description="learning rate of Adam on alpha, see also alpha_memory (the paper: 0.1)"
    )
    alpha_decay: NonNegative = Field(
        0.5,
        description="pull of alpha to its start, d in alpha - alpha_lr * d * (alpha - start); alpha stays within "
        "1/d of its start. 0: no pull, as in the paper",
    )
    alpha_memory: Fraction | None = Field(
        0.02,
        description="least share of the search over which a pulled alpha averages what it sees: alpha_lr is lowered to "
        "1 / (alpha_decay * alpha_memory * updates) where it is larger, so that long searches behave as short ones; "
        "nothing: alpha_lr as it is, as in the paper",
    )
    lr_in_hypergradient: bool = Field(
        False,
        description="whether alpha sees the student's learning rate as a factor, so that it moves less as the "
        "schedule falls (the paper: true)",
    )
    alpha_betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = Field(
        [0.5, 0.999], description="Adam's betas on alpha"
    )
    alpha_start: float = Field(1.0, description="initial value of every alpha")
    normalization: Literal["biased-softmax", "softmax", "sigmoid", "abs", "none"] = Field(
        "biased-softmax", description="how alpha becomes weights"
    )
    bias: float = Field(1.0, description="b of biased-softmax: the extra term that lets all weights go to zero")
    weight: PositiveNumber | None = Field(
        None,
        description="kappa, the distillation weight; default: 10 with scale or method loss, 3 with scale distance, "
        "1 with gradient and for the other methods (the paper, with distance: 1, and 8 for MobileNet); method share: "
        "odds of distillation's part of the gradient",
    )
    scale: Literal["loss", "gradient", "distance"] = Field(
        "loss",
        description="unit of the weights of method hypergradient; loss: a weight of 1 adds 1 to the loss, by a running "
        "average of the pathway's distance; gradient: it pulls at the pathway's student level as hard as the task does "
        "over the first steps; distance: it multiplies the distance as it is, as in the paper",
    )
    learn_weight: bool = Field(False, description="whether kappa is learnt beside alpha, starting at weight")
    hypergradient: Literal["cheap", "exact", "central-difference"] | UserFile = Field(
        "cheap",
        description="how d(outer loss)/d(alpha) is computed; exact and central-difference are slower references",
    )
    hypergradient_options: dict[str, Any] = Field(
        {}, description="keyword arguments of the hypergradient, such as shift_length"
    )
    interval: PositiveInt | None = Field(
        None,
        description="steps between two updates of alpha; default: 2 to 8, as many as leave a search 500 updates (the "
        "paper: 1)",
    )

    @property
    def kappa(self) -> float:
        """The distillation weight in units of the scale: `weight`, or what goes with the scale."""
        if self.weight is not None:
            return self.weight
        unit = self.scale if self.method == "hypergradient" else self.method
        return KAPPA.get(unit, 1.0)

    def steps_per_update(self, total_steps: int) -> int:
        """Returns the steps from one update of alpha to the next, in a search of `total_steps`."""
        if self.interval is not None:
            return self.interval
        return max(LEAST_INTERVAL, min(MOST_INTERVAL, total_steps // ENOUGH_UPDATES))

    def images_per_outer_batch(self, batch_size: int) -> int:
        """Returns the images of an outer batch, beside train batches of `batch_size`."""
        return -(-batch_size // 2) if self.outer_batch_size is None else self.outer_batch_size

    @property
    def held_out_share(self) -> float | None:
        """Share of the train images that judges alpha and does not train; None: none does."""
        judged = self.method in ("hypergradient", "cosine-outer")
        return self.outer_share if judged and self.outer == "held-out" else None


class Recipe(Model):
    """A whole recipe."""

    task: str = Field(
        "classification", description="what is learnt: classification, detection, or path/to/file.py:Name"
    )
    seed: Seed = Field(0, description="seed of everything random except the data split")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: mixed precision by autocast")
    channels_last: bool = Field(True, description="memory format of images and networks")
    compile: bool = Field(
        False,
        description="whether the parts of both networks between the levels that are tapped, and the pathways, are "
        "compiled (torch.compile), and a frozen BatchNorm is folded into its convolution: fewer and larger kernels, "
        "minutes of waiting at first, and other rounding",
    )
    deterministic: bool | None = Field(
        None,
        description="whether only kernels that give the same bits every time are used, and an operation without one is "
        "an error; default: on the CPU yes (where such an operation only warns), elsewhere no",
    )
    sync_batch_norm: bool = Field(
        False,
        description="on many ranks (torchrun): BatchNorm takes mean and variance over the images of all of them, not "
        "of each one's own; on CUDA only",
    )
    checkpoint_seconds: PositiveNumber = Field(
        300.0, description="longest time between two checkpoints; one is also written after every epoch"
    )
    data: Data = Field(..., description="images")
    teacher: Teacher = Field(..., description="the network to learn from")
    student: Student = Field(..., description="the network to train")
    pathways: Annotated[list[PathwayGroup], Field(min_length=1)] | None = Field(
        None,
        description="groups of pathways; K is their sum; default: chosen for the pair, same levels by conv2, by review "
        "and, where the task has logits, these by kl; lower where levels do not correspond or hold tokens (the paper: "
        "lower)",
    )
    search: Search = Field(Search(), description="how the process is searched")
    schemes: Schemes = Field(Schemes(), description="settings of the built-in processes")
    distill: Distillation = Field(Distillation(), description="how the student is distilled")

    @model_validator(mode="after")
    def _student_has_a_head(self) -> Self:
        if not self.student.head:
            raise wrong(
                "head: false is for a teacher, which then teaches through its features alone; a student learns the "
                "task by its head: leave the key out",
                "student",
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits_search(self) -> Self:
        schedule = self.search.schedule or self.distill.schedule
        if schedule.warmup_epochs > self.search.epochs:
            raise wrong(
                f"the search takes its schedule with {schedule.warmup_epochs:g} epochs of warm-up from "
                f"{'search' if self.search.schedule else 'distill'}.schedule, longer than its {self.search.epochs} "
                "epochs; set search.schedule.warmup_epochs, or more search.epochs",
                "search",
            )
        return self

    @property
    def search_training(self) -> Training:
        """How the student is trained in a search: `distill`, with what `search` sets in its place."""
        spec = self.search
        own = {key: getattr(spec, key) for key in ("batch_size", "optimizer", "schedule")}
        given = {key: value for key, value in own.items() if value is not None}
        return self.distill.model_copy(update={"epochs": spec.epochs, "ema_decay": None, **given})
