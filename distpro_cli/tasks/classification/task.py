"""Classification: loss and metric. Shape letters: b images, n classes, chw an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from distpro_cli.metric import Metric
from distpro_cli.tasks.classification.data import ClassificationData
from distpro_cli.tasks.registry import register_task


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


@torch.no_grad()
def evaluate(forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measures a network, which the caller has put into eval mode, on test batches.

    Args:
        forward: Images float32 [B, 3, H, W] in [0, 1] on the CPU to logits [B, N] on any device.
        batches: Images and class numbers int64 [B].

    Returns:
        `top1` in percent, `top5` in percent where there are more than five classes, `loss` (mean
        cross-entropy without smoothing) and `images`. Logits that are not finite make the loss not finite.
    """
    totals: Tensor | None = None
    images = 0
    more_than_five = False
    for images_bchw, targets_b in batches:
        logits_bn = forward(images_bchw).float()
        targets_b = targets_b.to(logits_bn.device)
        more_than_five = logits_bn.shape[1] > 5
        ranked = logits_bn.topk(5 if more_than_five else 1, dim=1).indices == targets_b[:, None]
        loss = functional.cross_entropy(logits_bn, targets_b, reduction="sum")
        sums = torch.stack([ranked[:, 0].sum().double(), ranked.any(1).sum().double(), loss.double()])
        totals = sums if totals is None else totals + sums
        images += len(targets_b)
    if totals is None:
        raise ValueError("no test batches")
    first, fifth, loss_sum = totals.tolist()
    result: dict[str, float] = {
        "top1": 100 * first / images,
        "loss": loss_sum / images,
        "images": images,
    }
    if more_than_five:
        result["top5"] = 100 * fifth / images
    return result


@register_task("classification")
class Classification:
    """Images to one of N classes; judged by top-1 accuracy."""

    metric = Metric("top1", "top-1", "%")
    data = ClassificationData
    loss = staticmethod(task_loss)
    evaluate = staticmethod(evaluate)
