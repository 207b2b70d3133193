"""The short form of tests/soak.py: some mutated files, some killed runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked and killed")
def test_mutated_files_and_killed_runs() -> None:
    command = [sys.executable, "-m", "tests.soak", "--files", "300", "--kills", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "300 files in" in done.stdout and "5 kills of" in done.stdout
