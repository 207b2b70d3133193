"""Images to one of N classes: cross-entropy, judged by top-1 accuracy.

Shape legend: b images, c channels, h height, w width, n classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.images.classes import TaskOfClasses, some
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.task import Batch, register_task, summed_over_ranks
from distpro_cli.world import current_world


@register_task("classification")
class Classification(TaskOfClasses):
    """Images to one of N classes.

    Targets are class numbers int64 [B]; probabilities float32 [B, N] in a batch that mixup or CutMix changed.
    """

    metric = Metric("top1", "top-1", "%")
    outputs_logits = True
    classes_from = "class folders"

    @override
    def data(self, spec: Data, seed: int, outer_share: float | None = None) -> ImageData:
        data = ImageData(spec, seed, outer_share)
        self.check_classes(spec, data.train_source, data.test_source)
        return data

    @override
    def num_classes(self, spec: Data) -> int:
        return known_num_classes(spec)

    @override
    def check_output(self, name: str, output: Any, spec: Data) -> None:
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise DistproError(
                f"network {name}: it returns {_described(output)}; classification needs logits, a tensor "
                "[batch, classes]; name them in the network's key output, or wrap the network in a class of your own "
                "whose forward returns them"
            )
        if output.shape[1] != known_num_classes(spec):
            raise DistproError(
                f"network {name}: it returns logits of {output.shape[1]} classes, data.num_classes is "
                f"{known_num_classes(spec)}; let its constructor take num_classes, or set data.num_classes"
            )

    @override
    def augment(self, batch: Batch, step: int) -> Batch:
        training = self.training
        if not (training.mixup or training.cutmix):
            return batch
        num_classes, seed = known_num_classes(self.recipe.data), derived_seed(self.recipe.seed, "mixing", step)
        return Batch(*mix(batch.images_bchw, batch.targets, training.mixup, training.cutmix, num_classes, seed))

    @override
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns the mean `cross_entropy`, in float32 whatever the precision of the logits."""
        loss = functional.cross_entropy(output.float(), targets, label_smoothing=self.training.label_smoothing)
        return {"cross_entropy": loss}

    @override
    def scores(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns `top1` in percent; of mixed images, the class with the larger part counts."""
        classes_b = targets.argmax(1) if targets.ndim > 1 else targets
        return {"top1": (output.argmax(1) == classes_b).float().mean() * 100}

    @override
    @summed_over_ranks
    @torch.no_grad()
    def evaluate(self, forward: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Measures a network on the test batches of all ranks; see `Task.evaluate`.

        Returns:
            `top1` in percent, `top5` in percent where there are more than five classes, `loss` (mean cross-entropy
            without smoothing) and `images`. Logits that are not finite make the loss not finite.
        """
        totals = torch.zeros(4, dtype=torch.float64)
        more_than_five = False
        for batch in batches:
            logits_bn, targets_b = forward(batch.images_bchw), batch.targets
            more_than_five = logits_bn.shape[1] > 5
            ranked = logits_bn.topk(5 if more_than_five else 1, dim=1).indices == targets_b[:, None]
            loss = functional.cross_entropy(logits_bn, targets_b, reduction="sum")
            found = [ranked[:, 0].sum(), ranked.any(1).sum(), loss, torch.tensor(len(targets_b))]
            totals += torch.stack([figure.double() for figure in found])
        world = current_world()
        (more_than_five,) = world.any(more_than_five)  # a rank may have had no batch
        first, fifth, loss_sum, images = world.sum(totals).tolist()
        result = {"top1": 100 * first / images, "loss": loss_sum / images, "images": round(images)}
        if more_than_five:
            result["top5"] = 100 * fifth / images
        return result


def known_num_classes(spec: Data) -> int:
    """Returns the number of classes: as the recipe says, else known for digits and CIFAR, else 1000."""
    if spec.num_classes is not None:
        return spec.num_classes
    name = spec.name.lower()
    if "cifar100" in name:
        return 100
    return 10 if name == "digits" or "cifar10" in name else 1000


def _described(output: Any) -> str:
    """Says what a network returned, with the names of its parts."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    parts = list(output) if isinstance(output, Mapping) else range(len(output)) if isinstance(output, tuple) else ()
    names = f" with the parts {some([str(part) for part in parts])}" if parts else ""
    return f"a {type(output).__name__}{names}"


def mix(
    images_bchw: Tensor, targets_b: Tensor, mixup: float, cutmix: float, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Returns mixed copies of the images and their targets, by timm's Mixup.

    With both alphas set, each batch takes one of the two with probability ½. An odd batch leaves its last
    image as it is, since images are mixed in pairs. Smoothing is left to the loss.

    Args:
        images_bchw: Float images on any device.
        targets_b: Class numbers int64.
        mixup: Alpha of mixup (Zhang et al. 2018, arXiv 1710.09412), ≥ 0; 0 is without.
        cutmix: Alpha of CutMix (Yun et al. 2019, arXiv 1905.04899), ≥ 0; 0 is without.
        num_classes: N.
        seed: All that is drawn depends on it.

    Returns:
        Images of the same shape, and probabilities float32 [B, N].
    """
    targets_bn = functional.one_hot(targets_b, num_classes).float()
    pairs = len(images_bchw) // 2 * 2
    if pairs == 0:
        return images_bchw, targets_bn
    with global_states_kept():
        seed_globals(seed)
        mixer = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)
        mixed_bchw, mixed_bn = mixer(images_bchw[:pairs].clone(), targets_b[:pairs])
    return torch.cat([mixed_bchw, images_bchw[pairs:]]), torch.cat([mixed_bn, targets_bn[pairs:]])
