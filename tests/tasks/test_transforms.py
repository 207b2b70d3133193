"""What a single image goes through."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distpro_cli.errors import DistproError
from distpro_cli.randomness import seed_globals
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.transforms import TestTransform, TrainTransform

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)


def train(image_size: int = 20, mean: list[float] | None = None, **augment: object) -> TrainTransform:
    augmentation = Augmentation.model_validate({"crop": "none", "flip": 0.0} | augment)
    return TrainTransform(Data(image_size=image_size, augment=augmentation, mean=mean))


def test_pad_and_crop_shows_every_shift_of_the_zero_padded_image() -> None:
    padded = np.pad(IMAGE, ((3, 3), (3, 3), (0, 0)))
    allowed = {padded[y : y + 20, x : x + 20].tobytes() for y in range(7) for x in range(7)}
    transform = train(crop="pad", padding=3)
    seen = set()
    for seed in range(400):
        random.seed(seed)
        seen.add(transform(IMAGE).tobytes())
    assert seen == allowed


def test_flip_mirrors_with_its_probability() -> None:
    always, half = train(flip=1.0), train(flip=0.5)
    assert np.array_equal(always(IMAGE), IMAGE[:, ::-1])
    random.seed(0)
    flipped = sum(np.array_equal(half(IMAGE), IMAGE[:, ::-1]) for _ in range(400))
    assert 160 < flipped < 240


def test_erasing_fills_with_the_mean() -> None:
    transform = train(random_erasing=1.0, mean=[0.0, 0.5, 1.0])
    seed_globals(0)
    out = transform(IMAGE)
    changed = (out != IMAGE).any(-1)
    assert 0.01 < changed.mean() < 0.5
    assert (out[changed] == [0, 128, 255]).all()
    assert not np.shares_memory(out, IMAGE)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "resized"},
        {"auto_augment": "rand-m10-inc1"},
        {"auto_augment": "original-mstd0.5"},
        {"auto_augment": "augmix-m9-w3"},
        {"color_jitter": 0.4},
    ],
    ids=str,
)
def test_random_policies_replay_from_a_seed_and_never_fail(augment: dict[str, object]) -> None:
    transform = train(image_size=24, **augment)
    outputs = []
    for _ in range(2):
        for seed in range(60):
            seed_globals(seed)
            outputs.append(transform(IMAGE))
    assert all(out.shape == (24, 24, 3) and out.dtype == np.uint8 for out in outputs)
    assert all(np.array_equal(a, b) for a, b in zip(outputs[:60], outputs[60:], strict=True))
    assert len({out.tobytes() for out in outputs}) > 20


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(DistproError, match=r"timm does not understand 'bogus'.*examples: rand-m9"):
        train(auto_augment="bogus")


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (64, 64), (56, 500), (30, 41)])
def test_the_test_crop_is_the_centre(size: tuple[int, int]) -> None:
    height, width = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, height)[:, None]
    ramp[..., 1] = np.linspace(0, 255, width)[None]
    out = TestTransform(Data(image_size=56, augment=Augmentation(crop="resized"), crop_share=0.875))(ramp)
    assert out.shape == (56, 56, 3)
    assert abs(out[..., 0].mean() - 127.5) < 3
    assert abs(out[..., 1].mean() - 127.5) < 3
    shown = 255 * 0.875 * min(size) / height
    assert abs(float(np.ptp(out[..., 0])) - shown) < 10


def test_crop_none_squeezes_the_whole_image() -> None:
    image = np.zeros((10, 40, 3), dtype=np.uint8)
    image[:, :20] = 200
    out = TestTransform(Data(image_size=16, augment=Augmentation(crop="none")))(image)
    assert (out[:, :7] == 200).all()
    assert (out[:, 9:] == 0).all()
