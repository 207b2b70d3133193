"""From a file to uint8 pixels: depth, orientation, modes; every case against Pillow's own or NumPy's arithmetic."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from distpro_cli.errors import DistproError
from distpro_cli.tasks.images.folders import open_folder
from distpro_cli.tasks.images.sources import as_pixels, decode
from tests.tasks.conftest import random_image

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)


def written(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_8_as_in_colour(kind: str) -> None:
    pixels_hwc = decode(written(Image.fromarray(RAMP), kind))
    assert pixels_hwc.dtype == np.uint8 and pixels_hwc.shape == (16, 16, 3)
    assert np.array_equal(pixels_hwc[:, :, 0], np.arange(256).reshape(16, 16))
    assert (pixels_hwc == pixels_hwc[:, :, :1]).all()
    noise = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    assert np.array_equal(decode(written(Image.fromarray(noise), kind))[:, :, 1], noise // 256)


def test_16_bits_of_other_byte_orders_and_integers_become_8() -> None:
    for mode, order in (("I;16B", ">u2"), ("I;16L", "<u2"), ("I;16", "<u2")):
        image = Image.frombytes(mode, (16, 16), RAMP.astype(order).tobytes())
        assert np.array_equal(as_pixels(image)[:, :, 2], np.arange(256).reshape(16, 16))
    assert np.array_equal(as_pixels(Image.fromarray(RAMP.astype(np.int32)))[:, :, 0].ravel(), np.arange(256))


def test_fractions_are_of_one_or_of_255() -> None:
    ramp = np.arange(256, dtype=np.float32).reshape(16, 16)
    for values in (ramp, ramp / 255):
        assert np.array_equal(decode(written(Image.fromarray(values), "TIFF"))[:, :, 0], ramp.astype(np.uint8))


@pytest.mark.parametrize("value", [70000, -1, 300.0, -0.5, float("nan")])
def test_values_of_no_known_range_are_not_guessed(tmp_path: Path, value: float) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    values = np.full((4, 4), value, dtype=np.int32 if isinstance(value, int) else np.float32)
    Image.fromarray(values).save(tmp_path / "train" / "a" / "0.tif")
    with pytest.raises(DistproError, match=r"0\.tif: not a readable image \(its values lie in .* expected: 0 to "):
        open_folder(str(tmp_path), "train").load(0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_stand_upright(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file = written(random_image(0, (5, 8)), kind, exif=oriented(orientation), **options)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape == ((8, 5, 3) if orientation > 4 else (5, 8, 3))
    assert np.array_equal(decode(file), upright)


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    content = written(random_image(0, (5, 8)), "PNG").getvalue()
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", oriented(6).tobytes()[6:])
    end = content.rindex(b"IEND") - 4
    pixels_hwc = decode(io.BytesIO(content[:end] + chunk.getvalue() + content[end:]))
    assert np.array_equal(pixels_hwc, np.rot90(np.asarray(random_image(0, (5, 8))), -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_a_broken_exif_block_costs_nothing(exif: bytes) -> None:
    plain = decode(written(random_image(0), "JPEG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(written(random_image(0), "JPEG", exif=exif, dpi=(72, 72))), plain)
