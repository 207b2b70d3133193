"""Images with class numbers: as many classes as the recipe says, the same in train and test."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.recipe import schema
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.images.sources import Source


def known_num_classes(spec: schema.Data) -> int:
    """Returns the number of classes: as the recipe says, else known for digits and CIFAR, else 1000."""
    if spec.num_classes is not None:
        return spec.num_classes
    name = spec.name.lower()
    if "cifar100" in name:
        return 100
    return 10 if name == "digits" or "cifar10" in name else 1000


class ClassificationData(ImageData):
    """Image data whose targets are class numbers int64 [B]; errors as in `ImageData`, and where classes do not fit."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by number."""
        return self.train_source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @override
    def check_sources(self) -> None:
        _check_same_classes(self.train_source, self.test_source)
        _check_num_classes(self._spec, self.train_source)


def _check_num_classes(spec: schema.Data, source: Source) -> None:
    found, expected = len(source.class_names), known_num_classes(spec)
    if found != expected:
        origin = "" if spec.num_classes is not None else " (not set)"
        raise DistproError(
            f"data.num_classes: {expected}{origin}, but {source.place} has {found} classes "
            f"({_some(source.class_names)}); set data.num_classes={found}"
        )


def _check_same_classes(train: Source, test: Source) -> None:
    if train.class_names == test.class_names:
        return
    missing = sorted(set(train.class_names) - set(test.class_names))
    extra = sorted(set(test.class_names) - set(train.class_names))
    differences = [f"without {_some(missing)}"] * bool(missing) + [f"with {_some(extra)}"] * bool(extra)
    raise DistproError(
        f"data: {test.place} has other classes than {train.place}: "
        f"{', '.join(differences) or 'another order'}; both need the same class folders"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
