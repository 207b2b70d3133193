"""What determines a run: the one place that says which keys, files and data count, and which do not.

Data count by their content (names and sizes of the images), files of the user's by theirs, code by its version. Where
they lie does not count, so that a moved folder finds its teacher and its runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.files import expand_path
from distpro_cli.process.file import to_bytes
from distpro_cli.process.fitting import How
from distpro_cli.process.library import measured_unit
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Data, Network, Recipe, Training
from distpro_cli.registry import is_user_file
from distpro_cli.versions import installed_versions

if TYPE_CHECKING:
    import torch

# Keys by section that change nothing of what a run computes.
FREE = {"": {"checkpoint_seconds", "deterministic"}, "data": {"root", "workers", "cache"}}
_NEWER_OF_DATA = ("longest_side", "skip_bad")
_FREE_OF_TEACHER = {"test_split", "test_images"}  # it is trained without them


@dataclass(frozen=True)
class Identity:
    """What determines the runs of a recipe, their seed apart.

    Attributes:
        recipe: Of the runs.
        data: What their data are, as `TaskData.identity` says.
        device: Where they compute: another kind of device, or number of threads, rounds differently.
    """

    recipe: Recipe
    data: Mapping[str, Any]
    device: torch.device

    def teacher(self) -> str:
        """Returns the key of the teacher that `teacher.train` (else `distill`) makes; any device may have made it."""
        recipe, spec = self.recipe, self.recipe.teacher
        training = spec.train or recipe.distill
        free = FREE["data"] | _FREE_OF_TEACHER
        if recipe.data.test_on == "test":
            free = free | {"held_out"}
        network = _network(spec)
        content = {
            "network": {key: network[key] for key in ("name", "options", "mean", "std", "code", "weights")},
            "training": _training(training),
            **({"freeze": spec.freeze} if spec.freeze else {}),
            **({"sync_batch_norm": True} if recipe.sync_batch_norm else {}),
            **({"teaches": "average"} if training.ema_decay is not None else {}),
            **({"output": spec.output} if spec.output is not None else {}),
            **({"timm": installed_versions()["timm"]} if spec.weights == "pretrained" else {}),
            "seed": spec.seed,
            "task": _named(recipe.task),
            "data": _data(recipe.data, free),
            "images": self.data["train"],
            "precision": recipe.precision,
            "version": installed_versions()["distpro-cli"],
        }
        return _hash(content, 24)

    def transfer(
        self, seed: int, process: Process | None, infos: Iterable[PathwayInfo], dropping: Mapping[str, Any]
    ) -> str:
        """Returns the key of distilling the recipe's pair.

        Args:
            seed: Of the run.
            process: What drives it; None trains the student alone, whatever the teacher.
            infos: The pair's pathways, with the options that a process leaves open.
            dropping: What of the process is left out.
        """
        content = {**self._common(seed), "distill": _training(self.recipe.distill)}
        if process is not None:
            tables = hashlib.sha256()
            for table in (process.progress, process.weights, process.alpha):
                tables.update(table.tobytes())
            content |= {
                "process": tables.hexdigest(),
                "of_process": [_pathway(_plain(info)) for info in process.pathways],
                "of_pair": [_pathway(_plain(info)) for info in infos],
                "dropping": dict(dropping),
                "teacher": self._teacher(),
            }
            if process.scale is not None and (unit := measured_unit(self.recipe.distill, process)):
                content["measured"] = [unit, hashlib.sha256(process.scale.tobytes()).hexdigest()]
        return _hash(content)

    def search(self, seed: int) -> str:
        """Returns the key of a search with the recipe under another seed."""
        recipe = self.recipe
        given = recipe.pathways
        groups = None if given is None else [_pathway(group.model_dump()) for group in given]
        return _hash(
            {
                **self._common(seed),
                "search": recipe.search.model_dump(),
                "hypergradient": _named(recipe.search.hypergradient),
                "training": _training(recipe.search_training),
                "pathways": groups,
                "teacher": self._teacher(),
            }
        )

    def _common(self, seed: int) -> dict[str, Any]:
        import torch

        recipe, device = self.recipe, self.device
        return {
            "seed": seed,
            "task": _named(recipe.task),
            "precision": recipe.precision,
            "channels_last": recipe.channels_last,
            **({"compile": True} if recipe.compile else {}),
            "data": _data(recipe.data, FREE["data"]),
            "images": self.data,
            "student": _network(recipe.student),
            "versions": installed_versions(),
            "device": [device.type, torch.get_num_threads() if device.type == "cpu" else 0],
        }

    def _teacher(self) -> dict[str, Any]:
        spec = self.recipe.teacher
        # With weights and `train`, whether it is trained depends on their head, which is not looked at here.
        trained = spec.weights is None or spec.train is not None
        return {**_network(spec), "trained": self.teacher() if trained else None}


def transfer_inputs(
    process: Process | str, threshold: float | None, keep: float | None, how: How
) -> dict[str, str | float | None]:
    """Returns what determines a transfer besides its recipe; `process` may be the name of a scheme."""
    named = process if isinstance(process, str) else hashlib.sha256(to_bytes(process)).hexdigest()
    allow = ",".join(sorted(how.allow)) or None
    return {"process": named, "threshold": threshold, "keep": keep, "match": how.mode, "allow": allow}


def differences(before: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """Returns the dotted keys in which two recipes describe different runs, with both values."""
    return list(_differences(before.model_dump(), now.model_dump(), ""))


def _differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now} - FREE.get(path, set())):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path, before, now


def _training(training: Training) -> dict[str, Any]:
    # A key that came later is left out at its default, so that what was made before it is found again. `scale` counts
    # where a process with a scale drives the run.
    return training.model_dump(exclude={"scale", *(["augment_repeats"] if training.augment_repeats == 1 else [])})


def _network(spec: Network) -> dict[str, Any]:
    weights = expand_path(spec.weights) if spec.weights not in (None, "pretrained") else None
    return {
        **spec.model_dump(exclude={"train", "freeze", "seed", "name", *_left_out(spec)}),
        **_named(spec.name),
        "weights": spec.weights if weights is None else _content(weights) if weights.is_file() else None,
    }


def _data(spec: Data, free: set[str]) -> dict[str, Any]:
    """Returns the section without what does not count, and newer keys that are not set: runs keep theirs."""
    values: dict[str, Any] = spec.model_dump(exclude=free)
    default = Data()
    for key in _NEWER_OF_DATA:
        if getattr(spec, key) == getattr(default, key):
            values.pop(key, None)
    if spec.augment.resize == default.augment.resize:
        del values["augment"]["resize"]
    return values


def _plain(info: PathwayInfo) -> dict[str, Any]:
    values = asdict(info)
    for side in ("teacher", "student"):
        del values[side]["guess"]  # its outcome is among the values
    return values


def _left_out(spec: Network) -> set[str]:
    """Returns the keys that count only where they are set, so that runs from before there were such are found."""
    unset: dict[str, Any] = {"output": None, "head": True, "inherit": []}
    return {key for key, value in unset.items() if getattr(spec, key, value) == value}


def _pathway(values: dict[str, Any]) -> dict[str, Any]:
    # Where levels are tapped is said by the networks' sections.
    levels: dict[str, Any] = {
        side: {key: value for key, value in values[side].items() if key != "feature"}
        for side in ("teacher", "student")
        if side in values
    }
    return {**values, **levels, "transform": _named(values["transform"]), "distance": _named(values["distance"])}


def _named(name: str) -> dict[str, Any]:
    """Returns a name and, of one such as `folder/own.py:Net`, the code of every file that it can import."""
    if not is_user_file(name):
        return {"name": name, "code": None}
    text, _, member = name.rpartition(":")
    path = expand_path(text).resolve()
    code = {file.name: _content(file) for file in sorted(path.parent.glob("*.py"))}
    return {"name": f"{path.name}:{member}", "code": code}


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _hash(content: dict[str, Any], length: int = 12) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:length]
