"""Names of the built-in processes, apart from their settings: the command line knows them without pydantic."""

from __future__ import annotations

SCHEME_NAMES = ("plain", "uniform", "kd", "hint", "attention-transfer", "reviewkd")
