"""COCO's annotations: what a file says of every image, and all that is wrong with it.

Shape legend: n objects of an image.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError, first_line

Numbers = NDArray[np.float32]
MOST_LINES = 100  # of faults in one report
TOLERANCE = 1.0  # pixels by which a box may reach beyond its image, as COCO's own do; it is clipped


@dataclass(frozen=True)
class Objects:
    """The objects of one image, in the order of the file.

    Attributes:
        boxes_n4: Left, top, right, bottom in pixels, float32, inside the image.
        labels_n: Class numbers from 1, int64; 0 is the background's.
        areas_n: In square pixels, as the file says.
        crowd_n: Whether it is a region of many, which is not learnt and not counted as missed.
        masks: Polygons or run lengths of every object, as the file has them; empty where masks are not wanted.
    """

    boxes_n4: Numbers
    labels_n: NDArray[np.int64]
    areas_n: Numbers
    crowd_n: NDArray[np.bool_]
    masks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Annotated:
    """One image of the file: its number there, its name, height and width in pixels, and what was found in it."""

    number: Any
    file_name: str
    height: int
    width: int
    entries: tuple[Mapping[str, Any], ...]


@dataclass
class Faults:
    """Everything wrong with a split, to be reported at once, or dropped and counted.

    Attributes:
        lines: One a fault, with file and id.
        counts: Of what is dropped, by kind.
    """

    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, kind: str, text: str) -> None:
        """Notes a fault, by the place, its kind in plural, and what is wrong."""
        self.lines.append(f"{where}: {text}")
        self.counts[kind] += 1

    def raise_if_any(self, remedy: str) -> None:
        """Raises DistproError with all of them, the first 100 in words."""
        if not self.lines:
            return
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        more = len(self.lines) - MOST_LINES
        raise DistproError(
            f"data: {kinds}; {remedy}:",
            *(f"  {line}" for line in self.lines[:MOST_LINES]),
            *([f"  and {more:,} more"] if more > 0 else []),
        )


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO file as read: images with their entries, and class names by label from 1.

    Attributes:
        path: Of the file.
        class_names: In the order of the category ids.
        labels: Label by category id.
        images: In the order of the file.
        strays: Entries that belong to no image of the file.
    """

    path: Path
    class_names: tuple[str, ...]
    labels: Mapping[Any, int]
    images: tuple[Annotated, ...]
    strays: tuple[Mapping[str, Any], ...]


def read_annotations(path: Path) -> AnnotationFile:
    """Reads a file of COCO's form.

    Raises:
        DistproError: it cannot be read, or is not of that form.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DistproError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DistproError(f"{path}: no JSON ({first_line(error)})") from error
    lists: list[Any] = [
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")
    ]
    if not all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in lists):
        raise DistproError(f"{path}: no COCO file; it needs the lists images, annotations and categories, of objects")
    images, entries, categories = lists
    names = {_key(category.get("id")): str(category.get("name", category.get("id"))) for category in categories}
    if None in names or len(names) < len(categories) or not names:
        raise DistproError(f"{path}: categories need an id each, and each its own")
    try:
        numbers = sorted(names)
    except TypeError:
        raise DistproError(f"{path}: the ids of its categories must all be numbers, or all texts") from None
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_image.setdefault(_key(entry.get("image_id")), []).append(entry)
    listed = tuple(_annotated(path, image, by_image) for image in images)
    if len({image.number for image in listed}) < len(listed):
        twice = [str(n) for n, count in Counter(image.number for image in listed).items() if count > 1]
        raise DistproError(f"{path}: several images have the same id: {', '.join(twice[:5])}")
    strays = tuple(entry for entries_of in by_image.values() for entry in entries_of)
    labels = {number: label for label, number in enumerate(numbers, start=1)}
    return AnnotationFile(path, tuple(names[number] for number in numbers), labels, listed, strays)


def _key(number: Any) -> Any:
    return number if isinstance(number, int | str) else None


def _annotated(path: Path, image: Mapping[str, Any], by_image: dict[Any, list[Mapping[str, Any]]]) -> Annotated:
    number, name = _key(image.get("id")), image.get("file_name")
    height, width = (image.get(side) if isinstance(image.get(side), int) else 0 for side in ("height", "width"))
    if number is None or not isinstance(name, str) or not name:
        raise DistproError(f"{path}: an image without id or file_name: {json.dumps(dict(image))[:80]}")
    return Annotated(number, name, height or 0, width or 0, tuple(by_image.pop(number, ())))


def objects_of(image: Annotated, file: AnnotationFile, faults: Faults, *, masks: bool) -> Objects:
    """Returns the sound objects of an image; of the others `faults` is told.

    Args:
        image: Of the file, its size known.
        file: The file.
        faults: Is told.
        masks: Whether every object needs a mask.
    """
    sound = []
    for entry in image.entries:
        if fault := _fault(entry, image, file.labels, masks=masks):
            kind, text = fault
            faults.add(
                f"{file.path}: annotation {entry.get('id')}, image {image.number} ({image.file_name})", kind, text
            )
        else:
            sound.append(entry)
    boxes_n4 = np.array([entry["bbox"] for entry in sound], dtype=np.float64).reshape(-1, 4)
    boxes_n4[:, 2:] += boxes_n4[:, :2]
    boxes_n4[:, 0::2] = boxes_n4[:, 0::2].clip(0, image.width)
    boxes_n4[:, 1::2] = boxes_n4[:, 1::2].clip(0, image.height)
    areas = [float(entry.get("area") or entry["bbox"][2] * entry["bbox"][3]) for entry in sound]
    return Objects(
        boxes_n4.astype(np.float32),
        np.array([file.labels[entry["category_id"]] for entry in sound], dtype=np.int64),
        np.array(areas, dtype=np.float32),
        np.array([bool(entry.get("iscrowd")) for entry in sound], dtype=np.bool_),
        tuple(entry["segmentation"] for entry in sound) if masks else (),
    )


def _fault(
    entry: Mapping[str, Any], image: Annotated, labels: Mapping[Any, int], *, masks: bool
) -> tuple[str, str] | None:
    """Returns the kind of what is wrong with an entry, and says what; None if it is sound."""
    if _key(entry.get("category_id")) not in labels:
        return "unknown categories", f"category {entry.get('category_id')} is not among the file's categories"
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
        return "broken boxes", f"bbox is {json.dumps(box)[:60]}; it must be four numbers: left, top, width, height"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area", f"bbox {box} has no area"
    right, bottom = left + width, top + height
    if min(left, top) < -TOLERANCE or right > image.width + TOLERANCE or bottom > image.height + TOLERANCE:
        return "boxes outside", f"bbox {box} reaches beyond the image of {image.width}×{image.height} pixels"
    if left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
        return "boxes outside", f"bbox {box} lies outside the image of {image.width}×{image.height} pixels"
    area = entry.get("area")
    if area is not None and not (_is_number(area) and area >= 0):
        return "broken areas", f"area is {json.dumps(area)[:60]}; it must be a number of square pixels"
    if masks and (text := _mask_fault(entry.get("segmentation"), image)):
        return "objects without a mask", f"{text}; Mask R-CNN learns masks: take Faster R-CNN, or add them"
    return None


def _mask_fault(mask: Any, image: Annotated) -> str | None:
    if not mask:
        return "it has no segmentation"
    if isinstance(mask, list):
        sound = all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(_is_number, polygon))
            for polygon in mask
        )
        return None if sound else "its segmentation is no list of polygons [x, y, x, y, x, y, ...]"
    counts = mask.get("counts") if isinstance(mask, Mapping) else None
    lengths = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not counts or not (lengths or isinstance(counts, str)) or not isinstance(mask.get("size"), list):
        return "its segmentation is neither polygons nor run lengths"
    if lengths and sum(counts) != image.height * image.width:
        return f"its run lengths cover {sum(counts)} pixels, the image has {image.height * image.width}"
    if mask["size"] != [image.height, image.width]:
        return f"its segmentation is of {mask['size']}, the image of [{image.height}, {image.width}] pixels"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def content_of(objects: Sequence[Objects]) -> bytes:
    """Returns what the objects are, for a hash."""
    parts: list[bytes] = []
    for own in objects:
        arrays = (own.boxes_n4, own.labels_n, own.areas_n, own.crowd_n)
        parts += [f"{len(own.labels_n)}\n".encode(), *(np.ascontiguousarray(array).tobytes() for array in arrays)]
        parts.append(json.dumps(own.masks, sort_keys=True, default=str).encode() if own.masks else b"")
    return b"".join(parts)
