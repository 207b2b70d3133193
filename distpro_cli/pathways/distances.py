"""Distances between a transformed student feature and the teacher's: float32 scalars, mean over the batch.

| name | what | options |
| --- | --- | --- |
| hcl | MSE at full resolution and of coarser average pools (ReviewKD) | prefix |
| mse | mean squared error | normalize |
| l1 | mean absolute error, or smooth L1 | smooth, normalize |
| cosine | 1 - cosine along the channels, mean over positions | |
| attention-map | MSE between normalised maps of the mean square over channels (attention transfer) | |
| pkd | MSE / 2 of channels standardised over batch and positions, 1 - Pearson's correlation (PKD) | |
| relations | MSE between the cosines of every two positions of an image, for any number of channels | prefix |
| kl | KL divergence of softened logits, times T² (Hinton et al. 2015) | temperature |
| hard-label | negative log-likelihood of what the teacher's logits choose (DeiT's distillation token) | |

A new one is a subclass of `Distance` under `@register_distance("name")`, here or in a user's file, which
a recipe names as `path/to/file.py:Class`.

Shape legend: b images, c channels, h height, w width, n positions or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.pathways.hcl import hierarchical_mse
from distpro_cli.pathways.layouts import Layout, layout_of, shape_text, to_map
from distpro_cli.pathways.precision import without_autocast
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import Registry, check_options, positive_number, yes_or_no
from distpro_cli.tasks.task import Filled

Cells = tuple[int, int]  # rows and columns of a map


class Distance:
    """Base of the distances; a subclass fills in `measure`.

    Attributes:
        between_logits: Whether an automatic connection set joins the logits of both networks, and only those.
        compares_channels: Whether both features must have the same channels.
        takes_half: Whether `measure` takes a prediction of half precision as it is.
        compiled: Whether `measure` may compile what it does (a recipe's `compile`).
    """

    between_logits: ClassVar[bool] = False
    compares_channels: ClassVar[bool] = True
    takes_half: ClassVar[bool] = False
    compiled = False

    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError if the distance is not defined for this teacher level."""

    def fit(self, teacher: LevelInfo) -> None:
        """Is told what is compared, before the first measurement, by distances that ask where tokens lie."""

    def __call__(self, prediction: Tensor, target: Tensor, filled: Filled | None = None) -> Tensor:
        """Measures a transformed student feature against the teacher's.

        Args:
            prediction: [B, *teacher.shape], any floating type; other channels where those are not compared.
            target: [B, *teacher.shape].
            filled: Shares of height and width that every image fills, where images are padded; the rest of a map is
                left out. None: all of it counts.

        Returns:
            Scalar ≥ 0, float32 also under autocast.
        """
        with without_autocast(prediction.device):
            prediction, target = prediction if self.takes_half else prediction.float(), target.float()
            if filled is None or target.ndim != 4:
                return self.measure(prediction, target)
            return self.measure_filled(prediction, target, filled_cells(target, filled))

    def measure_filled(self, prediction: Tensor, target: Tensor, cells: Sequence[Cells]) -> Tensor:
        """Measures float32 maps [B, C, H, W] of which only the first rows and columns of every image count.

        By default images with as many cells are measured together without their padding, and what is found is averaged
        over the images.
        """
        groups: dict[Cells, list[int]] = {}
        for image, own in enumerate(cells):
            groups.setdefault(own, []).append(image)
        parts = []
        for (rows, columns), images in groups.items():
            if len(groups) == 1:
                of_group = [side[:, :, :rows, :columns] for side in (prediction, target)]
            else:
                of_group = [side[images, :, :rows, :columns] for side in (prediction, target)]
            parts.append(self.measure(of_group[0], of_group[1]) * (len(images) / len(cells)))
        return torch.stack(parts).sum()

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Measures float32 features [B, *teacher.shape]; returns a scalar."""
        raise NotImplementedError


def filled_cells(map_bchw: Tensor, filled: Filled) -> list[Cells]:
    """Returns how many rows and columns of a map show each image, those that it fills in part included."""
    height, width = map_bchw.shape[2:]
    return [(_cells(height, of_height), _cells(width, of_width)) for of_height, of_width in filled]


def _cells(cells: int, share: float) -> int:
    return max(1, min(cells, math.ceil(cells * share - 1e-6)))  # 1e-6: of a share that no float holds


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


class _OnGrid(Distance):
    """Base of distances that see tokens on their grid.

    Args:
        prefix: Whether the tokens before the grid (class token and its like) count.
    """

    def __init__(self, *, prefix: bool) -> None:
        self.prefix = yes_or_no("prefix", prefix)
        self.layout: Layout | None = None

    @override
    def fit(self, teacher: LevelInfo) -> None:
        self.layout = layout_of(teacher) if teacher.kind == "tokens" and teacher.grid is not None else None


@register_distance("hcl")
class HierarchicalContext(_OnGrid):
    """ReviewKD's hierarchical context loss (Chen et al. 2021); plain MSE for vectors and tokens without a grid.

    Tokens are compared on their grid; those before it by MSE, in proportion to their number.

    Args:
        prefix: Whether the tokens before the grid count.
    """

    takes_half = True

    def __init__(self, *, prefix: bool = True) -> None:
        super().__init__(prefix=prefix)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        # The prediction may be of half precision: its difference to float32 is float32, and no copy is held.
        if prediction.ndim == 4:
            return hierarchical_mse(prediction - target, self.compiled)
        if prediction.ndim != 3 or self.layout is None:
            return F.mse_loss(prediction.float(), target)
        num_prefix, num_tokens = self.layout.prefix, target.shape[1]
        on_grid = hierarchical_mse(to_map(prediction - target, self.layout).contiguous(), self.compiled)
        if num_prefix == 0 or not self.prefix:
            return on_grid
        before_grid = F.mse_loss(prediction[:, :num_prefix].float(), target[:, :num_prefix])
        return on_grid + (before_grid - on_grid) * (num_prefix / num_tokens)


@register_distance("mse")
class MeanSquaredError(Distance):
    """Mean squared error over all values.

    Args:
        normalize: Whether the teacher's feature is layer-normed along the channels first, without scale and shift, as
            in the distillation of transformers (Wei et al. 2022, arXiv 2205.14141).
    """

    def __init__(self, *, normalize: bool = False) -> None:
        self.normalize = yes_or_no("normalize", normalize)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction, _layer_normed(target) if self.normalize else target)


@register_distance("l1")
class AbsoluteError(Distance):
    """Mean absolute error over all values.

    Args:
        smooth: Difference below which the error is quadratic (Huber's form divided by it); None: nowhere.
        normalize: As in `mse`.
    """

    def __init__(self, *, smooth: float | None = None, normalize: bool = False) -> None:
        self.smooth = None if smooth is None else positive_number("smooth", smooth)
        self.normalize = yes_or_no("normalize", normalize)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        target = _layer_normed(target) if self.normalize else target
        if self.smooth is None:
            return F.l1_loss(prediction, target)
        return F.smooth_l1_loss(prediction, target, beta=self.smooth)


def _layer_normed(feature: Tensor) -> Tensor:
    """Returns the feature with mean 0 and variance 1 along its channels at every position."""
    if feature.ndim == 4:
        return F.layer_norm(feature.permute(0, 2, 3, 1), feature.shape[1:2]).permute(0, 3, 1, 2)
    return F.layer_norm(feature, feature.shape[-1:])


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


@register_distance("pkd")
class Pearson(Distance):
    """1 - Pearson's correlation of every channel over batch and positions, mean over channels (PKD, Cao et al. 2022).

    Each channel of both features is standardised over batch and positions; half of their MSE is 1 - Pearson. The
    authors' code (https://github.com/open-mmlab/mmrazor, `PKDLoss`) divides by the deviation with n - 1.
    """

    EPSILON: ClassVar[float] = 1e-6

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._of_values(*(_values_by_channel(side) for side in (prediction, target)))

    @override
    def measure_filled(self, prediction: Tensor, target: Tensor, cells: Sequence[Cells]) -> Tensor:
        """Standardises over what the images fill."""

        def values(side: Tensor) -> Tensor:
            parts = [map_chw[:, :rows, :columns] for map_chw, (rows, columns) in zip(side, cells, strict=True)]
            return torch.cat([part.flatten(1) for part in parts], 1)

        return self._of_values(values(prediction), values(target))

    def _of_values(self, prediction_cn: Tensor, target_cn: Tensor) -> Tensor:
        return F.mse_loss(self._standardised(prediction_cn), self._standardised(target_cn)) / 2

    def _standardised(self, values_cn: Tensor) -> Tensor:
        return (values_cn - values_cn.mean(1, keepdim=True)) / (
            values_cn.std(1, correction=0, keepdim=True) + self.EPSILON
        )


def _values_by_channel(feature: Tensor) -> Tensor:
    """Returns a feature as one row of values per channel, [C, B · positions]."""
    channels = 1 if feature.ndim == 4 else feature.ndim - 1
    return feature.movedim(channels, 0).flatten(1)


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
        _check_positions("attention-map", teacher)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(_attention_map(prediction), _attention_map(target))


def _check_positions(name: str, teacher: LevelInfo) -> None:
    if teacher.kind not in ("map", "tokens") or teacher.grid == (1, 1):
        raise DistproError(
            f"distance {name} compares positions, but the teacher's {teacher.name} is {teacher.kind} of shape "
            f"{shape_text(teacher.shape)}; use hcl, mse, l1 or cosine there"
        )


def _attention_map(feature: Tensor) -> Tensor:
    """Returns the mean square over channels, [B, positions], each image's of length 1."""
    channels = 1 if feature.ndim == 4 else -1
    return F.normalize(feature.square().mean(channels).flatten(1), dim=1)


@register_distance("relations")
class Relations(_OnGrid):
    """How alike the positions of an image are, for any number of channels (Hao et al. 2022, arXiv 2107.01378).

    mean over images and pairs of positions of (cos_S - cos_T)², where cos is the cosine of the two positions' channels:
    the Gram matrix of the normalised tokens, within an image.

    Args:
        prefix: Whether the tokens before the grid are positions, too.
    """

    compares_channels: ClassVar[bool] = False
    EPSILON: ClassVar[float] = 1e-5

    def __init__(self, *, prefix: bool = False) -> None:
        super().__init__(prefix=prefix)

    @override
    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError unless the teacher level has more than one position."""
        _check_positions("relations", teacher)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self._cosines(prediction), self._cosines(target))

    def _cosines(self, feature: Tensor) -> Tensor:
        """Returns the cosine of every two positions, [B, N, N]."""
        first = 0 if self.layout is None or self.prefix else self.layout.prefix
        positions_bnc = feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature[:, first:]
        unit_bnc = F.normalize(positions_bnc, dim=2, eps=self.EPSILON)
        return unit_bnc @ unit_bnc.transpose(1, 2)


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
        _check_logits("kl", teacher)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        student_logs = F.log_softmax(prediction / self.temperature, 1)
        teacher_logs = F.log_softmax(target / self.temperature, 1)
        divergence = F.kl_div(student_logs, teacher_logs, reduction="batchmean", log_target=True)
        return divergence.clamp_min(0) * self.temperature**2


@register_distance("hard-label")
class HardLabel(Distance):
    """-log softmax(student) at the teacher's largest logit, mean over the batch (Touvron et al. 2021, hard label)."""

    between_logits: ClassVar[bool] = True

    @override
    def check(self, teacher: LevelInfo) -> None:
        """Raises DistproError unless the teacher level is logits or a vector."""
        _check_logits("hard-label", teacher)

    @override
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(prediction, 1), target.argmax(1))


def _check_logits(distance: str, teacher: LevelInfo) -> None:
    if teacher.kind not in ("logits", "vector"):
        raise DistproError(
            f"distance {distance} compares logits or vectors, but the teacher's {teacher.name} is "
            f"{teacher.kind} of shape {shape_text(teacher.shape)}; add logits to the levels, "
            "or use hcl, mse, l1 or cosine"
        )
