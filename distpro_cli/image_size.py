"""Sizes of images in pixels: (height, width), of which a square one is written as one number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

Size = tuple[int, int]
ImageSize = int | Sequence[int]


def height_width(image_size: ImageSize) -> Size:
    """Returns height and width of a size given as one number or as two."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def size_text(image_size: ImageSize) -> str:
    """Returns a size as people write it: `224`, or `128×256` (height × width)."""
    height, width = height_width(image_size)
    return str(height) if height == width else f"{height}×{width}"


def longer_side(image_size: Size) -> int:
    """Returns 0 where the height is the longer side, or both are as long, else 1."""
    return 0 if image_size[0] >= image_size[1] else 1


def covers(height: int, width: int, image_size: Size) -> bool:
    """Says whether height × width cells can cover an image: square ones of a whole number of pixels, see `grids_of`.

    Of a square image they are equally many along both sides.
    """
    return height == width if image_size[0] == image_size[1] else (height, width) in grids_of(image_size)


@cache
def grids_of(image_size: Size) -> frozenset[Size]:
    """Returns in how many cells of 1, 2, ... pixels an image can lie; what is left at its end is cut off or padded."""
    height, width = image_size
    found = set()
    for r in range(1, max(image_size) + 1):
        found |= {(max(1, height // r), max(1, width // r)), (-(-height // r), -(-width // r))}
    return frozenset(found)


def nearest_multiples(image_size: ImageSize, divisors: Size) -> str:
    """Returns the sizes next to this one whose sides are multiples of the divisors; empty where it is such a size.

    Such as `48 or 64`, or of one that is not square `48 or 64 high, 80 or 96 wide`.
    """
    sides = height_width(image_size)
    found = [
        ""
        if side % divisor == 0
        else " or ".join(str(n * divisor) for n in (side // divisor, side // divisor + 1) if n)
        for side, divisor in zip(sides, divisors, strict=True)
    ]
    if sides[0] == sides[1] and divisors[0] == divisors[1]:
        return found[0]
    return ", ".join(f"{text} {name}" for text, name in zip(found, ("high", "wide"), strict=True) if text)
