"""What tasks of images share whose targets are of N classes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.images.sources import Source
from distpro_cli.tasks.task import Task, TaskData


class TaskOfClasses(Task):
    """A task that tells N classes apart: networks are built for N, and weights trained on other classes are doubted.

    Attributes:
        classes_are: What the data call classes, in the plural.
        classes_from: What both splits need, when they differ.
    """

    classes_are: ClassVar[str] = "classes"
    classes_from: ClassVar[str]

    @abstractmethod
    def num_classes(self, spec: Data) -> int:
        """Returns N as the recipe says it, else as it is known."""

    @override
    def network_options(self, spec: Data) -> dict[str, Any]:
        """Returns `num_classes`."""
        return {"num_classes": self.num_classes(spec)}

    @override
    def describe(self, data: TaskData) -> dict[str, Any]:
        """Returns `num_classes`, and `class_names` by number."""
        names = {"class_names": list(data.train_source.class_names)} if isinstance(data, ImageData) else {}
        return {"num_classes": self.num_classes(self.recipe.data), **names}

    @override
    def doubt(self, facts: Mapping[str, str], data: TaskData) -> str | None:
        """Compares the class names, where both sides have them."""
        theirs, names = facts.get("class_names"), self.describe(data).get("class_names")
        own = None if names is None else json.dumps(names)
        if own is None or theirs is None or theirs == own:
            return None
        return f"they were trained on other classes, or in another order: {theirs[:60]} for {own[:60]}"

    def check_classes(self, spec: Data, train: Source, test: Source) -> None:
        """Raises DistproError if two splits have other classes, or not as many as the recipe says."""
        if train.class_names != test.class_names:
            missing = sorted(set(train.class_names) - set(test.class_names))
            extra = sorted(set(test.class_names) - set(train.class_names))
            differences = [f"without {some(missing)}"] * bool(missing) + [f"with {some(extra)}"] * bool(extra)
            raise DistproError(
                f"data: {test.place} has other {self.classes_are} than {train.place}: "
                f"{', '.join(differences) or 'another order'}; both need the same {self.classes_from}"
            )
        found, expected = len(train.class_names), self.num_classes(spec)
        if found != expected:
            origin = "" if spec.num_classes is not None else " (not set)"
            raise DistproError(
                f"data.num_classes: {expected}{origin}, but {train.place} has {found} {self.classes_are} "
                f"({some(train.class_names)}); set data.num_classes={found}"
            )


def some(names: Sequence[str]) -> str:
    """Returns the first five names, as a part of a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
