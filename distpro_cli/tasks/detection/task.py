"""Objects in images: a detector's own losses, judged by COCO's average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.detection.data import DetectionData
from distpro_cli.tasks.detection.evaluation import average_precisions, check_pycocotools, judged
from distpro_cli.tasks.images.classes import TaskOfClasses
from distpro_cli.tasks.task import Batch, Sizes, register_task

COCO_CLASSES = 80


@runtime_checkable
class DetectorOutput(Protocol):
    """What a detector's forward returns: its feature pyramid, from which losses or detections are still to be made.

    Attributes:
        num_classes: Without the background.
        finds_masks: Whether it finds masks, and not boxes alone.
    """

    num_classes: int
    finds_masks: bool

    def losses(self, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns the parts of the loss by name, float32 scalars, of targets as `DetectionTransform` makes them.

        `size` of each target is the height and width of its image within the padded batch.
        """
        ...

    def detections(self, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        """Returns for each image `boxes` [N, 4], `labels` [N] from 1, `scores` [N] and, if found, `masks` [N, 1, M, M].

        Args:
            sizes: Heights and widths of the images within the padded batch; None: they fill it.
        """
        ...


@register_task("detection")
class Detection(TaskOfClasses):
    """Objects of N classes: boxes, and masks where a network that is trained finds them (its name has `mask` in it)."""

    metric = Metric("ap", "box AP", "%")
    classes_are = "categories"
    classes_from = "categories in the same order"

    @override
    def data(self, spec: Data, seed: int, outer_share: float | None = None) -> DetectionData:
        check_pycocotools()
        self._check_settings(spec)
        data = DetectionData(spec, seed, outer_share, masks=self.learns_masks)
        self.check_classes(spec, data.train_source, data.test_source)
        return data

    @property
    def learns_masks(self) -> bool:
        """Whether one of the networks that are trained finds masks."""
        recipe = self.recipe
        trained = [recipe.student, *([recipe.teacher] if recipe.teacher.train is not None else [])]
        return any("mask" in spec.name.lower() for spec in trained)

    def _check_settings(self, spec: Data) -> None:
        """Raises DistproError for settings that mean nothing here."""
        problems = []
        if spec.name != "folder":
            problems.append(
                f"data.name: '{spec.name}'; detection reads images and COCO's JSON below data.root: leave it out"
            )
        if not isinstance(spec.image_size, int):
            problems.append("data.image_size: of detection it is the shorter side, one number")
        if self.training.augment_repeats > 1:
            problems.append("augment_repeats: not for detection")
        for key in ("auto_augment", "random_erasing"):
            if getattr(spec.augment, key):
                problems.append(f"data.augment.{key}: images of detection are scaled, flipped and coloured alone")
        for key in ("mixup", "cutmix", "label_smoothing"):
            if getattr(self.training, key):
                problems.append(f"{key}: not for detection")
        if problems:
            raise DistproError(*problems)

    @override
    def num_classes(self, spec: Data) -> int:
        """Returns the number of classes, without the background: as the recipe says, else COCO's 80."""
        return COCO_CLASSES if spec.num_classes is None else spec.num_classes

    @override
    def check_output(self, name: str, output: Any, spec: Data) -> None:
        if not isinstance(output, DetectorOutput):
            raise DistproError(
                f"network {name}: it returns a {type(output).__name__}; detection needs a detector, such as "
                "faster_rcnn or mask_rcnn with options.backbone, or a class of your own that returns a DetectorOutput"
            )
        if output.num_classes != self.num_classes(spec):
            raise DistproError(
                f"network {name}: it finds {output.num_classes} classes, data.num_classes is {self.num_classes(spec)}"
            )

    @override
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns the detector's own: of proposals, classes, boxes and masks."""
        losses: dict[str, Tensor] = output.losses(targets)
        return losses

    @override
    @torch.no_grad()
    def evaluate(self, forward: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Measures a network on test batches; see `Task.evaluate`.

        Returns:
            Those of `average_precisions`, and `images`.
        """
        images = []
        for batch in batches:
            given = [batch.images_bchw] if batch.filled is None else [batch.images_bchw, batch.sizes]
            found = forward(*given).detections(batch.sizes)
            canvas = (batch.images_bchw.shape[2], batch.images_bchw.shape[3])
            for own, size, target in zip(found, batch.sizes or [canvas] * len(found), batch.targets, strict=True):
                on_cpu = {name: tensor.float().cpu() for name, tensor in own.items() if name != "labels"}
                on_cpu["labels"] = own["labels"].cpu()
                images.append(judged(on_cpu, size, target["objects"], target["original_size"]))
        return {**average_precisions(images, self.num_classes(self.recipe.data)), "images": len(images)}
