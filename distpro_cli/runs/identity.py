"""What determines a run, hashed, so that a run that was done before is found again, and no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distpro_cli.files import expand_path
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Network
from distpro_cli.versions import installed_versions
from distpro_cli.workflows.search import search_training
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.teacher import teacher_key

_FREE = {"root", "workers", "cache"}  # of `data`: they do not change what a run computes


def transfer_key(
    session: Session, seed: int, process: Process | None, infos: Iterable[PathwayInfo], dropping: dict[str, Any]
) -> str:
    """Returns the key of distilling the session's pair.

    Args:
        session: Recipe and data; its recipe's own seed does not count.
        seed: Of the run.
        process: What drives it; None trains the student alone, whatever the teacher.
        infos: The pair's pathways, with the options that a process leaves open.
        dropping: What of the process is left out.
    """
    content = {**_common(session, seed), "distill": session.recipe.distill.model_dump()}
    if process is not None:
        tables = hashlib.sha256()
        for table in (process.progress, process.weights, process.alpha):
            tables.update(table.tobytes())
        content |= {
            "process": tables.hexdigest(),
            "of_process": [asdict(info) for info in process.pathways],
            "of_pair": [asdict(info) for info in infos],
            "dropping": dropping,
            "teacher": _teacher(session),
            "code_of_pathways": _user_files(name for info in infos for name in (info.transform, info.distance)),
        }
    return _hash(content)


def search_key(session: Session, seed: int) -> str:
    """Returns the key of a search with the session's recipe."""
    recipe = session.recipe
    groups = [group.model_dump() for group in recipe.pathways]
    return _hash(
        {
            **_common(session, seed),
            "search": recipe.search.model_dump(),
            "training": search_training(recipe).model_dump(),
            "pathways": groups,
            "teacher": _teacher(session),
            "code_of_pathways": _user_files(group[name] for group in groups for name in ("transform", "distance")),
        }
    )


def _common(session: Session, seed: int) -> dict[str, Any]:
    recipe = session.recipe
    device = session.device
    return {
        "seed": seed,
        "task": recipe.task,
        "precision": recipe.precision,
        "channels_last": recipe.channels_last,
        "data": recipe.data.model_dump(exclude=_FREE),
        "images": session.data.identity,
        "student": _network(recipe.student),
        "versions": installed_versions(),
        # Sums over another number of threads, or on another kind of device, round differently.
        "device": [device.type, torch.get_num_threads() if device.type == "cpu" else 0],
    }


def _teacher(session: Session) -> dict[str, Any]:
    spec = session.recipe.teacher
    return {**_network(spec), "trained": teacher_key(session) if spec.weights is None else None}


def _network(spec: Network) -> dict[str, Any]:
    weights = expand_path(spec.weights) if spec.weights not in (None, "pretrained") else None
    return {
        **spec.model_dump(exclude={"train", "seed"}),
        "code": _user_files([spec.name]),
        "file": _content(weights) if weights is not None and weights.is_file() else None,
    }


def _user_files(names: Iterable[str]) -> dict[str, str]:
    """Returns the hash of every Python file that a name such as `own.py:Net` can import: those of its folder."""
    folders = {
        expand_path(path).resolve().parent for path, colon, _ in map(_split, names) if colon and path.endswith(".py")
    }
    return {str(file): _content(file) for folder in sorted(folders) for file in sorted(folder.glob("*.py"))}


def _split(name: str) -> tuple[str, str, str]:
    return name.rpartition(":")


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
