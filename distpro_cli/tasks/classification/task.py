"""Classification: cross-entropy, judged by top-1 accuracy.

Shape legend: b images, c channels, h height, w width, n classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.classification.data import ClassificationData, known_num_classes
from distpro_cli.tasks.classification.mixing import Mixing
from distpro_cli.tasks.task import Batch, Task, register_task


def task_loss(logits_bn: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the mean cross-entropy as a float32 scalar, whatever the precision of the logits.

    Args:
        logits_bn: [B, N].
        targets: Class numbers int64 [B], or probabilities [B, N] (from mixup and CutMix, not yet smoothed).
        label_smoothing: Share in [0, 1) of the target that is spread evenly over the classes.
    """
    logits_bn = logits_bn.float()
    if targets.is_floating_point():
        targets = targets.to(logits_bn.dtype)
    return functional.cross_entropy(logits_bn, targets, label_smoothing=label_smoothing)


@register_task("classification")
class Classification(Task):
    """Images to one of N classes.

    Targets are class numbers int64 [B]; probabilities float32 [B, N] in a batch that mixup or CutMix changed.
    """

    metric = Metric("top1", "top-1", "%")

    @override
    def data(self, spec: Data, seed: int, outer_share: float | None = None) -> ClassificationData:
        return ClassificationData(spec, seed, outer_share)

    @override
    def network_options(self, spec: Data) -> dict[str, Any]:
        return {"num_classes": known_num_classes(spec)}

    @override
    def check_output(self, name: str, output: Any, spec: Data) -> None:
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = list(output.shape) if isinstance(output, Tensor) else None
            found = f"a {type(output).__name__}" if shape is None else f"a tensor of shape {shape}"
            raise DistproError(
                f"network {name}: it returns {found}; classification needs logits, a tensor [batch, classes]"
            )
        if output.shape[1] != known_num_classes(spec):
            raise DistproError(
                f"network {name}: it returns logits of {output.shape[1]} classes, data.num_classes is "
                f"{known_num_classes(spec)}; let its constructor take num_classes, or set data.num_classes"
            )

    @override
    def augment(self, batch: Batch, step: int) -> Batch:
        return Batch(*self._mixing(batch.images_bchw, batch.targets, step)) if self._mixing.active else batch

    @cached_property
    def _mixing(self) -> Mixing:
        training = self.training
        return Mixing(training.mixup, training.cutmix, known_num_classes(self.recipe.data), self.recipe.seed)

    @override
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        return {"cross_entropy": task_loss(output, targets, self.training.label_smoothing)}

    @override
    def scores(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns `top1` in percent; of mixed images, the class with the larger part counts."""
        classes_b = targets.argmax(1) if targets.ndim > 1 else targets
        return {"top1": (output.argmax(1) == classes_b).float().mean() * 100}

    @override
    @torch.no_grad()
    def evaluate(self, forward: Callable[[Tensor], Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Measures a network on test batches; see `Task.evaluate`.

        Returns:
            `top1` in percent, `top5` in percent where there are more than five classes, `loss` (mean cross-entropy
            without smoothing) and `images`. Logits that are not finite make the loss not finite.
        """
        totals = torch.zeros(3, dtype=torch.float64)
        images = 0
        more_than_five = False
        for batch in batches:
            logits_bn, targets_b = forward(batch.images_bchw), batch.targets
            more_than_five = logits_bn.shape[1] > 5
            ranked = logits_bn.topk(5 if more_than_five else 1, dim=1).indices == targets_b[:, None]
            loss = functional.cross_entropy(logits_bn, targets_b, reduction="sum")
            totals += torch.stack([ranked[:, 0].sum().double(), ranked.any(1).sum().double(), loss.double()])
            images += len(targets_b)
        if not images:
            raise ValueError("no test batches")
        first, fifth, loss_sum = totals.tolist()
        result = {"top1": 100 * first / images, "loss": loss_sum / images, "images": images}
        if more_than_five:
            result["top5"] = 100 * fifth / images
        return result
