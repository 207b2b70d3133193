"""distpro doctor: what is here, said without a crash even where torchvision does not import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distpro_cli.commands import doctor
from tests.conftest import Run, start_distpro


def test_it_names_versions_devices_caches_and_passes_its_test(distpro: Run, workplace: Path) -> None:
    before = sorted(workplace.iterdir())
    result = distpro("doctor", "--device", "cpu", "--json")
    assert result.status == 0, result.err
    report = result.json
    import timm
    import torch

    assert report["versions"]["torch"] == torch.__version__ or report["versions"]["torch"] in torch.__version__
    assert report["versions"]["timm"] == timm.__version__
    assert report["devices"][-1]["device"] == "cpu"
    assert report["self_test"]["device"].startswith("cpu") and report["self_test"]["seconds"] > 0
    assert report["problems"] == [] and {cache["name"] for cache in report["caches"]} >= {"trained teachers"}
    assert sorted(workplace.iterdir()) == before


def test_it_prints_plain_lines(distpro: Run, workplace: Path) -> None:
    (workplace / "cache").mkdir()
    result = distpro("doctor", "--no-test")
    assert result.status == 0, result.err
    assert "torchvision" in result.out and "device      cpu" in result.out and "self-test" not in result.out


def test_a_torchvision_that_does_not_import_is_named(workplace: Path) -> None:
    (workplace / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    process = start_distpro("doctor", "--json", cwd=workplace)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in errors
    report = json.loads(out)
    assert report["imports"]["torchvision"] == "RuntimeError: operator torchvision::nms does not exist"
    assert errors.startswith("error: torchvision does not fit torch") and "pip install" in errors
    assert report["devices"]


def test_a_self_test_that_fails_says_why(distpro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TINY_RECIPE", doctor.TINY_RECIPE.replace("wrn_10_1", "wrn_11_1"))
    result = distpro("doctor")
    assert result.status == 2 and "error: self-test: " in result.err and "wrn_11_1" in result.err
