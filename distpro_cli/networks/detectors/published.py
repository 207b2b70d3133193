"""torchvision's own detectors, with their weights of COCO."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from distpro_cli.errors import DistproError, first_line
from distpro_cli.networks import register_network
from distpro_cli.networks.detectors.detector import Detector
from distpro_cli.networks.heads import NewHead

# Reductions of the maps that regions are cut from, and levels of the pyramid.
MODELS = {
    "fasterrcnn_resnet50_fpn": ((4, 8, 16, 32), 5),
    "fasterrcnn_resnet50_fpn_v2": ((4, 8, 16, 32), 5),
    "maskrcnn_resnet50_fpn": ((4, 8, 16, 32), 5),
    "maskrcnn_resnet50_fpn_v2": ((4, 8, 16, 32), 5),
}
# torchvision counts COCO's categories by their ids, up to 90, of which these ten name nothing.
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [number for number in range(1, 91) if number not in _UNUSED]
_CONFIG = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def published_detector(name: str, num_classes: int = len(COCO_IDS), **options: Any) -> Detector:
    """Returns one of torchvision's detectors, with random weights.

    With `weights: pretrained` it gets those of COCO; of a head for 80 categories the outputs of unused ids are left
    out, so that labels count from 1 to 80 in the order of the ids.

    Args:
        name: Of torchvision.
        num_classes: Without the background.
        options: Further keyword arguments of torchvision's function, such as `rpn_post_nms_top_n_train`.
    """
    reductions, num_levels = MODELS[name]
    whole: Any = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes + 1, **options)
    _freeze_as_published(whole, name)
    is_cocos = num_classes == len(COCO_IDS)
    return Detector(
        whole.backbone,
        whole.rpn,
        whole.roi_heads,
        num_classes,
        num_levels=num_levels,
        reductions=reductions,
        load=partial(_load, name),
        lacking=None if is_cocos else NewHead(len(COCO_IDS), num_classes),
        pretrained_cfg=_CONFIG,
    )


def _freeze_as_published(whole: Any, name: str) -> None:
    """Freezes the BatchNorm of the first versions' backbones, as torchvision does where they come with weights."""
    if not name.endswith("_v2"):
        from timm.utils.model import freeze_batch_norm_2d

        whole.backbone.body = freeze_batch_norm_2d(whole.backbone.body)


def _load(name: str, detector: Detector) -> None:
    weights = get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise DistproError(
            f"network {name}: torchvision's weights could not be fetched ({first_line(error)}); check the "
            "connection, or set weights to a file"
        ) from error
    fill(detector, state)


def fill(detector: Detector, state: dict[str, Tensor]) -> None:
    """Fills a detector with torchvision's weights of COCO; a head of another width keeps its own."""
    kept = dict(state)
    classifiers = {id(layer) for layer in detector.get_classifier()}
    heads = [name for name, module in detector.named_modules() if id(module) in classifiers]
    fits = detector.num_classes == len(COCO_IDS)
    for name in (f"{head}.{part}" for head in heads for part in ("weight", "bias")):
        if not fits:
            del kept[name]
            continue
        rows = torch.tensor([0, *COCO_IDS])
        if name.startswith("roi_heads.box_predictor.bbox_pred"):
            rows = (rows[:, None] * 4 + torch.arange(4)).flatten()
        kept[name] = state[name][rows]
    missing = detector.load_state_dict(kept, strict=False).missing_keys
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if len(lacking) != (0 if fits else 2 * len(heads)):
        raise DistproError(
            f"torchvision's weights do not fit: {len(lacking)} tensors are missing, such as {lacking[:1]}"
        )


def _factory(name: str) -> Callable[..., nn.Module]:
    def build(num_classes: int = len(COCO_IDS), **options: Any) -> Detector:
        return published_detector(name, num_classes, **options)

    return build


for _name in MODELS:
    register_network(_name)(_factory(_name))
