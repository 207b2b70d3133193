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
from typing_extensions import override

from distpro_cli.errors import DistproError, first_line, nearest
from distpro_cli.files import expand_path
from distpro_cli.tasks.images.folders import quoted
from distpro_cli.tasks.images.sources import Pixels, Source, as_pixels, decode

STREAMED = ("hfids", "tfds", "wds")


def open_dataset(name: str, root_text: str | None, split: str | None) -> Source:
    """Opens one split of a data set, downloaded first if it is not there and the library can.

    Args:
        name: `torch/<name>` or `hfds/<name>`.
        root_text: Where the set lies or is put; may be left out for `hfds/`, which has a cache of its own.
        split: Name of the split; `None` looks for a test split by its usual names.

    Raises:
        DistproError: the name, the root or the split is not known, or the set cannot be had.
    """
    kind = name.partition("/")[0].lower()
    if kind in STREAMED:
        raise DistproError(
            f"data.name: '{name}' is streamed, and a seeded split and order need images by number; "
            "use hfds/..., torch/..., or a folder or tars"
        )
    if kind not in ("torch", "hfds"):
        raise DistproError(
            f"data.name: '{name}' is not known{nearest(name, ['folder', 'digits'])}; "
            "there are: folder, digits, torch/<name>, hfds/<name>"
        )
    root = None if root_text is None else str(expand_path(root_text))
    if kind == "hfds":
        return _open_hub(name, root, split)
    if root is None:
        raise DistproError(f"data.root is not set: {name} needs a folder where it lies or is put")
    return _open_torch(name, root, split or "validation")


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchSource(Source):
    """A split of a torchvision data set."""

    dataset: Any

    @override
    def read(self, index: int) -> Pixels:
        return as_pixels(self.dataset[index][0])


@functools.lru_cache(maxsize=8)
def _open_torch(name: str, root: str, split: str) -> Source:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints
            try:
                dataset = create_dataset(name, root=root, split=split)
            except (RuntimeError, OSError):
                dataset = create_dataset(name, root=root, split=split, download=True)
    except Exception as error:  # whatever the set and the net raise
        raise DistproError(
            f"data.name: '{name}', split '{split}' is not under '{root}' and cannot be downloaded ({first_line(error)})"
        ) from error
    found = getattr(dataset, "targets", None)
    targets = np.asarray([target for _, target in dataset] if found is None else found, dtype=np.int64)
    names = getattr(dataset, "classes", None) or range(int(targets.max()) + 1)
    # ImageNet's classes are tuples of synonyms
    class_names = tuple(entry[0] if isinstance(entry, tuple) else str(entry) for entry in names)
    return TorchSource(f"{name}, {split}", targets, targets, class_names, dataset=dataset)


@dataclass(frozen=True, eq=False, kw_only=True)
class HubSource(Source):
    """A split of a Hugging Face data set behind timm's reader; the set may be a folder on the disk."""

    set_name: str
    reader: Any

    @override
    def read(self, index: int) -> Pixels:
        with self.reader[index][0] as file:
            return decode(file)

    @override
    def content(self) -> str:
        """Names the set, its split and the number of images; of a folder, its own name alone."""
        content, folder = super().content(), Path(self.set_name)
        return content.replace(self.set_name, folder.name, 1) if folder.is_dir() else content


@functools.lru_cache(maxsize=8)
def _open_hub(name: str, root: str | None, split: str | None) -> Source:
    tried = (split,) if split else ("test", "validation", "val")
    for candidate in tried:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # timm prints
                reader = create_dataset(name, root=root, split=candidate).reader
        except ImportError as error:
            raise DistproError(f"data.name: '{name}' needs the package datasets: pip install datasets") from error
        except Exception as error:  # whatever the hub and the net raise
            if "nknown split" in str(error):
                reason = first_line(error)
                continue
            raise DistproError(f"data.name: '{name}' cannot be had ({first_line(error)})") from error
        targets = np.asarray(list(reader.dataset[reader.label_key]), dtype=np.int64)
        class_names = tuple(reader.class_to_idx)
        return HubSource(
            f"{name}, {candidate}", targets, targets, class_names, set_name=name.partition("/")[2], reader=reader
        )
    raise DistproError(f"data: '{name}' has no split {quoted(tried)} ({reason}); name one of its own")
