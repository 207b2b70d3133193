"""Versions of what computes a run."""

from __future__ import annotations

from importlib.metadata import version


def installed_versions() -> dict[str, str]:
    """Returns the version by package of distpro and of the libraries that its results depend on."""
    return {name: version(name) for name in ("distpro-cli", "torch", "timm")}
