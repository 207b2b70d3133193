"""One split: where its annotations and images lie, and whether the images can be read.

Shape legend: m images.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from typing_extensions import override

from distpro_cli.errors import DistproError, first_line
from distpro_cli.files import expand_path
from distpro_cli.tasks.detection.annotations import (
    Annotated,
    AnnotationFile,
    Faults,
    Objects,
    content_of,
    objects_of,
    read_annotations,
)
from distpro_cli.tasks.images.folders import TEST_NAMES, TRAIN_NAMES, FolderSource, quoted
from distpro_cli.tasks.images.listing import Names
from distpro_cli.tasks.images.sources import Pixels, as_pixels

# Below data.root, {} being the split: COCO's own, plain, and Roboflow's.
ANNOTATIONS = ("annotations/instances_{}.json", "annotations/{}.json", "{}.json", "{}/_annotations.coco.json")
IMAGES = ("{}", "images/{}", "images", "")
_PROBED = 20  # images that tell the folder
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_REMEDY = "fix them, or set data.skip_bad=true to leave them out"


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionSource(FolderSource):
    """The images of a split and the objects in them.

    Attributes:
        folder: Where the images lie.
        objects: Of every image.
        sizes: Height and width of every image in pixels.
        numbers: Of the images in the annotations.
    """

    folder: str
    objects: tuple[Objects, ...]
    sizes: tuple[tuple[int, int], ...]
    numbers: tuple[Any, ...]

    @override
    def read(self, index: int) -> Pixels:
        with Image.open(self.paths[index]) as image:  # as stored: annotations do not follow EXIF's orientation
            return as_pixels(image)

    @override
    def read_picture(self, index: int) -> Pixels:
        return self.read(index)

    @override
    def content(self) -> str:
        """Returns a hash over the files' names below their folder and their sizes.

        Raises:
            DistproError: a file is gone.
        """
        return FolderSource(self.folder, self.targets, paths=self.paths).content()

    @override
    def found(self, part: str) -> str:
        num_objects = sum(len(own.labels_n) for own in self.objects)
        empty = sum(len(own.labels_n) == 0 for own in self.objects)
        without = f", {empty:,} of them without objects" if empty else ""
        return f"{len(self):,} {part} images{without}, {num_objects:,} objects in {len(self.class_names)} classes"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the split is: names and sizes of the files, and what is in the images."""
        return {
            "images": self.content(),
            "targets": hashlib.sha256(content_of(self.objects)).hexdigest(),
            "class_names": list(self.class_names),
        }


def open_splits(
    root_text: str | None, splits: Sequence[str | None], *, masks: bool, skip_bad: bool
) -> list[DetectionSource]:
    """Opens splits of a folder, and reports everything wrong with all of them at once.

    Args:
        root_text: `data.root` as the user wrote it.
        splits: Names; None looks for a test split by its usual names.
        masks: Whether every object needs a mask.
        skip_bad: Whether faulty images and objects are left out and counted.

    Raises:
        DistproError: a file is missing, or images or objects are faulty.
    """
    if root_text is None:
        raise DistproError("data.root is not set: name the folder that holds the images and COCO's JSON files")
    root = expand_path(root_text)
    if not root.is_dir():
        raise DistproError(f"data.root: '{root}' is no folder; it holds the images and COCO's JSON files")
    found = [_find_annotations(root, split) for split in splits]
    opened = []
    for path, name in found:
        status = path.stat()
        opened.append(_open(root, path, name, masks, status.st_mtime_ns, status.st_size))
    if not skip_bad:
        every = Faults()
        for _, faults in opened:
            every.lines += faults.lines
            every.counts += faults.counts
        every.raise_if_any(_REMEDY)
    for source, _ in opened:
        if not len(source):
            raise DistproError(f"{source.place}: no image is left")
        if not any((~own.crowd_n).any() for own in source.objects):
            raise DistproError(f"{source.place}: no image has an object")
    return [
        replace(source, skipped=tuple(sorted(faults.counts.items(), key=lambda item: (-item[1], item[0]))))
        for source, faults in opened
    ]


def _find_annotations(root: Path, split: str | None) -> tuple[Path, str]:
    """Returns the file of a split, and the split's name."""
    names = TEST_NAMES if split is None else TRAIN_NAMES if split == "train" else (split,)
    for name in names:
        for form in ANNOTATIONS:
            if (path := root / form.format(name)).is_file():
                return path, name
    held = sorted(str(path.relative_to(root)) for path in [*root.glob("*.json"), *root.glob("annotations/*.json")])
    remedy = "data.test_split" if split is None else "data.train_split or data.test_split"
    forms = ", ".join(form.format("SPLIT") for form in ANNOTATIONS)
    raise DistproError(
        f"data.root: '{root}' has no annotations of {quoted(names)} (looked for {forms}); it holds: "
        f"{', '.join(held[:8]) or 'no JSON'}; name another split with {remedy}"
    )


@functools.lru_cache(maxsize=8)
def _open(
    root: Path, path: Path, split: str, masks: bool, _modified: int, _bytes: int
) -> tuple[DetectionSource, Faults]:
    """Reads a split, once per process; the time of change in the arguments renews what has changed."""
    file = read_annotations(path)
    faults = Faults()
    for entry in file.strays:
        where = f"{path}: annotation {entry.get('id')}"
        faults.add(where, "objects of no image", f"there is no image {entry.get('image_id')}")
    folder = _image_folder(root, file, split)
    images = list(_readable(file, folder, faults))
    objects = tuple(objects_of(image, file, faults, masks=masks) for image in images)
    source = DetectionSource(
        str(path),
        targets=np.arange(len(images), dtype=np.int64),
        class_names=file.class_names,
        folder=str(folder),
        paths=Names(str(folder / image.file_name) for image in images),
        objects=objects,
        sizes=tuple((image.height, image.width) for image in images),
        numbers=tuple(image.number for image in images),
    )
    return source, faults


def _image_folder(root: Path, file: AnnotationFile, split: str) -> Path:
    candidates = list(dict.fromkeys([*(root / form.format(split) for form in IMAGES), file.path.parent]))
    probed = file.images[:_PROBED]
    for folder in candidates:
        if any((folder / image.file_name).is_file() for image in probed):
            return folder
    if not probed:
        raise DistproError(f"{file.path}: it lists no images")
    raise DistproError(
        f"{file.path}: none of its first images is there, such as {probed[0].file_name}; looked in "
        + ", ".join(str(folder) for folder in candidates)
    )


def _readable(file: AnnotationFile, folder: Path, faults: Faults) -> Iterator[Annotated]:
    """Yields the images that can be read, with their sizes; of the others `faults` is told."""
    for image in file.images:
        path = folder / image.file_name
        where = f"{path}: image {image.number}"
        try:
            height, width = _size(path)
        except FileNotFoundError:
            faults.add(where, "missing images", "there is no such file")
            continue
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "no format that Pillow knows" if unknown else first_line(error)
            faults.add(where, "broken images", f"not a readable image ({reason})")
            continue
        if image.height and image.width and (image.height, image.width) != (height, width):
            stated = f"{image.width}×{image.height}"
            faults.add(where, "images of another size", f"it is {width}×{height} pixels, {file.path} says {stated}")
            continue
        yield replace(image, height=height, width=width)


def _size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image, whose end is looked at, too; it is not decoded."""
    with Image.open(path) as image:
        width, height = image.size
        end = _ENDS.get(image.format or "")
    if end is not None:
        with path.open("rb") as opened:
            opened.seek(-min(path.stat().st_size, 1024), 2)
            if end not in opened.read():
                raise OSError("the file is cut off")
    return height, width
