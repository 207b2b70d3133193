"""Levels at modules that return several tensors: the only one is taken, of several one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.networks.levels import TappedNetwork
from tests.conftest import Run

OWN = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(channels, 8, 3, 2, 1), kind
    def forward(self, x):
        x = self.conv(x)
        return {
            "pair": (x, x.mean((2, 3))),
            "single": (x, None),
            "named": {"map": x, "size": x.shape, "mean": x.mean(1)},
            "none": [None, x.mean()],
        }[self.kind]

class Net(nn.Module):
    def __init__(self, num_classes=5, inplace=False):
        super().__init__()
        self.pair, self.single, self.named = Block(3, "pair"), Block(8, "single"), Block(8, "named")
        self.none, self.head, self.inplace = Block(8, "none"), nn.Linear(8, num_classes), inplace
    def forward(self, x):
        x, mean = self.pair(x)
        self.none(x)
        if self.inplace:
            mean.add_(1)
        x, _ = self.single(x)
        x = self.named(x)["map"]
        return self.head(x.mean((2, 3)) + mean)
"""
namespace: dict[str, Any] = {}
exec(OWN, namespace)
Net: type[nn.Module] = namespace["Net"]


def tap(levels: list[int | str], feature: str = "output", **options: Any) -> TappedNetwork:
    torch.manual_seed(0)
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 16}
    return TappedNetwork(Net(**options), levels=levels, feature=feature, **given).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_parts_are_what_the_module_returned(inplace: bool) -> None:
    network = tap(["pair:0", "pair:1", "single", "named:map", "named:mean", "pooled"], inplace=inplace)
    assert [level.name for level in network.levels][:4] == ["pair:0", "pair:1", "single:0", "named:map"]
    assert network.points[1] == "output 1 of pair"
    images_bchw = torch.rand(3, 3, 16, 16)
    x: Tensor = network.model.pair.conv((images_bchw - 0.5) / 0.5)
    _, features = network(images_bchw, levels=[1, 2, 3, 4, 5])
    assert torch.equal(features[1], x)
    assert torch.equal(features[2], x.mean((2, 3)))  # as it was returned, though written into since
    x = network.model.single.conv(x)
    assert torch.equal(features[3], x)
    x = network.model.named.conv(x)
    assert torch.equal(features[4], x) and torch.equal(features[5], x.mean(1))


@pytest.mark.parametrize(
    ("levels", "feature", "message"),
    [
        (["pair"], "output", r"returns a tuple of 2; name one of pair:0 \[2, 8, 8, 8\], pair:1 \[2, 8\]"),
        (["named"], "output", r"name one of named:map \[2, 8, 2, 2\], named:mean \[2, 2, 2\]"),
        (["pair:2"], "output", r"returns a tuple of 2, none of them 2; name one of pair:0"),
        (["head:0"], "output", r"level head returns a tensor of shape \[2, 5\]; a map"),
        (["none"], "output", "level none returns a list of 2; a map"),
        (["pare:0"], "output", r"no level 'pare' \(did you mean 'pair'"),
        (["pair:0", "pair:0"], "output", "level pair:0 is given twice"),
        (["single:0", "pair:0"], "output", "single:0 comes after pair:0"),
        (["pair:0"], "before-activation", "set feature: output, or name a module"),
    ],
)
def test_what_is_no_part_is_refused(levels: list[int | str], feature: str, message: str) -> None:
    with pytest.raises(DistproError, match=message):
        tap(levels, feature)


def test_parts_are_named_in_a_recipe_and_travel(distpro: Run, workplace: Path) -> None:
    (workplace / "own.py").write_text(OWN)
    network = ["student.name=own.py:Net", "student.levels=[pair:0, named:map, pooled]", "teacher.levels=[0, 1, pooled]"]
    result = distpro("search", "tiny.yaml", *network, "search.epochs=1", "--json")
    assert result.status == 0, result.err
    shown = distpro("inspect", result.json["process"])
    assert "pair:0" in shown.out and "named:map" in shown.out
    again = distpro("transfer", "tiny.yaml", *network, "-p", result.json["process"], "distill.epochs=1")
    assert again.status == 0, again.err
    ambiguous = distpro("inspect", "tiny.yaml", *network, "student.levels=[pair]")
    assert ambiguous.status == 2 and "name one of pair:0 [2, 8, 8, 8], pair:1 [2, 8]" in ambiguous.err
