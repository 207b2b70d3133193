"""TorchScript and compiled networks through the command line: as weights, as a network of one's own, and strangers'."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from distpro_cli.errors import DistproError
from distpro_cli.networks.build import build_network
from distpro_cli.networks.weights import fitting_weights
from distpro_cli.recipe.schema import Data, Network
from tests.conftest import Run
from tests.helpers import classification

NAME = "test_resnet.r160_in1k"
OWN = f"""
import warnings
import timm, torch

def plain(num_classes):
    torch.manual_seed(3)
    return timm.create_model("{NAME}", num_classes=num_classes)

def scripted(num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load("scripted.pt")

def compiled(num_classes):
    return torch.compile(plain(num_classes))

def compiled_in_parts(num_classes):
    network = plain(num_classes)
    network.layer1 = torch.compile(network.layer1)
    network.layer2[0].compile()
    return network
"""


def as_script(model: torch.nn.Module, how: str) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of the end of TorchScript
        scripted: torch.jit.ScriptModule
        scripted = torch.jit.script(model) if how != "traced" else torch.jit.trace(model, torch.zeros(2, 3, 32, 32))
        return torch.jit.freeze(scripted) if how == "frozen" else scripted


@pytest.fixture
def own(workplace: Path) -> Path:
    """`own.py` with networks in three forms, `scripted.pt`, and a recipe."""
    torch.manual_seed(3)
    model = timm.create_model(NAME, num_classes=10).eval()
    as_script(model, "scripted").save(workplace / "scripted.pt")  # type: ignore[no-untyped-call]
    (workplace / "own.py").write_text(OWN)
    (workplace / "own.yaml").write_text(
        "data: {name: digits, image_size: 32, train_images: 20, test_images: 10, workers: 0}\n"
        f"teacher: {{name: {NAME}, weights: scripted.pt}}\n"
        "student: {name: wrn_10_1}\n"
        "search: {epochs: 1}\n"
        "distill: {epochs: 1, batch_size: 10, optimizer: {lr: 0.01}}\n"
    )
    return workplace


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.parametrize("name", [NAME, "test_vit.r160_in1k"])
def test_the_tensors_of_an_archive_are_read(how: str, name: str, tmp_path: Path) -> None:
    options = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=10, **options).eval()
    as_script(model, how).save(tmp_path / "w.pt")  # type: ignore[no-untyped-call]
    other = timm.create_model(name, num_classes=10, **options)
    found, new_head = fitting_weights(other, tmp_path / "w.pt")
    expected = model.state_dict()
    assert new_head is None and found.keys() >= {key for key in expected if "num_batches" not in key}
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_frozen_archive_says_what_to_do(own: Path) -> None:
    model = timm.create_model(NAME, num_classes=10).eval()
    as_script(model, "frozen").save(own / "frozen.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(DistproError, match=r"without parameters.*without freezing, or save its state_dict\(\)"):
        fitting_weights(model, own / "frozen.pt")


def test_an_archive_as_weights_and_as_a_network_teach_the_same(distpro: Run, own: Path) -> None:
    kd = ["transfer", "own.yaml", "-p", "kd", "--json"]
    by_weights = distpro(*kd, "--run-dir", "weights")
    assert by_weights.status == 0, by_weights.err
    as_network = distpro(*kd, "teacher.name=own.py:scripted", "teacher.weights=scripted.pt", "--run-dir", "network")
    assert as_network.status == 0, as_network.err
    assert as_network.json["teacher"] == by_weights.json["teacher"]
    # All that it can be looked at is its output, which is the default.
    shown = distpro("inspect", "own.yaml", "teacher.name=own.py:scripted")
    assert shown.status == 0 and "kl" in shown.out, shown.err
    result = distpro("search", "own.yaml", "student.name=own.py:scripted", "--json")
    assert result.status == 0, result.err
    alone = ["distill.epochs=1", "--run-dir", "alone"]
    assert distpro("train", "own.yaml", "student.name=own.py:scripted", *alone).status == 0
    headless = distpro("inspect", "own.yaml", "teacher.name=own.py:scripted", "teacher.head=false")
    assert headless.status == 2 and "build the network in Python and give the archive as its weights" in headless.err
    refused = distpro("inspect", "own.yaml", "student.name=own.py:scripted", "pathways=[{distance: hcl}]")
    assert refused.status == 2 and "the logits are the only level of the student; take a distance" in refused.err


def test_compiled_networks_are_seen_through(distpro: Run, own: Path) -> None:
    data, task = Data(name="digits", image_size=32), classification()
    levels = [
        build_network(Network(name=f"own.py:{name}"), data, task).levels
        for name in ("plain", "compiled", "compiled_in_parts")
    ]
    assert levels[0] == levels[1] == levels[2]
    model = timm.create_model(NAME, num_classes=10)
    torch.save({f"_orig_mod.{key}": value for key, value in model.state_dict().items()}, "whole.pth")
    torch.save({k.replace("layer1.", "layer1._orig_mod."): v for k, v in model.state_dict().items()}, "part.pth")
    figures = []
    for name, weights in (("compiled", "part.pth"), ("compiled_in_parts", "whole.pth")):
        options = [f"teacher.name=own.py:{name}", f"teacher.weights={weights}", "--run-dir", name, "--json"]
        result = distpro("transfer", "own.yaml", "-p", "hint", *options)
        assert result.status == 0, result.err
        figures.append((result.json["teacher"], result.json["student"]["top1_last"]))
    assert figures[0] == figures[1]


class Runs:
    """Unpickles by a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("w/data.pkl", content)
        made.writestr("w/constants.pkl", pickle.dumps(()))
    return path


def test_an_archive_of_a_stranger_runs_nothing(distpro: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "import_ir_module", lambda *_, **__: pytest.fail("its code was loaded"))
    assert distpro("transfer", "own.yaml", "-p", "kd", "--run-dir", "run").status == 0
    for function, argument in ((os.system, "touch ran"), (eval, "open('ran', 'w')"), (torch.jit.load, "scripted.pt")):
        source = archive(own / "bad.pt", pickle.dumps(Runs(function, argument), 2))
        result = distpro("transfer", "own.yaml", "-p", "kd", "teacher.weights=bad.pt", "--run-dir", "bad")
        assert result.status == 2 and "would run code from the file, which is refused" in result.err, source
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02N.", pickle.dumps({"a": 1}, 2), b"\x80\x02c__torch__\nNet\n)\x81}X\x01\x00\x00\x00ah\x00sb."],
)
def test_broken_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(DistproError, match=r"^weights .*w\.pt: "):
            fitting_weights(model, archive(tmp_path / "w.pt", content, compression))


def test_a_module_inside_itself_and_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    # A scripted module whose attribute `a` is itself.
    itself = b"\x80\x02c__torch__\nNet\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with pytest.raises(DistproError, match="a module inside itself"):
        fitting_weights(torch.nn.Linear(2, 2), archive(tmp_path / "w.pt", itself))
    stream = io.BytesIO()
    stream.write(b"\x80\x02c__torch__\nNet\n)\x81}X\x06\x00\x00\x00weightctorch._utils\n_rebuild_tensor_v2\n(")
    stream.write(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ")
    stream.write(b"K\x00K\x02K\x02\x86K\x64K\x01\x86\x89Ntrsb.".replace(b"tr", b"tR"))
    source = archive(tmp_path / "far.pt", stream.getvalue())
    with zipfile.ZipFile(source, "a") as made:
        made.writestr("w/data/0", b"\x00" * 16)
    with pytest.raises(DistproError, match="broken, or no weights"):
        fitting_weights(torch.nn.Linear(2, 2), source)
