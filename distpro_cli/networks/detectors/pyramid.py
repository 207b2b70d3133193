"""Detectors on any of timm's backbones.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from distpro_cli.errors import DistproError, first_line, nearest
from distpro_cli.networks import register_network
from distpro_cli.networks.detectors.detector import Detector
from distpro_cli.networks.heads import NewHead
from distpro_cli.registry import positive_integer, positive_number, yes_or_no

REDUCTIONS = (4, 8, 16, 32)
ASPECTS = (0.5, 1.0, 2.0)
_POOLED = 7  # cells of a region's side


class TimmPyramid(nn.Module):
    """A timm backbone and a feature pyramid (Lin et al. 2017): P2 to P5, and P6, every second cell of P5.

    Args:
        name: Of the backbone.
        channels: Of every level.
        frozen_norm: Whether the backbone's BatchNorm keeps its statistics and factors.
    """

    def __init__(self, name: str, channels: int, *, frozen_norm: bool) -> None:
        super().__init__()
        self.name = name
        body: Any = _backbone(name)
        self._channels: list[int] = body.feature_info.channels()
        self.config = _config(name)
        self.body: nn.Module = freeze_batch_norm_2d(body) if frozen_norm else body
        self.fpn = FeaturePyramidNetwork(self._channels, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images_bchw: Tensor) -> dict[str, Tensor]:
        """Returns P2 to P6 as `0` to `3` and `pool`, [B, channels, H, W] each."""
        stages: OrderedDict[str, Tensor] = OrderedDict()
        for number, (stage, channels) in enumerate(zip(self.body(images_bchw), self._channels, strict=True)):
            is_last = stage.shape[1] != channels and stage.shape[-1] == channels
            stages[str(number)] = stage.permute(0, 3, 1, 2).contiguous() if is_last else stage
        maps: dict[str, Tensor] = self.fpn(stages)
        return maps

    def load_pretrained(self) -> None:
        """Fills the backbone with timm's weights."""
        try:
            source = _backbone(self.name, pretrained=True)
        except Exception as error:
            raise DistproError(
                f"backbone {self.name}: its pretrained weights could not be had ({first_line(error)}); check the "
                "connection to the Hugging Face hub, or set weights to a file"
            ) from error
        own = self.body.state_dict()
        self.body.load_state_dict({name: value for name, value in source.state_dict().items() if name in own})


def _config(name: str) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else config.to_dict()


def _backbone(name: str, *, pretrained: bool = False) -> nn.Module:
    """Returns the stages of a timm network whose cells are 4, 8, 16 and 32 pixels wide."""
    if not timm.is_model(name):
        raise DistproError(f"options.backbone: timm knows no '{name}'{nearest(name, timm.list_models())}")
    try:
        stages = timm.create_model(name, features_only=True).feature_info.reduction()
        wanted = [max(n for n, r in enumerate(stages) if r == reduction) for reduction in REDUCTIONS]
    except Exception as error:
        raise DistproError(
            f"options.backbone: {name} has no stages of 4, 8, 16 and 32 pixels per cell, which a feature pyramid is "
            "made of; take a convolutional network, or one such as swin"
        ) from error
    model: nn.Module = timm.create_model(name, features_only=True, out_indices=wanted, pretrained=pretrained)
    return model


def _detector(kind: type[FasterRCNN], name: str, num_classes: int, options: dict[str, Any]) -> Detector:
    channels = positive_integer("channels", options["channels"])
    scale = positive_number("anchor_scale", options["anchor_scale"])
    width = positive_integer("head_width", options["head_width"])
    backbone = TimmPyramid(name, channels, frozen_norm=yes_or_no("frozen_norm", options["frozen_norm"]))
    sizes = tuple((scale * reduction,) for reduction in (*REDUCTIONS, 64))
    given: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (ASPECTS,) * len(sizes)),
        "rpn_post_nms_top_n_train": positive_integer("proposals", options["proposals"]),
        "box_head": TwoMLPHead(channels * _POOLED**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes + 1),
        "box_batch_size_per_image": positive_integer("regions", options["regions"]),
    }
    if kind is MaskRCNN:
        mask_width = positive_integer("mask_width", options["mask_width"])
        given |= _mask_parts(channels, mask_width, num_classes + 1)
    whole = kind(backbone, **given)

    return Detector(
        backbone,
        whole.rpn,
        whole.roi_heads,
        num_classes,
        num_levels=len(sizes),
        reductions=REDUCTIONS,
        load=_load,
        lacking=NewHead(None, num_classes),
        pretrained_cfg={key: backbone.config[key] for key in ("mean", "std") if key in backbone.config},
    )


def _load(detector: Detector) -> None:
    assert isinstance(detector.backbone, TimmPyramid)
    detector.backbone.load_pretrained()


def _mask_parts(channels: int, width: int, num_outputs: int) -> dict[str, Any]:
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    return {
        "mask_head": MaskRCNNHeads(channels, (width,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(width, width, num_outputs),
    }


@register_network("faster_rcnn")
def faster_rcnn(
    backbone: str,
    num_classes: int = 80,
    *,
    channels: int = 256,
    frozen_norm: bool = True,
    anchor_scale: float = 8.0,
    head_width: int = 1024,
    proposals: int = 2000,
    regions: int = 512,
) -> Detector:
    """Returns Faster R-CNN on a feature pyramid, as torchvision has it.

    Args:
        backbone: Name of a timm network.
        num_classes: Without the background.
        channels: Of the pyramid.
        frozen_norm: Whether the backbone's BatchNorm is frozen, as with pretrained weights; false from scratch.
        anchor_scale: Side of an anchor in cells of its level; 8 is 32 pixels on P2, 512 on P6.
        head_width: Of the box head's two layers.
        proposals: Kept per image in training.
        regions: Sampled of them per image for the losses of the heads.
    """
    options = {key: value for key, value in locals().items() if key not in ("backbone", "num_classes")}
    return _detector(FasterRCNN, backbone, num_classes, options)


@register_network("mask_rcnn")
def mask_rcnn(
    backbone: str,
    num_classes: int = 80,
    *,
    channels: int = 256,
    frozen_norm: bool = True,
    anchor_scale: float = 8.0,
    head_width: int = 1024,
    mask_width: int = 256,
    proposals: int = 2000,
    regions: int = 512,
) -> Detector:
    """Returns Mask R-CNN on a feature pyramid; `mask_width` is that of the mask head, the rest as in `faster_rcnn`."""
    options = {key: value for key, value in locals().items() if key not in ("backbone", "num_classes")}
    return _detector(MaskRCNN, backbone, num_classes, options)
