"""Networks of grey images through the command line: alone, beside a network of colour, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from distpro_cli.networks.build import build_network
from distpro_cli.networks.channels import as_grey
from distpro_cli.recipe.schema import Data, Network
from tests.conftest import Run
from tests.helpers import classification

GREY = "student.options={in_channels: 1}"
BOTH = ["teacher.options={in_channels: 1}", GREY]
OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, channels=1, image_size=16):
        super().__init__()
        self.flat = nn.Flatten()
        self.hidden, self.fc = nn.Linear(channels * image_size**2, 8), nn.Linear(8, num_classes)
    def forward(self, images_bchw):
        return self.fc(self.hidden(self.flat(images_bchw)).relu())
"""


@pytest.fixture
def grey(workplace: Path) -> Path:
    """`grey.yaml`: two classes of grey images of 8 and of 16 bits."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, low in (("dark", 0), ("light", 120)):
            folder = workplace / "scans" / split / label
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = draw.integers(low, low + 100, (16, 16), dtype=np.uint16)
                image = pixels << 8 if index % 2 else pixels.astype(np.uint8)
                Image.fromarray(image).save(folder / f"{index}.png")
    (workplace / "grey.yaml").write_text(
        "data: {root: scans, num_classes: 2, image_size: 16, workers: 0,\n"
        "  augment: {crop: pad, auto_augment: rand-m9-mstd0.5-inc1, random_erasing: 0.5}}\n"
        "teacher: {name: wrn_10_1, train: {epochs: 1, batch_size: 8}}\n"
        "student: {name: wrn_10_1}\n"
        "search: {epochs: 1}\n"
        "distill: {epochs: 2, batch_size: 8, optimizer: {lr: 0.05}}\n"
    )
    return workplace


@pytest.mark.parametrize("options", [BOTH, [GREY], [GREY, "data.mean=[0.4]", "data.std=[0.2]"]])
def test_grey_networks_search_and_say_so(distpro: Run, grey: Path, options: list[str]) -> None:
    shown = distpro("inspect", "grey.yaml", *options)
    assert shown.out.count("grey images") == len(options[:2]) - (len(options) == 3), shown.err
    result = distpro("search", "grey.yaml", *options, "--json")
    assert result.status == 0, result.err
    with safetensors.safe_open(result.json["student"]["weights"], "pt") as file:
        assert file.get_tensor("conv1.weight").shape[1] == 1
        mean, std = (json.loads(file.metadata()[key]) for key in ("mean", "std"))
    # Of ImageNet's three numbers their average, as timm has it.
    expected = ([0.4], [0.2]) if len(options) == 3 else ([0.449], [0.226])
    assert np.allclose(mean, expected[0]) and np.allclose(std, expected[1])


def test_a_grey_network_sees_what_pillow_makes_of_colour_and_grey_as_it_is(grey: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    images_bchw = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    by_pillow = torch.tensor(np.asarray(image.convert("L")))[None, None] / 255
    assert (as_grey(images_bchw) - by_pillow).abs().max() <= 0.51 / 255  # Pillow rounds to whole numbers
    same_bchw = by_pillow.expand(-1, 3, -1, -1)
    assert torch.allclose(as_grey(same_bchw), by_pillow, atol=1e-7)
    data, task = Data(name="digits", image_size=16), classification("data.image_size=16")
    network = build_network(Network(name="resnet8", options={"in_channels": 1}, mean=[0.2], std=[0.5]), data, task)
    network.eval()
    expected = network.model((as_grey(images_bchw) - 0.2) / 0.5)
    assert torch.equal(network(images_bchw)[0], expected)


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "test_resnet.r160_in1k"])
def test_networks_of_timm_get_the_average_of_their_own_numbers(name: str, workplace: Path) -> None:
    import timm
    from timm.data.loader import adapt_to_chs

    data, task = Data(name="digits", image_size=160), classification()
    torch.save(timm.create_model(name, num_classes=10, in_chans=1).state_dict(), "w.pth")
    network = build_network(Network(name=name, options={"in_chans": 1}, weights="w.pth"), data, task)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert np.allclose(network.mean.flatten(), adapt_to_chs(config.mean, 1))
    assert np.allclose(network.std.flatten(), adapt_to_chs(config.std, 1))


def test_own_networks_of_grey_images_without_a_convolution(distpro: Run, grey: Path) -> None:
    (grey / "own.py").write_text(OWN)
    options = ["student.name=own.py:Net", "student.levels=[hidden]", "teacher.levels=[pooled]"]
    result = distpro("transfer", "grey.yaml", "-p", "uniform", *options, "--json")
    assert result.status == 0, result.err


def test_channels_that_images_do_not_have_are_refused(distpro: Run, grey: Path) -> None:
    for command in (["inspect", "grey.yaml"], ["search", "grey.yaml"]):
        result = distpro(*command, "student={name: resnet10t, options: {in_chans: 4}}")
        assert result.status == 2
        assert "resnet10t: it takes images of 4 channels" in result.err
        assert "set in_chans (in_channels of the CIFAR families) to 3 or 1 in its options" in result.err
    assert distpro("train", "grey.yaml", "--run-dir", "colour").status == 0
    weights = "student.weights=colour/student.safetensors"
    result = distpro("train", "grey.yaml", GREY, weights, "--run-dir", "other")
    assert result.status == 2 and "a network of 3 channels takes grey images as well" in result.err
