"""Weight files: nothing of the file runs, wrappers are looked through, timm reads what is written."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from distpro_cli.errors import DistproError
from distpro_cli.networks import NETWORKS
from distpro_cli.networks.weights import load_weights, save_weights, weights_metadata


def network(num_classes: int = 5, name: str = "resnet8") -> nn.Module:
    builder = NETWORKS.get(name)
    assert builder is not None
    return builder(num_classes=num_classes)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "best_acc": torch.tensor(71.0)},
        lambda state: {"model_state": {"state_dict": prefixed(state, "module.")}},
        lambda state: {"state_dict_ema": state, "state_dict": {}},
        lambda state: {"ema_state_dict": state, "state_dict": {"conv1.weight": torch.zeros(1)}},
        lambda state: {"model_ema": state, "model": {"conv1.weight": torch.zeros(1)}},
        lambda state: {"params": state},
        lambda state: {"state_dict": prefixed(state, "backbone.")},
        lambda state: prefixed(state, "teacher."),
        lambda state: {**prefixed({k: v * 2 for k, v in state.items()}, "teacher."), **prefixed(state, "student.")},
        # What timm's training script writes.
        lambda state: {
            "epoch": 3,
            "arch": "resnet8",
            "state_dict": state,
            "optimizer": {"state": {}, "param_groups": []},
            "version": 2,
            "args": argparse.Namespace(lr=0.1, opt="sgd", betas=(0.9, 0.99)),
            "metric": np.float64(71.5),
            "best": np.float32(1),
            "count": np.int64(3),
            "flag": np.bool_(True),
        },
        lambda state: prefixed(state, "_orig_mod.module."),
        lambda state: {"state_dict": prefixed(state, "model.")},
        lambda state: {**prefixed(state, "student."), "teacher.conv1.weight": torch.zeros(1)},
        lambda state: prefixed(state, "net."),
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
)
def test_wrappers_and_prefixes(wrap: Any, tmp_path: Path) -> None:
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "checkpoint.pth")
    load_weights(target, tmp_path / "checkpoint.pth")
    assert same(source, target)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle", "legacy"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(writer: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "it-ran", tmp_path / "checkpoint.pth"
    content = {"state_dict": network().state_dict(), "extra": Malicious(marker)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(DistproError, match="would run code from the file, which is refused") as refused:
        load_weights(network(), file)
    assert "\n" not in str(refused.value) and not marker.exists()


@pytest.mark.parametrize("version", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_timm_checkpoint_of_another_numpy_is_read(version: str, tmp_path: Path) -> None:
    source, target, file = network(), network(), tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": source.state_dict(), "metric": np.float64(71.5)}, file)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            if name.endswith("data.pkl"):
                found = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
                data = data.replace(b"c" + found, b"c" + version.encode())
            archive.writestr(name, data)
    load_weights(target, file)
    assert same(source, target)


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights"])
def test_safetensors_under_another_name(name: str, tmp_path: Path) -> None:
    source, target = network(), network()
    save_weights(source, tmp_path / name, {"network": "resnet8"})
    load_weights(target, tmp_path / name)
    assert same(source, target) and weights_metadata(tmp_path / name)["network"] == "resnet8"
    torch.save(source.state_dict(), tmp_path / "torch.safetensors")
    load_weights(network(), tmp_path / "torch.safetensors")


def test_a_namespace_hides_no_code(tmp_path: Path) -> None:
    marker, file = tmp_path / "it-ran", tmp_path / "checkpoint.pth"
    torch.save({"state_dict": network().state_dict(), "args": argparse.Namespace(hidden=Malicious(marker))}, file)
    with pytest.raises(DistproError, match="would run code from the file, which is refused"):
        load_weights(network(), file)
    assert not marker.exists()


def test_misfits_are_named(tmp_path: Path) -> None:
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = network().state_dict()
    state.pop("bn1.weight")
    state["conv1.weight"] = torch.zeros(7, 3, 3, 3)
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(DistproError) as error:
        load_weights(target, tmp_path / "a.pth")
    assert "1 missing (bn1.weight), 1 unknown (more), 1 of another shape" in str(error.value)
    assert "(conv1.weight [7, 3, 3, 3] for [16, 3, 3, 3])" in str(error.value)
    assert all(torch.equal(target.state_dict()[key], before[key]) for key in before)


def test_a_head_of_another_width_says_num_classes(tmp_path: Path) -> None:
    save_weights(network(9), tmp_path / "nine.safetensors", {})
    with pytest.raises(DistproError, match=r"head has 9 outputs, CifarResNet here has 5; set data\.num_classes to 9"):
        load_weights(network(5), tmp_path / "nine.safetensors")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth", "empty.pth"])
def test_broken_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else b"no weights at all")
    with pytest.raises(DistproError, match=f"weights .*{name}: ") as error:
        load_weights(network(), tmp_path / name)
    assert "\n" not in str(error.value)


def test_absent_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(DistproError, match="there is no such file"):
        load_weights(network(), tmp_path / "none.pth")
    with pytest.raises(DistproError, match="is a folder"):
        load_weights(network(), tmp_path)
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(DistproError, match="no state dict found; it holds epoch"):
        load_weights(network(), tmp_path / "epoch.pth")


def test_timm_loads_what_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=7).train()
    model.to(memory_format=torch.channels_last)
    model(torch.rand(2, 3, 32, 32))
    path = tmp_path / "folder" / "student.safetensors"
    save_weights(model, path, {"network": "resnet18"})
    assert load_file(path)["bn1.num_batches_tracked"].item() == 1
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "network": "resnet18"}
    assert same(model, timm.create_model("resnet18", num_classes=7, checkpoint_path=str(path)))
    overlay = {"file": str(path), "num_classes": 7}
    loaded = timm.create_model("resnet18", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert same(model, loaded)
    mine = timm.create_model("resnet18", num_classes=7)
    load_weights(mine, path)
    assert same(model, mine)


def test_shared_tensors_are_written_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "shared.safetensors", {})
    assert torch.equal(load_file(tmp_path / "shared.safetensors")["1.weight"], model[0].weight)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(network(), path, {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DistproError, match="No space left on device"):
        save_weights(network(), path, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]
