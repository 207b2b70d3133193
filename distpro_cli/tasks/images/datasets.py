"""Data sets by timm's names: `torch/...` (torchvision) and `hfds/...` (Hugging Face)."""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset

from distpro_cli.errors import DistproError, nearest
from distpro_cli.files import expand_path
from distpro_cli.tasks.images.folders import class_names
from distpro_cli.tasks.images.sources import Pixels, Source, as_pixels, decode

STREAMED = ("hfids/", "tfds/", "wds/")


def open_dataset(name: str, root_text: str | None, split: str | None) -> Source:
    """Opens one split of a data set, downloaded first if it is not there and the library can.

    Args:
        name: `torch/<name>` or `hfds/<name>`.
        root_text: Where the set lies or is put; may be left out for `hfds/`, which has a cache of its own.
        split: Name of the split; `None` looks for a test split by its usual names.

    Raises:
        DistproError: the name, the root or the split is not known, or the set cannot be had.
    """
    prefix = name.split("/", 1)[0].lower() + "/"
    if prefix in STREAMED:
        raise DistproError(
            f"data.name: '{name}' is streamed, and a seeded split and order need images by number; "
            "use hfds/..., torch/..., or a folder or tars"
        )
    if prefix not in ("torch/", "hfds/"):
        raise DistproError(
            f"data.name: '{name}' is not known{nearest(name, ['folder', 'digits'])}; "
            "there are: folder, digits, torch/<name>, hfds/<name>"
        )
    root = None if root_text is None else str(expand_path(root_text))
    if prefix == "torch/" and root is None:
        raise DistproError(f"data.root is not set: {name} needs a folder where it lies or is put")
    return _open_torch(name, root, split or "validation") if prefix == "torch/" else _open_hub(name, root, split)


@dataclass(frozen=True)
class TorchImages:
    """A torchvision data set."""

    name: str
    dataset: Any

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [H, W, 3]."""
        return as_pixels(self.dataset[index][0])

    def label(self, index: int) -> str:
        """Names image `index`."""
        return f"{self.name}, image {index}"

    def content(self) -> str:
        """Names the set, its split and the number of images."""
        return f"{self.name}, {len(self.dataset)} images"


@functools.lru_cache(maxsize=8)
def _open_torch(name: str, root: str | None, split: str) -> Source:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints
            try:
                dataset = create_dataset(name, root=root, split=split)
            except (RuntimeError, OSError):
                dataset = create_dataset(name, root=root, split=split, download=True)
    except Exception as error:  # whatever the set and the net raise
        raise DistproError(
            f"data.name: '{name}', split '{split}' is not under '{root}' "
            f"and cannot be downloaded ({_first_line(error)})"
        ) from error
    found = getattr(dataset, "targets", None)
    targets = np.asarray([target for _, target in dataset] if found is None else found, dtype=np.int64)
    names = getattr(dataset, "classes", None) or range(int(targets.max()) + 1)
    images = TorchImages(f"{name}, {split}", dataset)
    # ImageNet's classes are tuples of synonyms
    labels = tuple(entry[0] if isinstance(entry, tuple) else str(entry) for entry in names)
    return Source(images.name, images, targets, strata=targets, class_names=labels)


@dataclass(frozen=True)
class HubImages:
    """A split of a Hugging Face data set behind timm's reader; the set may be a folder on the disk."""

    name: str
    split: str
    reader: Any

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [H, W, 3]."""
        with self.reader[index][0] as file:
            return decode(file)

    def label(self, index: int) -> str:
        """Names image `index`."""
        return f"{self.name}, {self.split}, image {index}"

    def content(self) -> str:
        """Names the set, its split and the number of images; of a folder, its own name alone."""
        folder = Path(self.name.removeprefix("hfds/"))
        name = f"hfds/{folder.name}" if folder.is_dir() else self.name
        return f"{name}, {self.split}, {len(self.reader)} images"


@functools.lru_cache(maxsize=8)
def _open_hub(name: str, root: str | None, split: str | None) -> Source:
    tried = (split,) if split else ("test", "validation", "val")
    unknown: Exception | None = None
    for candidate in tried:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # timm prints
                reader = create_dataset(name, root=root, split=candidate).reader
        except ImportError as error:
            raise DistproError(f"data.name: '{name}' needs the package datasets: pip install datasets") from error
        except Exception as error:  # whatever the hub and the net raise
            if "nknown split" in str(error):
                unknown = error
                continue
            raise DistproError(f"data.name: '{name}' cannot be had ({_first_line(error)})") from error
        targets = np.asarray(list(reader.dataset[reader.label_key]), dtype=np.int64)
        images = HubImages(name, candidate, reader)
        names = class_names(reader.class_to_idx)
        return Source(f"{name}, {candidate}", images, targets, strata=targets, class_names=names)
    quoted = " or ".join(f"'{candidate}'" for candidate in tried)
    raise DistproError(f"data: '{name}' has no split {quoted} ({_first_line(unknown)}); name one of its own")


def _first_line(error: Exception | None) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
