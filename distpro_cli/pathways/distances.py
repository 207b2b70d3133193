"""Distances between a transformed student feature and the teacher's: float32 scalars, mean over the batch.

| name | what | options |
| --- | --- | --- |
| hcl | MSE at full resolution and of coarser average pools (ReviewKD) | |
| mse | mean squared error | |
| l1 | mean absolute error, or smooth L1 | smooth |
| cosine | 1 - cosine along the channels, mean over positions | |
| attention-map | MSE between normalised maps of the mean square over channels (attention transfer) | |
| kl | KL divergence of softened logits, times T² (Hinton et al. 2015) | temperature |

A new one is a subclass of `Distance` under `@register_distance("name")`, here or in a user's file, which
a recipe names as `path/to/file.py:Class`.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.pathways.hcl import hierarchical_mse
from distpro_cli.pathways.layouts import shape_text
from distpro_cli.pathways.precision import without_autocast
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import Registry, check_options, positive_number


class Distance:
    """Base of the distances; a subclass fills in `measure`.

    Attributes:
        between_logits: Whether an automatic connection set joins the logits of both networks, and only those.
        compares_channels: Whether both features must have the same channels.
    """

    between_logits: ClassVar[bool] = False
    compares_channels: ClassVar[bool] = True

    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError if the distance is not defined for this teacher level."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Measures a transformed student feature against the teacher's.

        Args:
            prediction: [B, *teacher.shape], any floating type; other channels where those are not compared.
            target: [B, *teacher.shape].

        Returns:
            Scalar ≥ 0, float32 also under autocast.
        """
        with without_autocast(prediction.device):
            return self.measure(prediction.float(), target.float())

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Measures float32 features [B, *teacher.shape]; returns a scalar."""
        raise NotImplementedError


DISTANCES: Registry[Callable[..., Distance]] = Registry("distance")
register_distance = DISTANCES.register


def make_distance(name: str, options: Mapping[str, Any] | None = None) -> Distance:
    """Builds a distance.

    Raises:
        DistproError: unknown name or option, or an option's value out of range.
    """
    entry = DISTANCES.find(name)
    check_options("distance", name, entry, options or {})
    return entry(**(options or {}))


@register_distance("hcl")
class HierarchicalContext(Distance):
    """ReviewKD's hierarchical context loss (Chen et al. 2021); plain MSE for tokens and vectors."""

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.ndim == 4:
            return hierarchical_mse(prediction - target)
        return F.mse_loss(prediction, target)


@register_distance("mse")
class MeanSquaredError(Distance):
    """Mean squared error over all values."""

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction, target)


@register_distance("l1")
class AbsoluteError(Distance):
    """Mean absolute error over all values.

    Args:
        smooth: Difference below which the error is quadratic (Huber's form divided by it); None: nowhere.
    """

    def __init__(self, *, smooth: float | None = None) -> None:
        self.smooth = None if smooth is None else positive_number("smooth", smooth)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.smooth is None:
            return F.l1_loss(prediction, target)
        return F.smooth_l1_loss(prediction, target, beta=self.smooth)


@register_distance("cosine")
class Cosine(Distance):
    """1 - cosine similarity along the channels, mean over images and positions; 0..2."""

    # A dead position of an activated feature is exactly zero; its gradient grows with 1 / epsilon.
    EPSILON: ClassVar[float] = 1e-5

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        channels = 1 if prediction.ndim == 4 else -1
        similarity = F.cosine_similarity(prediction, target, dim=channels, eps=self.EPSILON)
        return (1 - similarity.mean()).clamp_min(0)


@register_distance("attention-map")
class AttentionMap(Distance):
    """Where a feature is strong, for any number of channels (Zagoruyko and Komodakis 2017, equation 2 with p = 2).

    mean over images and positions of (Q_S / ‖Q_S‖₂ - Q_T / ‖Q_T‖₂)², where Q is the mean of squares over the
    channels at every position and ‖·‖₂ runs over the positions of an image. The authors' code takes this mean,
    too, and multiplies it by β = 1000.
    """

    compares_channels: ClassVar[bool] = False

    @override
    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError unless the teacher level has more than one position."""
        if teacher.kind not in ("map", "tokens") or teacher.grid == (1, 1):
            raise DistproError(
                f"distance attention-map compares positions, but the teacher's {teacher.name} is {teacher.kind} of "
                f"shape {shape_text(teacher.shape)}; use hcl, mse, l1 or cosine there"
            )

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(_attention_map(prediction), _attention_map(target))


def _attention_map(feature: Tensor) -> Tensor:
    """Returns the mean square over channels, [B, positions], each image's of length 1."""
    channels = 1 if feature.ndim == 4 else -1
    return F.normalize(feature.square().mean(channels).flatten(1), dim=1)


@register_distance("kl")
class KullbackLeibler(Distance):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch (Hinton et al. 2015).

    Args:
        temperature: T > 0.
    """

    between_logits: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 4.0) -> None:
        self.temperature = positive_number("temperature", temperature)

    @override
    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError unless the teacher level is logits or a vector."""
        if teacher.kind not in ("logits", "vector"):
            raise DistproError(
                f"distance kl compares logits or vectors, but the teacher's {teacher.name} is "
                f"{teacher.kind} of shape {shape_text(teacher.shape)}; add logits to the levels, "
                "or use hcl, mse, l1 or cosine"
            )

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        student_logs = F.log_softmax(prediction / self.temperature, 1)
        teacher_logs = F.log_softmax(target / self.temperature, 1)
        divergence = F.kl_div(student_logs, teacher_logs, reduction="batchmean", log_target=True)
        return divergence.clamp_min(0) * self.temperature**2
