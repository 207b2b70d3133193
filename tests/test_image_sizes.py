"""Images that are not square: what they go through, where the cells of a level lie, sizes that do not fit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import timm
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_eval

from distpro_cli.costs.complexity import network_cost, recipe_report
from distpro_cli.errors import DistproError
from distpro_cli.image_size import covers, nearest_multiples
from distpro_cli.networks.build import build_network, check_patches
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.layouts import layout_of, to_map
from distpro_cli.process.file import load_process
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.transforms import TestTransform, TrainTransform
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.hypergradients import make_hypergradient
from tests.conftest import Run
from tests.test_transformer_pairs import FAMILIES, make_distiller, recipe_of

SIZE = (64, 96)
PLAIN: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def noise(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(96, 150), (150, 100), (66, 110), (40, 200), (200, 40)])
def test_the_test_crop_is_timms(shape: tuple[int, int]) -> None:
    """Where as many rows and columns are cut off on both sides; of an odd number each has its own rounding."""
    ours = TestTransform(Data(image_size=[48, 80], crop_share=0.8))(noise(*shape))
    timms = transforms_imagenet_eval((48, 80), crop_pct=0.8, interpolation="bilinear", use_prefetcher=True)
    expected = timms(Image.fromarray(noise(*shape))).permute(1, 2, 0).numpy()
    assert ours.shape == (48, 80, 3)
    assert np.array_equal(ours, expected)


def test_the_random_crop_is_timms() -> None:
    """On a ramp, since at its border timm's sees the crop alone, and ours what lies around it."""
    ramp = np.add.outer(np.arange(90), np.arange(70))[..., None].repeat(3, 2).astype(np.uint8)
    ours = TrainTransform(Data(image_size=[48, 80], augment=Augmentation(flip=0.0)))
    timms = RandomResizedCropAndInterpolation((48, 80), interpolation="bilinear")
    for seed in range(20):
        random.seed(seed)
        found = ours(ramp)
        random.seed(seed)
        expected = np.asarray(timms(Image.fromarray(ramp)))
        assert found.shape == expected.shape == (48, 80, 3)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_everything_else_keeps_the_size() -> None:
    for crop in ("none", "pad", "resized"):
        everything = Augmentation(crop=crop, auto_augment="rand-m9-inc1", color_jitter=0.4, random_erasing=1.0)
        assert TrainTransform(Data(image_size=[24, 40], augment=everything))(noise(30, 30)).shape == (24, 40, 3)
    plain = Augmentation(crop="none", flip=0.0)
    squeezed = np.asarray(Image.fromarray(noise(30, 30)).resize((40, 24), Image.Resampling.BILINEAR))
    for transform in (TrainTransform, TestTransform):
        assert np.array_equal(transform(Data(image_size=[24, 40], augment=plain))(noise(30, 30)), squeezed)


def network_of(family: str, size: tuple[int, int] = SIZE) -> TappedNetwork:
    recipe = recipe_of(family, "wrn")
    data = Data(name="digits", image_size=list(size))
    torch.manual_seed(0)
    return build_network(recipe.teacher, data, find_task(recipe.task)(recipe, recipe.distill)).eval()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("wrn", "cait")])
def test_cells_lie_where_timm_puts_them(family: str) -> None:
    network = network_of(family)
    images = torch.rand(2, 3, *SIZE)
    stages = [stage["module"] for stage in getattr(network.model.feature_info, "info", network.model.feature_info)]
    maps = network.model.forward_intermediates((images - network.mean) / network.std, intermediates_only=True)
    _, features = network(images, levels=range(1, len(network.levels) + 1))
    checked = 0
    for level in network.levels:
        if level.name in stages:
            expected = maps[stages.index(level.name)]
            assert level.grid == tuple(expected.shape[2:])
            assert level.grid[1] > level.grid[0]
            torch.testing.assert_close(to_map(features[level.number], layout_of(level)), expected)
            checked += 1
    assert checked >= 3


def test_the_prefix_is_known_beside_a_grid_that_is_no_square() -> None:
    found = [(level.shape[0], level.prefix, level.grid, level.reduction) for level in network_of("cait").levels[:-1]]
    assert found == [(24, 0, (4, 6), 16)] * 4
    assert network_of("registers").levels[0].prefix == 5


@pytest.mark.parametrize("family", ["swin", "convnext", "maxvit"])
def test_stages_are_found_as_in_a_square_image(family: str) -> None:
    """Of networks that list none, channels first or last."""
    name, options = FAMILIES[family]
    found = []
    for size in ((64, 64), SIZE, (96, 64)):
        given = {} if family == "convnext" else {"img_size": size}
        model = timm.create_model(name, num_classes=10, **options, **given).eval()
        model.feature_info = []
        network = TappedNetwork(model, image_size=size, **PLAIN)
        found.append([(level.name, level.shape[:1], level.kind, level.reduction) for level in network.levels])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("vit", "deit"), ("registers", "levit"), ("swin", "deit"), ("hiera", "swin"), ("wrn", "deit"), ("maxvit", "xcit")],
)
def test_a_pair_takes_a_search_step(teacher: str, student: str) -> None:
    recipe = recipe_of(teacher, student)
    recipe = recipe.model_copy(update={"data": Data(name="digits", image_size=list(SIZE))})
    torch.manual_seed(0)
    distiller = make_distiller(recipe)
    inner, outer = (Batch(torch.rand(4, 3, *SIZE), torch.arange(4)) for _ in range(2))
    weights_k = torch.ones(len(distiller.trained.infos))
    for step in range(2):
        distiller.step(inner, weights_k, step)
    _, _, found_k = make_hypergradient("cheap", distiller).step(inner, outer, weights_k, 2)
    assert torch.isfinite(found_k).all() and found_k.abs().sum() > 0


def test_costs_are_those_of_the_size() -> None:
    report = recipe_report(recipe_of("vit", "convnext").model_copy(update={"data": Data(image_size=list(SIZE))}))
    assert [level["shape"] for level in report["student"]["levels"][:2]] == [[8, 16, 24], [16, 8, 12]]
    convnext = network_of("convnext")
    square, wide = (network_cost(convnext, size).multiply_adds for size in (64, (64, 128)))
    head = 32 * 10
    assert wide - head == 2 * (square - head)


VIT = "name: vit_tiny_patch16_224, options: {patch_size: 4, depth: 2, num_heads: 3, embed_dim: %d}"
PAIR = (
    f"teacher={{{VIT % 24}, train: {{epochs: 1}}}}",
    f"student={{{VIT % 12}}}",
    "pathways=[{}, {transform: conv1, connections: [[1, 2], [2, 2]], distance: relations}]",
    "distill={epochs: 1, batch_size: 32, optimizer: {name: adamw, lr: 0.001}}",
    "search.epochs=1",
    "data.image_size=[20, 40]",
)


def test_a_whole_run_through_the_command_line(distpro: Run) -> None:
    found = distpro("search", "tiny.yaml", *PAIR, "-o", "p.safetensors", "--run-dir", "s", "--json", "-q")
    assert found.status == 0, found.err
    process = load_process("p.safetensors")
    assert parse_recipe(process.recipe).data.image_size == [20, 40]
    # 51 tokens: 50 on the grid behind the class token; by their number alone they would be 7×7 behind two.
    assert {(info.teacher.prefix, info.teacher.grid) for info in process.pathways if info.teacher.kind == "tokens"} == {
        (1, (5, 10))
    }
    with safetensors.safe_open("s/student.safetensors", "pt") as file:
        assert json.loads(file.metadata()["image_size"]) == [20, 40]
    again = distpro("transfer", "-p", "p.safetensors", "--run-dir", "t", "--json", "-q")
    assert again.status == 0, again.err
    shown = distpro("inspect", "t/process.safetensors", "--json")
    assert shown.status == 0, shown.err
    Path("other.yaml").write_text(Path("tiny.yaml").read_text())
    other = distpro("transfer", "other.yaml", *PAIR, "data.image_size=[20, 36]", "-p", "uniform", "--json", "-q")
    assert other.status == 0, other.err
    wrong = distpro("transfer", "other.yaml", "student.weights=s/student.safetensors", "-p", "plain", "-q")
    assert wrong.status == 2 and "images of 20×40 pixels" in wrong.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["data.image_size=18"],
            "do not divide images of 18×18; set data.image_size to the nearest sizes that they do",
        ),
        (["data.image_size=18"], "that they do, 16 or 20, or another patch_size"),
        (["data.image_size=[16, 30]"], "that they do, 28 or 32 wide, or another patch_size"),
        (["data.image_size=[3, 30]"], "that they do, 4 high, 28 or 32 wide, or another patch_size"),
        (["data.image_size=[16, 30, 2]"], "found [16, 30, 2]; allowed: a list of 2 whole numbers > 0"),
        (["data.image_size=[16, 0]"], "data.image_size.1: found 0; allowed: a whole number > 0"),
        (["data.image_size=16.0"], "data.image_size: found 16.0 (write 16); allowed: a whole number > 0 or a list of"),
        (
            ["data.image_size=[64, 72]", "student={name: hiera_tiny_224, options: {}}"],
            "its coarsest cells have 32×32 pixels, the nearest multiples are 64 or 96 wide",
        ),
        (
            ["data.image_size=60", "student={name: xcit_nano_12_p16_224, options: {}}"],
            "its coarsest cells have 16×16 pixels, the nearest multiples are 48 or 64",
        ),
    ],
)
def test_sizes_that_do_not_fit(distpro: Run, given: list[str], message: str) -> None:
    teacher = "teacher={name: wrn_10_1, train: {epochs: 1}}"
    result = distpro("search", "tiny.yaml", *PAIR[1:5], teacher, *given, "-q")
    assert result.status == 2 and message in result.err, result.err


def test_a_size_that_the_weights_were_made_for_is_taken() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=30, patch_size=14, depth=1)
    with pytest.raises(DistproError, match=r"patches of 14×14 pixels do not divide images of 30×30; .* 28 or 42"):
        check_patches("own", model, (30, 30))
    model.pretrained_cfg["input_size"] = (3, 30, 30)  # as vit_so400m_patch14_siglip_384
    check_patches("own", model, (30, 30))


def test_two_equal_numbers_are_one() -> None:
    assert Data(image_size=[32, 32]) == Data(image_size=32)
    assert Data(image_size=32).height_width == (32, 32)


def test_what_covers_an_image() -> None:
    assert covers(7, 7, (224, 224)) and not covers(7, 8, (224, 224))
    assert [covers(h, w, (60, 100)) for h, w in ((2, 4), (1, 3), (15, 25), (4, 3), (25, 15))] == [
        *(True, True, True),
        *(False, False),
    ]
    assert nearest_multiples((32, 64), (16, 16)) == "" == nearest_multiples(32, (16, 16))
