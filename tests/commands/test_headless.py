"""Teachers without a head through the command line: they teach through their features, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from distpro_cli.networks import NETWORKS
from distpro_cli.networks.build import build_network
from distpro_cli.process.file import load_process
from distpro_cli.recipe.schema import Data, Teacher
from tests.conftest import Run
from tests.helpers import classification

NAME = "test_resnet.r160_in1k"
FEW = "pathways=[{connections: same, transform: conv1}]"
OWN = """
from torch import nn
class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    def forward(self, images_bchw):
        return {"map": self.body(self.stem(images_bchw).relu())}
"""


@pytest.fixture
def folder(workplace: Path) -> Path:
    """`own.yaml`: a teacher of a thousand classes, without its head, for the digits."""
    torch.manual_seed(5)
    torch.save(timm.create_model(NAME).state_dict(), workplace / "thousand.pth")
    (workplace / "own.py").write_text(OWN)
    (workplace / "own.yaml").write_text(
        "data: {name: digits, image_size: 32, train_images: 20, test_images: 10, workers: 0}\n"
        f"teacher: {{name: {NAME}, weights: thousand.pth, head: false}}\n"
        "student: {name: wrn_10_1}\n"
        "search: {epochs: 1}\n"
        "distill: {epochs: 1, batch_size: 10, optimizer: {lr: 0.01}}\n"
    )
    return workplace


def test_its_features_teach_and_its_figure_is_not_known(distpro: Run, folder: Path) -> None:
    shown = distpro("inspect", "own.yaml")
    assert "weights thousand.pth, without a head" in shown.out and "kl" not in shown.out, shown.err
    result = distpro("search", "own.yaml", FEW, "--json")
    assert result.status == 0, result.err
    assert f"teacher {NAME}: without a head; its top-1 is not known" in result.err
    assert result.json["teacher"] == {"top1": None}
    process = load_process(Path(result.json["process"]))
    assert "teacher_top1" not in process.measured and "student_top1_last" in process.measured
    assert distpro("inspect", result.json["process"]).status == 0
    methods = ["-p", result.json["process"], "--seeds", "1", "--methods", "student,process"]
    compared = distpro("compare", "own.yaml", FEW, *methods)
    assert compared.status == 0, compared.err
    assert f"teacher {NAME}: without a head; student wrn_10_1" in compared.out


def test_its_features_are_those_of_the_whole_network(folder: Path) -> None:
    data, task = Data(name="digits", image_size=32), classification()
    spec = Teacher(name=NAME, weights="thousand.pth", head=False)
    network = build_network(spec, data, task).eval()
    whole = timm.create_model(NAME).eval()
    whole.load_state_dict(torch.load("thousand.pth"))
    images_bchw = torch.rand(2, 3, 32, 32)
    normalized_bchw = (images_bchw - network.mean) / network.std
    _, features = network(images_bchw, levels=[len(network.levels)], output=False)
    assert [level.name for level in network.levels][-1] == "pooled" and network.new_head is None
    pooled_bd = whole.forward_head(whole.forward_features(normalized_bchw), pre_logits=True)
    assert torch.allclose(features[len(network.levels)], pooled_bd, atol=1e-5)


def test_other_networks_and_one_that_returns_no_vector(distpro: Run, folder: Path) -> None:
    vit = timm.create_model("test_vit.r160_in1k", img_size=32, num_classes=0)
    torch.save(vit.state_dict(), "vit.pth")
    torch.manual_seed(0)
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(OWN, namespace)
    torch.save(namespace["Backbone"]().state_dict(), "backbone.pth")
    wrn = NETWORKS.get("wrn_10_1")
    assert wrn is not None
    torch.save(wrn(num_classes=7).state_dict(), "wrn.pth")
    kinds = (("test_vit.r160_in1k", "vit.pth"), ("own.py:Backbone", "backbone.pth"), ("wrn_10_1", "wrn.pth"))
    for name, weights in kinds:
        options = [f"teacher.name={name}", f"teacher.weights={weights}", "--run-dir", f"of-{weights}"]
        result = distpro("transfer", "own.yaml", "-p", "hint", *options)
        assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "kd"], "scheme kd: 'same' with distance kl joins no levels; add logits to teacher.levels and to "),
        (["-p", "kd"], "(a teacher with head: false has none)"),
        (["-p", "uniform", "teacher.levels=[0, logits]"], "there is no level logits, because head is false; leave"),
        (["-p", "uniform", "teacher.weights=null"], "has no weights: set teacher.weights to pretrained or to a file\n"),
        (["-p", "uniform", "teacher.train={epochs: 1}"], "head: false: without a head there is nothing to train it by"),
        (["-p", "uniform", "student.head=false"], "student: head: false is for a teacher"),
        (["-p", "uniform", "teacher.head=true"], "to let it teach through its features alone, set teacher.head: false"),
        (["-p", "uniform", "teacher.options={num_classes: 0}"], "use data.num_classes, or head: false"),
    ],
)
def test_what_needs_a_head_is_refused(distpro: Run, folder: Path, arguments: list[str], message: str) -> None:
    result = distpro("transfer", "own.yaml", *arguments)
    assert result.status == 2 and message in result.err


def test_a_layer_that_the_file_lacks_is_no_head(distpro: Run, folder: Path) -> None:
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(OWN.replace("body", "other"), namespace)
    torch.save(namespace["Backbone"]().state_dict(), "other.pth")
    options = ["teacher.name=own.py:Backbone", "teacher.weights=other.pth"]
    result = distpro("transfer", "own.yaml", "-p", "hint", *options)
    assert result.status == 2 and "2 missing (body.weight, body.bias)" in result.err


def test_it_is_not_trained(distpro: Run, folder: Path) -> None:
    result = distpro("train", "own.yaml", "--network", "teacher")
    assert result.status == 2 and "without a head there is nothing to train it by" in result.err
