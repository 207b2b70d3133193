"""distpro inspect of a process is light: it imports none of the heavy packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distpro_cli.process.file import save_process
from tests.process.examples import make_process
from tests.process.test_version_2 import full

HEAVY = ("torch", "timm", "torchvision", "matplotlib", "yaml", "safetensors", "huggingface_hub")


@pytest.mark.parametrize("option", ["--quiet", "--json"])
@pytest.mark.parametrize("version", [1, 2])
def test_inspect_imports_nothing_heavy(tmp_path: Path, option: str, version: int) -> None:
    path = tmp_path / "p.safetensors"
    save_process(make_process() if version == 1 else full(), path)
    heavy = [*HEAVY, *(["rich"] if option == "--json" else [])]
    code = f"""
import os, sys
from distpro_cli.cli import main
before = dict(os.environ)
try:
    main(["inspect", {str(path)!r}, {option!r}])
finally:
    assert dict(os.environ) == before
    print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n" and "4-4" in result.stdout
