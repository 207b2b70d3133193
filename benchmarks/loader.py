"""How fast training images come: this package's loader beside timm's own, on the same JPEGs and transforms.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --json

Both read the same files, take a random resized crop (bilinear) and a flip, and end with normalised float32 batches on
the device; timm's is `timm.data.create_loader` with its prefetcher. Repetitions are interleaved; of each, the images of
all batches but the first count, from the moment that the first one is there. Figures are medians; the ratio is the
median of the ratios of neighbours.

| key | what |
| --- | --- |
| images_per_second_N, timm_images_per_second_N | with N workers |
| loader_over_timm_N | their ratio; loader_over_timm is the least of them (target: ≥ 1) |
| main_process_share_N | CPU time that the main process spends on getting an image (orders, messages), over an N-th of |
|  | what the workers spend on it: its share of the time if each of them had a core, however busy the machine is |
| main_process_share | the largest of them (target: ≤ 0.1) |
| converting_share_N | likewise, on making normalised floats of it, which on a GPU is the GPU's work |

Without `--data` it draws photographs of its own: smooth colours, edges and grain, so that they compress as pictures do.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from distpro_cli.networks.normalization import normalize
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.training.device import choose_device, describe_device

CLASSES = 4
QUALITY = 90
RAW_SIZE = (375, 500)  # height and width, near the mean of ImageNet's


@dataclass(frozen=True)
class Setting:
    """What is read, and how."""

    root: Path
    image_size: int
    batch_size: int
    num_batches: int
    device: torch.device


def draw_jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes `count` JPEGs into class folders below `folder`/train, the first also below `folder`/test."""
    generator = np.random.default_rng(0)
    height, width = size
    for number in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        fine = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        edges = np.asarray(Image.fromarray(fine).resize((width, height), Image.Resampling.NEAREST), dtype=np.float32)
        grain = generator.normal(0, 4, (height, width, 1))
        image = Image.fromarray((0.8 * smooth + 0.2 * edges + grain).clip(0, 255).astype(np.uint8))
        for split in ("train", "test") if number == 0 else ("train",):
            place = folder / split / f"class{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:05}.jpg", quality=QUALITY)


def ours(setting: Setting, workers: int, busy: list[float]) -> Iterator[int]:
    """Yields the size of every batch, once its images are there as a network sees them.

    Adds to `busy` CPU seconds of this process: for getting batches, for converting them.
    """
    augment = Augmentation(crop="resized", flip=0.5)
    spec = Data(root=str(setting.root), image_size=setting.image_size, workers=workers, augment=augment)
    spec = spec.model_copy(update={"test_on": "held-out"})
    data = ImageData(spec, 0)
    mean, std = (torch.tensor(v, device=setting.device).reshape(1, -1, 1, 1) for v in NORMALIZATION)
    batches = data.train_batches(setting.batch_size, setting.num_batches)
    while True:
        asked = time.process_time()
        batch = next(batches, None)
        got = time.process_time()
        if batch is None:
            return
        moved = batch.to(setting.device, torch.channels_last)
        normalize(moved.images_bchw, mean, std)
        busy[0] += got - asked
        busy[1] += time.process_time() - got
        yield len(moved.targets)


def timms(setting: Setting, workers: int, busy: list[float]) -> Iterator[int]:
    """Yields likewise, from timm's loader; of its time nothing is known."""
    train = setting.root / "train"
    dataset = create_dataset("", root=str(train if train.is_dir() else train.with_suffix(".tar")))
    loader = create_loader(
        dataset,
        input_size=(3, setting.image_size, setting.image_size),
        batch_size=setting.batch_size,
        is_training=True,
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        num_workers=workers,
        device=setting.device,
        pin_memory=setting.device.type == "cuda",
    )
    left = setting.num_batches
    while left:
        for images_bchw, _ in loader:
            yield len(images_bchw)
            left -= 1
            if not left:
                break


NORMALIZATION = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
Loader = Callable[[Setting, int, list[float]], Iterator[int]]


def run(loader: Loader, setting: Setting, workers: int) -> tuple[float, list[float]]:
    """Returns images a second, and the main process's CPU times over the time that the workers need."""
    gc.collect()
    busy, before = [0.0, 0.0], _seconds_of_ended()
    batches = loader(setting, workers, busy)
    first = next(batches)
    busy[:] = 0.0, 0.0
    started = time.perf_counter()
    images = sum(batches)
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)
    passed = time.perf_counter() - started
    of_an_image = (_seconds_of_ended() - before) / (first + images) / max(workers, 1)
    return images / passed, [seconds / images / of_an_image if of_an_image else 0.0 for seconds in busy]


def _seconds_of_ended() -> float:
    """Returns the CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(setting: Setting, workers: list[int], repetitions: int) -> dict[str, Any]:
    """Returns all figures; see the head of this file."""
    rates: dict[tuple[str, int], list[float]] = {}
    shares: dict[int, list[list[float]]] = {}
    for _ in range(repetitions):
        for count in workers:
            for name, loader in (("", ours), ("timm_", timms)):
                rate, busy = run(loader, setting, count)
                rates.setdefault((name, count), []).append(rate)
                if not name and count:
                    shares.setdefault(count, []).append(busy)
    result: dict[str, Any] = {}
    for count in workers:
        own, theirs = rates["", count], rates["timm_", count]
        result[f"images_per_second_{count}"] = statistics.median(own)
        result[f"timm_images_per_second_{count}"] = statistics.median(theirs)
        ratios = [a / b for a, b in zip(own, theirs, strict=True)]
        result[f"loader_over_timm_{count}"] = statistics.median(ratios)
        if count:
            getting, converting = zip(*shares[count], strict=True)
            result[f"main_process_share_{count}"] = statistics.median(getting)
            result[f"converting_share_{count}"] = statistics.median(converting)
    result["loader_over_timm"] = min(result[f"loader_over_timm_{count}"] for count in workers)
    if shares:
        result["main_process_share"] = max(result[f"main_process_share_{count}"] for count in shares)
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="where batches go; default: the best there is")
    parser.add_argument("--data", type=Path, help="folder with train/ or train.tar; default: JPEGs of its own")
    parser.add_argument("--images", type=int, default=256, help="JPEGs that are drawn")
    parser.add_argument("--raw-size", type=int, nargs=2, default=RAW_SIZE, help="their height and width")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=16, help="of a repetition, the first one left out")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory(prefix="distpro-loader-") as folder:
        root = arguments.data or Path(folder)
        if arguments.data is None:
            draw_jpegs(root, arguments.images, tuple(arguments.raw_size))
        setting = Setting(root, arguments.image_size, arguments.batch_size, arguments.batches + 1, device)
        result = measure(setting, arguments.workers, arguments.repetitions)
    options = ("image_size", "batch_size", "batches", "repetitions")
    result |= {name: getattr(arguments, name) for name in options}
    result |= {"device": describe_device(device), "machine": platform.machine()}
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result.items():
        print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
