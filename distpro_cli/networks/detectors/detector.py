"""A detector whose forward ends with its feature pyramid; heads run when losses or detections are asked for.

So the pyramid is seen by pathways as any network's levels are, a teacher's heads never run, and the losses get their
targets from the task.

Shape legend: b images, c channels, h height, w width, n boxes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from distpro_cli.networks.detectors.sampling import StepSampler
from distpro_cli.networks.heads import NewHead
from distpro_cli.tasks.detection.transforms import MULTIPLE
from distpro_cli.tasks.task import Sizes

# Of torchvision's losses, in our words.
LOSS_NAMES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}


class Detector(nn.Module):
    """A backbone with a feature pyramid, a proposal network and the heads, with torchvision's names of weights.

    Args:
        backbone: Images [B, 3, H, W] to maps by name, shallow to deep.
        rpn: Proposal network; its sampler is replaced.
        roi_heads: Heads; likewise.
        num_classes: Without the background.
        reductions: Pixels per cell of every map that regions are cut from, in the order of `backbone`.
        num_levels: Of the pyramid.
        load: Fills in published weights.
        lacking: The head that these weights lack.
        pretrained_cfg: What they expect: mean and std.

    Attributes:
        pyramid: Passes every map on; the levels p2, p3, ... are tapped there.
        default_levels: Their names.
        size_multiple: Of which the sides of padded batches are.
        parts: Modules that a student may start with, by the names of a recipe.
    """

    size_multiple = MULTIPLE
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"neck": ("backbone.fpn",), "heads": ("rpn", "roi_heads")}

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        num_classes: int,
        *,
        num_levels: int,
        reductions: Sequence[int],
        load: Callable[[Detector], None],
        lacking: NewHead | None,
        pretrained_cfg: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.num_classes = num_classes
        self.pretrained_cfg = dict(pretrained_cfg)
        self._load, self._lacking = load, lacking
        first = reductions[0].bit_length() - 1
        self.pyramid = nn.ModuleDict({f"p{first + n}": nn.Identity() for n in range(num_levels)})
        self.default_levels = [f"pyramid.{name}" for name in self.pyramid]
        rpn.fg_bg_sampler = StepSampler(rpn.fg_bg_sampler, "anchors")
        roi_heads.fg_bg_sampler = StepSampler(roi_heads.fg_bg_sampler, "proposals")
        for pool in (roi_heads.box_roi_pool, roi_heads.mask_roi_pool):
            if isinstance(pool, MultiScaleRoIAlign):
                # Else torchvision guesses them from the first batch, in which images may be padded.
                pool.scales = [1 / reduction for reduction in reductions]
                pool.map_levels = initLevelMapper(first, reductions[-1].bit_length() - 1)

    def load_pretrained(self) -> NewHead | None:
        """Fills in published weights; returns the head that they lack, None if nothing is lacking."""
        self._load(self)
        return self._lacking

    def pretrained_new_head(self) -> NewHead | None:
        """Says what `load_pretrained` would return."""
        return self._lacking

    def get_classifier(self) -> list[nn.Module]:
        """Returns the layers that put out a number, or several, for each kind of object."""
        predictor, masks = self.roi_heads.box_predictor, self.roi_heads.mask_predictor
        layers = [predictor.cls_score, predictor.bbox_pred]
        return layers if masks is None else [*layers, masks.mask_fcn_logits]

    def forward(self, images_bchw: Tensor) -> PyramidOutput:
        """Returns the pyramid of normalised images, zero where they are padded."""
        maps: Mapping[str, Tensor] = self.backbone(images_bchw)
        features = [level(map_bchw) for level, map_bchw in zip(self.pyramid.values(), maps.values(), strict=True)]
        canvas = (images_bchw.shape[2], images_bchw.shape[3])
        return PyramidOutput(self, OrderedDict(zip(maps, features, strict=True)), canvas)


class PyramidOutput:
    """What a `Detector` returns; see `distpro_cli.tasks.detection.task.DetectorOutput`.

    Args:
        detector: Whose heads run.
        features: Its pyramid, [B, C, H, W] each.
        canvas: Height and width of the batch in pixels.
    """

    def __init__(self, detector: Detector, features: OrderedDict[str, Tensor], canvas: tuple[int, int]) -> None:
        self.detector = detector
        self.features = features
        self.canvas = canvas
        self.num_classes = detector.num_classes
        self.finds_masks = bool(detector.roi_heads.has_mask())

    def losses(self, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns `objectness`, `proposal_box`, `class`, `box` and, of Mask R-CNN, `mask`.

        What is sampled depends on the seed of torch's global generator alone, not on what was drawn from it.

        Args:
            targets: `boxes` float32 [N, 4], `labels` int64 [N] from 1, `size` and, for masks, `masks` uint8 [N, H, W].
        """
        sizes = [target.get("size", self.canvas) for target in targets]
        plain = [{key: target[key] for key in ("boxes", "labels", "masks") if key in target} for target in targets]
        found = self._heads(sizes, plain)[1]
        return {LOSS_NAMES.get(name, name): loss.float() for name, loss in found.items()}

    @torch.no_grad()
    def detections(self, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        """Returns `boxes`, `labels`, `scores` and, of Mask R-CNN, `masks` [N, 1, 28, 28] within the boxes."""
        count = len(next(iter(self.features.values())))
        return self._heads(list(sizes or [self.canvas] * count), None)[0]

    def _heads(
        self, sizes: Sequence[tuple[int, int]], targets: list[dict[str, Any]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Runs proposals and heads in float32, to losses where there are targets, else to detections."""
        rpn, roi_heads = self.detector.rpn, self.detector.roi_heads
        features = OrderedDict((name, feature.float()) for name, feature in self.features.items())
        first = next(iter(features.values()))
        shape_alone = first.new_empty(()).expand(len(first), 3, *self.canvas)
        images = ImageList(shape_alone, [(int(height), int(width)) for height, width in sizes])
        with torch.autocast(first.device.type, enabled=False), _in_mode([rpn, roi_heads], training=targets is not None):
            proposals, of_proposals = rpn(images, features, targets)
            found, of_heads = roi_heads(features, proposals, images.image_sizes, targets)
        return found, {**of_proposals, **of_heads}

    def fake_work(self) -> list[Tensor]:
        """Runs the heads' layers on zeros as often as a training step; returns what they make. Needs no values."""
        heads, features = self.detector.roi_heads, list(self.features.values())
        objectness, deltas = self.detector.rpn.head(features)
        images, channels = features[0].shape[:2]
        regions = images * heads.fg_bg_sampler.batch_size_per_image
        side = heads.box_roi_pool.output_size
        made = [*objectness, *deltas]
        zeros = features[0].new_zeros(regions, channels, *side) + 0 * features[0].sum()
        made += heads.box_predictor(heads.box_head(zeros))
        if self.finds_masks:
            some = max(1, round(regions * heads.fg_bg_sampler.positive_fraction))
            zeros = features[0].new_zeros(some, channels, *heads.mask_roi_pool.output_size) + 0 * features[0].sum()
            made.append(heads.mask_predictor(heads.mask_head(zeros)))
        return made


@contextmanager
def _in_mode(modules: Sequence[nn.Module], *, training: bool) -> Iterator[None]:
    """Switches these modules, which decide by it what they do, and not the layers inside them."""
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode
