"""The images of a recipe, and what happens to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field, field_validator, model_validator

from distpro_cli.image_size import height_width
from distpro_cli.recipe.base import (
    Deviation,
    Fraction,
    Mean,
    Model,
    NonNegative,
    PositiveInt,
    PositiveNumber,
    PositiveShare,
    Probability,
    Seed,
    wrong,
)


class HasNormalization(Protocol):
    """A section with the keys `mean` and `std`."""

    @property
    def mean(self) -> Sequence[float] | None:
        """Per channel."""
        ...

    @property
    def std(self) -> Sequence[float] | None:
        """Per channel."""
        ...


Normalized = TypeVar("Normalized", bound=HasNormalization)


def check_normalization(section: Normalized) -> Normalized:
    """Checks that `mean` and `std` fit each other where both are given."""
    mean, std = section.mean, section.std
    if mean is not None and std is not None and len(mean) != len(std):
        raise wrong(f"has {len(std)} values, but mean has {len(mean)}; give one per channel in both", "std")
    return section


class Augmentation(Model):
    """What happens to a training image. What is drawn for a sample depends only on seed, epoch and index."""

    crop: Literal["none", "pad", "resized"] = Field(
        "resized",
        description="none: resize only; pad: zero-pad and crop (CIFAR); resized: random resized crop (ImageNet)",
    )
    padding: PositiveInt = Field(4, description="pixels of padding on each side for crop: pad")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    scale: Annotated[list[PositiveShare], Field(min_length=2, max_length=2)] = Field(
        [0.08, 1.0], description="smallest and largest share of the area kept by crop: resized"
    )
    resize: Annotated[list[PositiveNumber], Field(min_length=2, max_length=2)] = Field(
        [0.8, 1.0],
        description="detection: smallest and largest factor of image_size that the shorter side of a train image gets",
    )
    auto_augment: str | None = Field(None, description="timm policy, such as rand-m9-mstd0.5-inc1")
    color_jitter: NonNegative | None = Field(None, description="strength of timm's colour jitter")
    random_erasing: Probability = Field(0.0, description="probability of random erasing")

    @field_validator("scale", "resize")
    @classmethod
    def _scale_is_ordered(cls, scale: list[float]) -> list[float]:
        if scale[0] > scale[1]:
            raise wrong("the smallest share comes first, then the largest")
        return scale


class Data(Model):
    """Where the images are and how they are preprocessed."""

    name: str = Field(
        "folder",
        description="folder (class folders or archives under root, see docs/data.md; of detection images and COCO's "
        "JSON files, see docs/detection.md), digits (shipped with distpro), or a timm dataset name: hfds/..., "
        "torch/...",
    )
    root: str | None = Field(
        None,
        description="folder or archive, needed by the name folder; ~ and environment variables such as $CIFAR10 "
        "are expanded when it is used",
    )
    train_split: str = Field("train", description="name of the split (folder, archive or data set split) to train on")
    test_split: str | None = Field(
        None, description="name of the split to test on; otherwise test, validation or val is looked for"
    )
    num_classes: PositiveInt | None = Field(
        None,
        description="classes; known for digits and the CIFAR sets, otherwise 1000; checked against the data "
        "when a run starts",
    )
    image_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = Field(
        224,
        description="height and width of the networks' input in pixels, as one number or as [height, width]; of "
        "detection: the shorter side",
        examples=[[128, 256]],
    )
    longest_side: PositiveInt | None = Field(
        None, description="detection: most pixels of the longer side; default: 5/3 of image_size"
    )
    skip_bad: bool = Field(
        False, description="detection: leave out faulty images and objects, and count them; otherwise all are reported"
    )
    train_images: PositiveInt | None = Field(
        None, description="use only this many train images, drawn evenly over classes by subset_seed"
    )
    test_images: PositiveInt | None = Field(None, description="use only this many test images, drawn in the same way")
    subset_seed: Seed = Field(
        0,
        description="seed of the subsets and of the split into inner and outer part; the run's seed does not "
        "change them",
    )
    test_on: Literal["test", "held-out"] = Field(
        "test",
        description="held-out: report on a held-out part of the train set, to choose settings without the test set",
    )
    held_out: Fraction = Field(0.1, description="share of the train set held out when test_on is held-out")
    augment: Augmentation = Field(Augmentation(), description="training-time augmentation")
    mean: Mean | None = Field(None, description="mean per channel of images in [0, 1], for networks without their own")
    std: Deviation | None = Field(None, description="standard deviation per channel, for networks without their own")
    crop_share: PositiveShare | None = Field(
        None,
        description="share of the resized test image kept by the centre crop; default: 0.875 from 64 pixels on, else 1",
    )
    workers: Annotated[int, Field(ge=0)] = Field(2, description="processes that load data; results do not depend on it")
    cache: bool = Field(False, description="keep decoded images in memory (small sets)")

    _normalization_fits = model_validator(mode="after")(check_normalization)

    @field_validator("image_size")
    @classmethod
    def _square_is_one_number(cls, image_size: int | list[int]) -> int | list[int]:
        return image_size[0] if isinstance(image_size, list) and image_size[0] == image_size[1] else image_size

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of the networks' input in pixels."""
        return height_width(self.image_size)
