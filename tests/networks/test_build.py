"""From a recipe's network to a module: names, options, user files, normalisation, weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from distpro_cli.errors import DistproError
from distpro_cli.networks.build import IMAGENET_MEAN, build_network, normalization
from distpro_cli.networks.weights import save_weights
from distpro_cli.recipe.schema import Data, Network

DATA = Data(name="folder", image_size=32, num_classes=10)

OWN = """
from torch import nn
from distpro_cli.networks.registry import register_network

class Own(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))

def without_classes(width=4):
    return Own(10, width)

@register_network("test_registered")
def build(*, num_classes, width=3):
    return Own(num_classes, width)

def not_a_module():
    return 3

def fails():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def test_family_names_mean_ours_and_other_names_timms() -> None:
    assert type(build_network(Network(name="resnet20"), DATA).model).__name__ == "CifarResNet"
    timms = build_network(Network(name="resnet18", options={"stem_width": 32, "stem_type": "deep"}), DATA).model
    assert type(timms) is timm.models.resnet.ResNet and len(timms.conv1) == 7
    assert timms.num_classes == 10


def test_same_seed_same_weights() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        return build_network(Network(name="wrn_10_1"), DATA).model.conv1.weight

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "resnet81"},
            r"network 'resnet81' is not known \(did you mean 'resnet\d+\w*'\?\); give a timm model",
        ),
        ({"name": "wrn-40-x"}, r"did you mean 'wrn_40_\d'"),
        (
            {"name": "resnet18", "options": {"widht": 3}},
            "resnet18: it takes no option widht; its options were widht",
        ),
        ({"name": "wrn_10_1", "options": {"drop": 0.1}}, r"no option 'drop' \(did you mean 'drop_rate'\?\)"),
        ({"name": "resnet20", "options": {"depth": 8}}, "resnet20: it takes no option 'depth'"),
        (
            {"name": "resnet18", "options": {"checkpoint_path": "x.pth"}},
            "option checkpoint_path .* use weights",
        ),
        ({"name": "resnet18", "options": {"num_classes": 3}}, "option num_classes .* use data.num_classes"),
        ({"name": "resnet18.a9_in1k"}, "timm knows no weights 'a9_in1k' for resnet18; there are .*a1_in1k"),
        (
            {"name": "resnet18", "options": {"block_reduce_first": "two"}},
            "resnet18 cannot be built with the options",
        ),
        ({"name": "resnet20", "weights": "pretrained"}, "weights: pretrained is for timm's models"),
        ({"name": "resnet20", "weights": "$DISTPRO_NOT_SET/x.pth"}, "DISTPRO_NOT_SET is not set"),
        ({"name": "resnet20", "std": [0.1, 0.2]}, "std is three numbers, one a channel, above 0"),
        ({"name": "resnet20", "mean": [0.1]}, "mean is three numbers"),
        ({"name": "wrn_18_1"}, "the depth of a WRN is"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message) as error:
        build_network(Network(**spec), DATA)
    assert "\n" not in str(error.value)


def test_own_network_from_a_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    monkeypatch.setenv("OWN_FOLDER", str(own.parent))
    network = build_network(Network(name="own.py:Own", options={"width": 6}), DATA)
    assert network.levels[0].shape == (6, 16, 16) and network.model.head.out_features == 10
    again = build_network(Network(name="$OWN_FOLDER/own.py:without_classes"), DATA)
    assert type(again.model) is type(network.model)
    assert type(network.model).__module__ in sys.modules
    assert build_network(Network(name="own.py:test_registered"), DATA).levels[0].shape == (3, 16, 16)
    assert build_network(Network(name="test_registered"), DATA).levels[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("tail", "options", "message"),
    [
        (
            ":Onw",
            {},
            r"has no class or function 'Onw' \(did you mean 'Own'\?\); there are Own, without_classes",
        ),
        ("", {}, r"which one\? Write .*own.py:Name"),
        (":Own", {"widht": 3}, r"takes no option 'widht' \(did you mean 'width'\?\); there are width"),
        (":not_a_module", {}, r"returns a int, a torch.nn.Module is needed"),
        (":fails", {}, r"cannot be built with \{\}: RuntimeError: no luck"),
    ],
)
def test_wrong_use_of_an_own_file(own: Path, tail: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        build_network(Network(name=f"{own}{tail}", options=options), DATA)


def test_own_files_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(DistproError, match=r"there is no file .*absent\.py"):
        build_network(Network(name=f"{tmp_path}/absent.py:Net"), DATA)
    (tmp_path / "broken.py").write_text("x = 1\nimport no_such_package\n")
    with pytest.raises(DistproError, match=r"broken.py:2 cannot be imported: ModuleNotFoundError: No module"):
        build_network(Network(name=f"{tmp_path}/broken.py:Net"), DATA)
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(DistproError, match=r"syntax.py:2 cannot be imported: SyntaxError"):
        build_network(Network(name=f"{tmp_path}/syntax.py:Net"), DATA)


def test_normalisation_comes_from_the_nearest_source() -> None:
    model = timm.create_model("mobilenetv2_100", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    own = [0.4, 0.4, 0.4]
    data = Data(name="folder", mean=[0.6, 0.6, 0.6])

    def mean(weights: str | None, data: Data, mean: list[float] | None = None) -> tuple[float, ...]:
        return normalization(Network(name="mobilenetv2_100", weights=weights, mean=mean), data, model)[0]

    assert mean("pretrained", data, own) == tuple(own)
    assert mean("pretrained", data) == (0.1, 0.2, 0.3)
    assert mean("file.pth", data) == (0.6, 0.6, 0.6)
    assert mean(None, Data(name="folder")) == IMAGENET_MEAN
    assert mean(None, Data(name="digits")) == (0.5, 0.5, 0.5)


def test_pretrained_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    spec = Network(name="resnet18", weights="pretrained")
    with pytest.raises(DistproError, match=r"its pretrained weights could not be fetched .*connect to the hub"):
        build_network(spec, DATA)
    assert build_network(spec, DATA, pretrained_ok=False).levels[4].shape == (512,)
    with pytest.raises(DistproError, match="timm has no pretrained weights for it"):
        build_network(Network(name=_without_weights(), weights="pretrained"), DATA)


def _without_weights() -> str:
    weighted = {name.partition(".")[0] for name in timm.list_pretrained()}
    return next(name for name in timm.list_models("resnet*") if name not in weighted)


def test_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build_network(Network(name="resnet8"), DATA)
    save_weights(source.model, tmp_path / "w.safetensors", {})
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    loaded = build_network(Network(name="resnet8", weights="$WEIGHTS/w.safetensors"), DATA)
    assert torch.equal(loaded.model.conv1.weight, source.model.conv1.weight)
    build_network(Network(name="resnet8", weights="$WEIGHTS/absent.safetensors"), DATA, pretrained_ok=False)


def test_transformers_are_built_for_the_recipes_image_size() -> None:
    network = build_network(Network(name="vit_tiny_patch16_224"), Data(image_size=64, num_classes=10))
    assert network.levels[0].shape == (17, 192)


def test_a_file_may_import_its_neighbours_and_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text(OWN)
    (tmp_path / "main.py").write_text("print('hello')\nfrom neighbour_of_mine import Own")
    assert build_network(Network(name=f"{tmp_path}/main.py:Own"), DATA).num_classes == 10
    assert capsys.readouterr().out == ""
    assert str(tmp_path) not in sys.path


def test_a_file_that_exits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    with pytest.raises(DistproError, match=r"exits.py:1 cannot be imported: SystemExit: 3"):
        build_network(Network(name=f"{tmp_path}/exits.py:Net"), DATA)


def test_a_network_of_another_number_of_classes_is_an_error(own: Path) -> None:
    with pytest.raises(DistproError, match=r"logits of 10 classes, data.num_classes is 7"):
        build_network(Network(name=f"{own}:without_classes"), DATA.model_copy(update={"num_classes": 7}))
