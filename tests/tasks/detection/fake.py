"""A small data set of COCO's form: coloured rectangles on noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]  # labels 2 and 1, in the order of the ids
COLOURS = {7: (220, 30, 30), 3: (30, 200, 60)}
SMALL = {
    "backbone": "test_resnet",
    "channels": 16,
    "head_width": 32,
    "proposals": 32,
    "regions": 16,
    "anchor_scale": 4,
    "frozen_norm": False,
}


def rectangle(number: int, image: int, box: Sequence[float], category: int, **more: Any) -> dict[str, Any]:
    left, top, width, height = box
    polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [polygon],
        **more,
    }


def write_split(root: Path, split: str, sizes: Sequence[tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """Writes images of these heights and widths with one or two objects, the third of them with none; returns the JSON.

    Images lie in root/images, annotations in root/<split>.json.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes):
        pixels = drawn.integers(0, 90, (height, width, 3), dtype=np.uint8)
        for _ in range(0 if number % 7 == 2 else drawn.integers(1, 3)):
            category = int(drawn.choice([7, 3]))
            across, down = (int(drawn.integers(side // 4, side // 2)) for side in (width, height))
            left, top = int(drawn.integers(0, width - across)), int(drawn.integers(0, height - down))
            pixels[top : top + down, left : left + across] = COLOURS[category]
            annotations.append(rectangle(len(annotations) + 1, number, (left, top, across, down), category))
        name = f"{split}-{number}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(root, split, content)
    return content


def write_json(root: Path, split: str, content: dict[str, Any]) -> None:
    (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
