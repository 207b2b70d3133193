"""Detectors: torchvision's own losses and detections, samplers, levels, frozen parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from distpro_cli.costs.complexity import network_cost, tensors_of
from distpro_cli.errors import DistproError
from distpro_cli.networks import NETWORKS
from distpro_cli.networks.build import build_network
from distpro_cli.networks.detectors.detector import Detector
from distpro_cli.networks.detectors.published import COCO_IDS, fill, published_detector
from distpro_cli.networks.detectors.sampling import StepSampler
from distpro_cli.networks.heads import NewHead
from distpro_cli.networks.inheritance import inherit, inherited
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.tasks.task import find_task

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "channels": 16,
    "head_width": 32,
    "proposals": 64,
    "regions": 100_000,  # all
    "anchor_scale": 4,
    "frozen_norm": False,
}
IMAGES = (96, 128)
TARGETS = [
    {
        "boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0], [40.0, 30.0, 90.0, 80.0]]),
        "labels": torch.tensor([2, 1]),
        "masks": torch.ones(2, *IMAGES, dtype=torch.uint8),
        "size": IMAGES,
    },
    {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *IMAGES, dtype=torch.uint8),
        "size": IMAGES,
    },
]


def make(name: str, **options: Any) -> Detector:
    factory = NETWORKS.get(name)
    assert factory is not None
    torch.manual_seed(0)
    model = factory(**SMALL | options)
    assert isinstance(model, Detector)
    return model


def images() -> Tensor:
    return torch.rand(2, 3, *IMAGES, generator=torch.Generator().manual_seed(3))


def tapped(model: nn.Module) -> TappedNetwork:
    return TappedNetwork(model, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), image_size=64)


class Everything:
    """Takes every candidate, so that nothing is drawn."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [one >= 1 for one in labels], [one == 0 for one in labels]


def test_losses_and_detections_are_torchvisions() -> None:
    """The same parts, run by torchvision's own model on its own way through resizing and normalisation."""
    model = make("mask_rcnn", num_classes=2, mask_width=16).eval()
    own: Any = model
    parts = {
        "rpn_anchor_generator": own.rpn.anchor_generator,
        "rpn_head": own.rpn.head,
        "box_head": own.roi_heads.box_head,
    }
    parts |= {name: getattr(own.roi_heads, name) for name in ("box_predictor", "mask_head", "mask_predictor")}
    sizes = {"min_size": IMAGES[0], "max_size": IMAGES[1], "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    reference = MaskRCNN(model.backbone, **parts, **sizes, rpn_post_nms_top_n_train=64)
    samplers: list[Any] = [own.rpn, own.roi_heads, reference.rpn, reference.roi_heads]
    for owner in samplers:
        owner.fg_bg_sampler = Everything()
    for owner in samplers[2:]:
        owner.training = True
    reference.training = True
    expected = reference(list(images()), TARGETS)
    found = model(images()).losses(TARGETS)
    assert sorted(found) == ["box", "class", "mask", "objectness", "proposal_box"]
    assert sorted(float(loss.detach()) for loss in found.values()) == pytest.approx(
        sorted(float(loss.detach()) for loss in expected.values()), rel=1e-5
    )
    with torch.no_grad():
        ours, theirs = model(images()).detections(), reference.eval()(list(images()))
    for one, other in zip(ours, theirs, strict=True):
        for key in ("boxes", "labels", "scores"):
            torch.testing.assert_close(one[key], other[key])
        assert one["masks"].shape == (len(one["boxes"]), 1, 28, 28)


def test_a_network_without_masks_takes_targets_with_them() -> None:
    losses = make("faster_rcnn", num_classes=2, regions=8)(images()).losses(TARGETS)
    assert sorted(losses) == ["box", "class", "objectness", "proposal_box"]
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())


def test_padding_of_one_image_changes_nothing_of_another() -> None:
    """The first image is detected as in a batch of its own size, up to what convolutions see of the border."""
    network = tapped(make("faster_rcnn", num_classes=2)).eval()
    small = images()[:1, :, :64, :64]
    canvas = torch.rand(1, 3, 64, 96)
    canvas[:, :, :, :64] = small
    seen: list[Tensor] = []
    network.model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network(canvas, sizes=((64, 64),))
    torch.testing.assert_close(seen[0][:, :, :, :64], (small - network.mean) / network.std)
    assert not seen[0][:, :, :, 64:].any()


def test_levels_are_the_pyramid_and_heads_do_not_run_for_them() -> None:
    model = make("mask_rcnn", num_classes=2)
    network = tapped(model).eval()
    assert [(level.name, level.reduction, level.shape[0]) for level in network.levels] == [
        (f"pyramid.p{n}", 2**n, 16) for n in range(2, 7)
    ]
    run: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: run.append(name))
    output, features = network(images(), levels=[1, 5], output=False)
    assert output is None and sorted(features) == [1, 5]
    assert [tuple(features[n].shape[2:]) for n in (1, 5)] == [(24, 32), (2, 2)]
    assert not [name for name in run if name.startswith(("rpn", "roi_heads"))]
    output, features = network(images(), levels=[2])
    assert output.features["1"] is features[2]


def sampled(sampler: StepSampler, labels: list[Tensor], seed: int = 1, before: int = 0) -> Tensor:
    torch.manual_seed(seed)
    torch.rand(before)
    objects, background = sampler(labels)
    return torch.stack([torch.stack(objects), torch.stack(background)])


def test_the_sampler_draws_by_the_steps_seed_alone() -> None:
    sampler = StepSampler(BalancedPositiveNegativeSampler(16, 0.25), "anchors")
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(-1, 3, (200,), generator=generator) for _ in range(2)]
    first = sampled(sampler, labels)
    assert torch.equal(first, sampled(sampler, labels, before=7))
    assert not torch.equal(first, sampled(sampler, labels, seed=2))
    assert not torch.equal(first[:, 0], first[:, 1])
    stacked = torch.stack(labels)
    assert first.sum(2).tolist() == [[4, 4], [12, 12]]
    assert (stacked[first[0]] >= 1).all() and (stacked[first[1]] == 0).all()
    few = [torch.tensor([1, 0, 0, -1])]
    assert sampled(sampler, few)[:, 0].tolist() == [[True, False, False, False], [False, True, True, False]]
    # Further candidates at the end leave the draws of the others as they are.
    torch.manual_seed(1)
    longer = sampler([torch.cat([labels[0], torch.full((50,), -1)])])
    assert torch.equal(longer[0][0][:200], first[0, 0])


def test_frozen_norm_keeps_what_it_holds() -> None:
    model = make("faster_rcnn", num_classes=2, frozen_norm=True, regions=8).train()
    assert not [
        m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d) and type(m).__name__[:6] != "Frozen"
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(model(images()).losses(TARGETS).values(), torch.zeros(())).backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    moved = make("faster_rcnn", num_classes=2, regions=8).train()
    before = {name: value.clone() for name, value in moved.state_dict().items()}
    moved(images())
    assert any(not torch.equal(before[name], value) for name, value in moved.state_dict().items())


def test_costs_include_the_heads() -> None:
    """Multiply-adds of the box head: 7·7·channels·width + width² and its two outputs, for each region."""
    few, many = (
        network_cost(tapped(make("faster_rcnn", num_classes=2, regions=n)), 64).multiply_adds for n in (10, 30)
    )
    assert many - few == 20 * (49 * 16 * 32 + 32 * 32 + 32 * 3 + 32 * 12)
    made = tensors_of(make("mask_rcnn", num_classes=2, regions=8, mask_width=16)(images()))
    assert made[-1].shape == (4, 3, 28, 28)


def test_published_detectors_keep_torchvisions_names() -> None:
    """Of weights for category ids up to 90, 80 categories keep the rows of the ids that are used."""
    torch.manual_seed(0)
    state = get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=91).state_dict()
    model = published_detector("fasterrcnn_resnet50_fpn")
    fill(model, state)
    assert model.pretrained_new_head() is None
    own = model.state_dict()
    name = "roi_heads.box_predictor."
    for row, number in ((0, 0), (1, 1), (12, 13), (80, 90)):
        assert torch.equal(own[f"{name}cls_score.weight"][row], state[f"{name}cls_score.weight"][number])
        kept, wanted = own[f"{name}bbox_pred.bias"], state[f"{name}bbox_pred.bias"]
        assert torch.equal(kept[4 * row : 4 * row + 4], wanted[4 * number : 4 * number + 4])
    assert len(COCO_IDS) == 80 and COCO_IDS[11] == 13
    assert torch.equal(own["backbone.body.layer4.2.conv3.weight"], state["backbone.body.layer4.2.conv3.weight"])


def test_pretrained_fills_the_backbone_and_leaves_new_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for what timm would download."""
    import distpro_cli.networks.detectors.pyramid as pyramid

    create: Callable[..., nn.Module] = pyramid.timm.create_model

    def without_network(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        model = create(name, **options)
        if pretrained:
            for parameter in model.parameters():
                nn.init.constant_(parameter, 0.25)
        return model

    monkeypatch.setattr(pyramid.timm, "create_model", without_network)
    text = (
        "task: detection\ndata: {root: ., num_classes: 2, image_size: 64}\n"
        "teacher: {name: faster_rcnn, options: {backbone: test_resnet, channels: 16}, weights: pretrained}\n"
        "student: {name: faster_rcnn, options: {backbone: test_resnet}}\n"
    )
    recipe = parse_recipe(text)
    task = find_task("detection")(recipe, recipe.distill)
    network = build_network(recipe.teacher, recipe.data, task)
    assert network.new_head == NewHead(None, 2)
    model: Any = network.model
    assert all(bool((p == 0.25).all()) for p in model.backbone.body.parameters())
    without = build_network(recipe.teacher, recipe.data, task, pretrained_ok=False)
    assert without.new_head is None
    assert not all(bool((p == 0.25).all()) for p in without.model.backbone.body.parameters())  # type: ignore[union-attr]


def test_a_backbone_needs_stages() -> None:
    with pytest.raises(DistproError, match="vit_tiny_patch16_224 has no stages of 4, 8, 16 and 32 pixels per cell"):
        make("faster_rcnn", num_classes=2, backbone="vit_tiny_patch16_224")


def test_a_student_starts_with_the_teachers_neck_and_heads() -> None:
    student = make("faster_rcnn", num_classes=2, backbone="mobilenetv2_035")
    teacher = make("mask_rcnn", num_classes=2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    tensors = inherited(student, teacher, ["neck", "heads"])
    inherit(student, tensors)
    theirs, own = teacher.state_dict(), student.state_dict()
    for name, value in own.items():
        taken = not name.startswith("backbone.body") and before[name].shape == theirs[name].shape
        assert torch.equal(value, theirs[name] if taken else before[name]), name
        assert taken == (name in tensors)
    # Lateral convolutions are as wide as the stages of their backbone.
    assert "backbone.fpn.inner_blocks.3.0.weight" not in tensors and "backbone.fpn.layer_blocks.3.0.weight" in tensors
    with pytest.raises(
        DistproError, match=r"Detector has no part 'nek' \(did you mean 'neck'\?\); there are: neck, heads"
    ):
        inherited(student, teacher, ["nek"])
    with pytest.raises(
        DistproError, match=r"roi_heads\.box_head: none of its 4 tensors has the teacher's name and shape"
    ):
        inherited(make("faster_rcnn", num_classes=3, channels=8, head_width=8), teacher, ["roi_heads.box_head"])
