"""What ships with the project: recipes and processes by name."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(name: str) -> Path | None:
    """Returns the folder `name`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    if inside.is_dir():
        return inside
    beside = package.parent / name
    return beside if beside.is_dir() and (package.parent / "pyproject.toml").is_file() else None


def shipped_files(name: str, suffix: str) -> dict[str, Path]:
    """Returns the shipped files ending in `suffix` by their path in the folder, without the suffix."""
    folder = shipped_folder(name)
    if folder is None:
        return {}
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob(f"*{suffix}")}
    return dict(sorted(found.items()))


def shipped_recipes() -> dict[str, Path]:
    """Returns the shipped recipes by name, such as `quickstart` or `cifar10/wrn_16_2-wrn_10_1`."""
    return shipped_files("recipes", ".yaml")


def shipped_processes() -> dict[str, Path]:
    """Returns the shipped processes by name."""
    return shipped_files("processes", ".safetensors")
