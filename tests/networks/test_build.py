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
from tests.networks.stub import TASK, Stub

DATA = Data(name="folder", image_size=32, num_classes=10)
ANYTHING = Stub(any_output=True)

OWN = """
from torch import nn
from distpro_cli.networks import register_network

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
PATTERN = """
@register_network(pattern=r"test_wide_(?P<width>\\d)")
def wide(*, width, num_classes):
    return Own(num_classes, width)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def test_family_names_mean_ours_and_other_names_timms() -> None:
    assert type(build_network(Network(name="resnet20"), DATA, TASK).model).__name__ == "CifarResNet"
    timms = build_network(Network(name="resnet18", options={"stem_width": 32, "stem_type": "deep"}), DATA, TASK).model
    assert type(timms) is timm.models.resnet.ResNet and len(timms.conv1) == 7
    assert timms.num_classes == 10


def test_same_seed_same_weights() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        return build_network(Network(name="wrn_10_1"), DATA, TASK).model.conv1.weight

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
        ({"name": "resnet20", "std": [0.1, 0.2]}, "std is three numbers, one per channel, above 0"),
        ({"name": "resnet20", "mean": [0.1, 0.2]}, "mean is three numbers"),
        (
            {"name": "resnet20", "options": {"in_channels": 1}, "mean": [0.1, 0.2, 0.3]},
            "mean is one number, as the network takes grey images; found",
        ),
        ({"name": "wrn_18_1"}, "the depth of a WRN is"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message) as error:
        build_network(Network(**spec), DATA, TASK)
    assert "\n" not in str(error.value)


def test_own_network_from_a_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    monkeypatch.setenv("OWN_FOLDER", str(own.parent))
    network = build_network(Network(name="own.py:Own", options={"width": 6}), DATA, TASK)
    assert network.levels[0].shape == (6, 16, 16) and network.model.head.out_features == 10
    again = build_network(Network(name="$OWN_FOLDER/own.py:without_classes"), DATA, TASK)
    assert type(again.model) is type(network.model)
    assert type(network.model).__module__ in sys.modules
    assert build_network(Network(name="own.py:test_registered"), DATA, TASK).levels[0].shape == (3, 16, 16)
    assert build_network(Network(name="test_registered"), DATA, TASK).levels[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("tail", "options", "message"),
    [
        (
            ":Onw",
            {},
            r"has no class or function 'Onw' \(did you mean 'Own'\?\); there are Own, build, fails",
        ),
        ("", {}, r"which one\? Write .*own.py:Name"),
        (":Own", {"widht": 3}, r"takes no option 'widht' \(did you mean 'width'\?\); there are width"),
        (":not_a_module", {}, r"returns a int, a torch.nn.Module is needed"),
        (":fails", {}, r"cannot be built with \{\}: RuntimeError: no luck"),
    ],
)
def test_wrong_use_of_an_own_file(own: Path, tail: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        build_network(Network(name=f"{own}{tail}", options=options), DATA, TASK)


def test_own_files_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(DistproError, match=r"there is no file .*absent\.py"):
        build_network(Network(name=f"{tmp_path}/absent.py:Net"), DATA, TASK)
    (tmp_path / "broken.py").write_text("x = 1\nimport no_such_package\n")
    with pytest.raises(DistproError, match=r"broken.py:2 cannot be imported: ModuleNotFoundError: No module"):
        build_network(Network(name=f"{tmp_path}/broken.py:Net"), DATA, TASK)
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(DistproError, match=r"syntax.py:2 cannot be imported: SyntaxError"):
        build_network(Network(name=f"{tmp_path}/syntax.py:Net"), DATA, TASK)


def test_normalisation_comes_from_the_nearest_source() -> None:
    model = timm.create_model("mobilenetv2_100", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    own = [0.4, 0.4, 0.4]
    data = Data(name="folder", mean=[0.6, 0.6, 0.6])

    def mean(
        weights: str | None, data: Data, mean: list[float] | None = None, metadata: dict[str, str] | None = None
    ) -> tuple[float, ...]:
        return normalization(Network(name="mobilenetv2_100", weights=weights, mean=mean), data, model, metadata)[0]

    assert mean("pretrained", data, own) == tuple(own)
    assert mean("pretrained", data) == (0.1, 0.2, 0.3)
    assert mean("file.pth", data) == (0.1, 0.2, 0.3)
    old = {"network": "mobilenetv2_100"}
    written = {**old, "mean": "[0.7, 0.7, 0.7]", "std": "[1, 1, 1]"}
    assert mean("file.safetensors", data, metadata=written) == (0.7, 0.7, 0.7)
    assert mean("file.safetensors", data, own, written) == tuple(own)
    # Written before files held it: the network's own configuration did not count then.
    assert mean("file.safetensors", data, metadata=old) == (0.6, 0.6, 0.6)
    assert mean("file.safetensors", data, metadata={"mean": "nonsense", "std": "[]"}) == (0.6, 0.6, 0.6)
    assert mean(None, data) == (0.6, 0.6, 0.6)
    assert mean(None, Data(name="folder")) == IMAGENET_MEAN
    assert mean(None, Data(name="digits")) == (0.5, 0.5, 0.5)


def test_pretrained_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    spec = Network(name="resnet18", weights="pretrained")
    with pytest.raises(DistproError, match=r"its pretrained weights could not be fetched .*connect to the hub"):
        build_network(spec, DATA, TASK)
    assert build_network(spec, DATA, TASK, pretrained_ok=False).levels[4].shape == (512,)
    with pytest.raises(DistproError, match="timm has no pretrained weights for it"):
        build_network(Network(name=_without_weights(), weights="pretrained"), DATA, TASK)


def _without_weights() -> str:
    weighted = {name.partition(".")[0] for name in timm.list_pretrained()}
    return next(name for name in timm.list_models("resnet*") if name not in weighted)


def test_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build_network(Network(name="resnet8"), DATA, TASK)
    save_weights(source.model, tmp_path / "w.safetensors", {})
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    loaded = build_network(Network(name="resnet8", weights="$WEIGHTS/w.safetensors"), DATA, TASK)
    assert torch.equal(loaded.model.conv1.weight, source.model.conv1.weight)
    build_network(Network(name="resnet8", weights="$WEIGHTS/absent.safetensors"), DATA, TASK, pretrained_ok=False)


def test_transformers_are_built_for_the_recipes_image_size() -> None:
    network = build_network(Network(name="vit_tiny_patch16_224"), Data(image_size=64, num_classes=10), TASK)
    assert network.levels[0].shape == (17, 192)


def test_a_file_may_import_its_neighbours_and_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text(OWN)
    (tmp_path / "main.py").write_text("print('hello')\nfrom neighbour_of_mine import Own")
    assert build_network(Network(name=f"{tmp_path}/main.py:Own"), DATA, TASK).model.head.out_features == 10
    assert capsys.readouterr().out == ""
    assert str(tmp_path) not in sys.path


def test_a_file_that_exits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    with pytest.raises(DistproError, match=r"exits.py:1 cannot be imported: SystemExit: 3"):
        build_network(Network(name=f"{tmp_path}/exits.py:Net"), DATA, TASK)


def test_the_task_checks_what_a_network_returns_before_weights_are_read(own: Path) -> None:
    spec = Network(name=f"{own}:without_classes", weights="absent.safetensors")
    with pytest.raises(DistproError, match=r"own.py:without_classes: 10 outputs for 7"):
        build_network(spec, DATA.model_copy(update={"num_classes": 7}), TASK)
    build_network(Network(name=f"{own}:without_classes"), DATA.model_copy(update={"num_classes": 7}), ANYTHING)


def test_a_family_registers_with_a_pattern_from_a_file(own: Path) -> None:
    own.write_text(OWN + PATTERN)
    assert build_network(Network(name=f"{own}:Test-Wide-5"), DATA, TASK).levels[0].shape == (5, 16, 16)
    assert build_network(Network(name="TEST_WIDE_6"), DATA, TASK).levels[0].shape == (6, 16, 16)
    with pytest.raises(DistproError, match=r"test_wide_4: it takes no option 'width'; there are none"):
        build_network(Network(name="test_wide_4", options={"width": 3}), DATA, TASK)
    with pytest.raises(DistproError, match=r"has no class or function 'resnet8'"):
        build_network(Network(name=f"{own}:resnet8"), DATA, TASK)


class Asking(Stub):
    """Asks for as many channels as there are pixels in a row, and for something nobody takes."""

    def network_options(self, spec: Data) -> dict[str, Any]:
        return {"num_classes": 3, "width": spec.image_size // 8, "horizon": 2}

    def check_output(self, name: str, output: Any, spec: Data) -> None:
        assert output.shape == (2, 3)


def test_the_task_gives_the_options_that_a_network_takes(own: Path) -> None:
    assert build_network(Network(name=f"{own}:Own"), DATA, Asking()).levels[0].shape == (4, 16, 16)
    with pytest.raises(DistproError, match=r"own.py:Own: option horizon is not set here; use what the task gives"):
        build_network(Network(name=f"{own}:Own", options={"horizon": 3}), DATA, Asking())
    with pytest.raises(DistproError, match=r"takes no option 'wdith'; there are none"):
        build_network(Network(name=f"{own}:Own", options={"wdith": 3}), DATA, Asking())
    with pytest.raises(DistproError, match=r"resnet18: it takes no option (width|horizon); its options were num_cl"):
        build_network(Network(name="resnet18"), DATA, Asking())
    free = build_network(Network(name="resnet18", options={"num_classes": 4}), DATA, ANYTHING)
    assert free.model.num_classes == 4


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", offline)
    with pytest.raises(DistproError, match=r"hf-hub:timm/x: it cannot be had from the Hugging Face hub \(We couldn't"):
        build_network(Network(name="hf-hub:timm/x"), DATA, TASK)
    config = timm.get_pretrained_cfg("test_resnet.r160_in1k").to_dict()
    found = (config, "test_resnet", {})
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *_, **__: found)
    assert build_network(Network(name="hf-hub:timm/x"), DATA, TASK).model.num_classes == 10


RETURNS = """
import collections
from torch import nn
Output = collections.namedtuple("Output", "loss logits")

class Net(nn.Module):
    def __init__(self, num_classes, kind):
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, num_classes)
    def forward(self, x):
        x = self.stem(x)
        logits = self.head(x.mean((2, 3)))
        if self.kind == "dict":
            return {"features": x, "logits": logits}
        if self.kind == "attribute":
            return Output(None, logits)
        return (logits, x) if self.kind == "tuple" or self.training else logits
"""


@pytest.mark.parametrize(
    ("kind", "part"), [("dict", "logits"), ("attribute", "logits"), ("tuple", 0), ("training only", 0)]
)
def test_a_part_of_what_a_network_returns_is_its_output(kind: str, part: int | str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(RETURNS)
    spec = Network(name=f"{tmp_path}/own.py:Net", options={"kind": kind}, output=part)
    network = build_network(spec, DATA, TASK, logits=True)
    assert [level.name for level in network.levels] == ["stem", "pooled", "logits"]
    images = torch.rand(2, 3, 32, 32)
    for training in (False, True):
        output, features = network.train(training)(images, levels=[2, 3])
        assert torch.equal(output, network.model.head(features[2])) and features[3] is output
    wrong = spec.model_copy(update={"output": "nothing"})
    if kind != "training only":
        with pytest.raises(DistproError, match=r"Net: output: there is no nothing in a (dict|tuple|Output) of 2"):
            build_network(wrong, DATA, TASK)


def test_fastvit_stays_out_of_channels_last() -> None:
    network = build_network(Network(name="fastvit_t8"), Data(image_size=96, num_classes=5), TASK)
    assert network.needs_contiguous
    assert not build_network(Network(name="resnet8"), DATA, TASK).needs_contiguous
    seen: list[bool] = []
    network.model.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    images = torch.rand(2, 3, 96, 96).to(memory_format=torch.channels_last)
    output, _ = network.train()(images)
    output.sum().backward()
    assert seen == [True]
