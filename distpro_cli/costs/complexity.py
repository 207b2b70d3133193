"""What pathways and networks cost: parameters, multiply-adds, memory kept for the backward pass.

Everything runs on the meta device, which computes shapes alone; modules that cannot are run on the CPU.
No data is touched.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distpro_cli.image_size import ImageSize, height_width
from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.preparation import describe_preparation
from distpro_cli.pathways.alignment import align
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.pathways.module import Pathways
from distpro_cli.pathways.transforms.base import SharedBlock
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.recipe.schema import Network, Recipe
from distpro_cli.tasks.task import find_task

NUM_IMAGES = 2  # BatchNorm in train mode refuses a single image on maps of one cell
COUNTED = ("parameters", "multiply_adds", "backward_bytes")

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class PathwayCost:
    """Cost of one pathway.

    Attributes:
        parameters: Trainable numbers of its transform block.
        multiply_adds: Of the block's convolutions and matrix products, forward, one image.
        backward_bytes: Kept from forward to backward pass, float32, one image; without parameters, buffers
            and what the block starts from, which is kept anyway.
    """

    parameters: int
    multiply_adds: int
    backward_bytes: int


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network.

    Attributes:
        parameters: Trainable numbers.
        multiply_adds: Of its convolutions and matrix products, forward, one image.
    """

    parameters: int
    multiply_adds: int


Built = tuple[TappedNetwork, TappedNetwork, Pathways]  # teacher, student, what is between them


def build_for_costs(recipe: Recipe) -> Built:
    """Builds both networks of a recipe and its pathways with random weights; nothing is downloaded, no data is read.

    Raises:
        DistproError: a network or a pathway that the recipe asks for cannot be built.
    """
    task = find_task(recipe.task)(recipe, recipe.distill)
    logits = ends_with_logits(recipe, task)
    teacher = build_network(recipe.teacher, recipe.data, task, logits=logits, pretrained_ok=False)
    student = build_network(recipe.student, recipe.data, task, logits=logits, pretrained_ok=False)
    groups = groups_for(recipe, task, teacher.levels, student.levels)
    return teacher, student, Pathways(resolve_pathways(groups, teacher.levels, student.levels))


def recipe_report(recipe: Recipe, built: Built | None = None) -> dict[str, Any]:
    """Returns what `distpro inspect recipe.yaml` shows of networks and pathways.

    Args:
        recipe: Of the pair.
        built: What `build_for_costs` makes of it; None: it is built here.

    Returns:
        Plain values: `teacher` and `student` (`name`, `weights`, `channels` of the images, `parameters`,
        `multiply_adds`, `levels`), `alignment` (the rule by which sets of connections join levels), `pathways`, the
        blocks that some of them share (`shared`) and the `totals` of both; units as in `PathwayCost`.
    """
    teacher, student, pathways = build_for_costs(recipe) if built is None else built
    costs, shared = pathway_costs(pathways), shared_costs(pathways)
    all_costs = [*costs, *shared]
    return {
        "teacher": _network_report(recipe.teacher, teacher, recipe),
        "student": _network_report(recipe.student, student, recipe),
        "alignment": align(teacher.levels, student.levels).rule,
        "pathways": [_pathway_report(info, cost) for info, cost in zip(pathways.infos, costs, strict=True)],
        "shared": [_shared_report(pathways, number, cost) for number, cost in enumerate(shared)],
        "totals": {
            "pathways": len(costs),
            **{key: sum(getattr(cost, key) for cost in all_costs) for key in COUNTED},
        },
    }


def _network_report(spec: Network, network: TappedNetwork, recipe: Recipe) -> dict[str, Any]:
    levels = [
        {
            "number": level.number,
            "name": level.name,
            "kind": level.kind,
            "shape": list(level.shape),
            "reduction": level.reduction,
            "point": point,
        }
        for level, point in zip(network.levels, network.points, strict=True)
    ]
    return {
        "name": spec.name,
        "weights": describe_preparation(spec, network.model),
        "channels": network.channels,
        **asdict(network_cost(network, recipe.data.height_width)),
        "levels": levels,
    }


def _pathway_report(info: PathwayInfo, cost: PathwayCost) -> dict[str, Any]:
    return {
        "id": info.id,
        "teacher_level": info.teacher.number,
        "student_level": info.student.number,
        "teacher_name": info.teacher.name,
        "student_name": info.student.name,
        "teacher_shape": list(info.teacher.shape),
        "student_shape": list(info.student.shape),
        "teacher_reduction": info.teacher.reduction,
        "student_reduction": info.student.reduction,
        "transform": info.transform,
        "distance": info.distance,
        **asdict(cost),
    }


def _shared_report(pathways: Pathways, number: int, cost: PathwayCost) -> dict[str, Any]:
    of_block = [info for info, (block, _) in zip(pathways.infos, pathways.start_of, strict=True) if block == number]
    return {
        "transform": of_block[0].transform,
        "student_levels": sorted({info.student.number for info in of_block}),
        **asdict(cost),
    }


def pathway_costs(pathways: Pathways) -> list[PathwayCost]:
    """Returns the cost of every pathway in training, in the order of `pathways.infos`."""
    return [_pathway_cost(pathways, k) for k in range(len(pathways.infos))]


def network_cost(network: TappedNetwork, image_size: ImageSize) -> NetworkCost:
    """Returns the cost of a network on one image of three channels and that size."""

    def count(copied: nn.Module, device: str) -> int:
        images_bchw = torch.zeros(1, 3, *height_width(image_size), device=device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # Without gradients: torch's counter fails on parameters given to modules.
            output, _ = copied.eval().requires_grad_(False)(images_bchw)
            tensors_of(output)
        return int(counter.get_total_flops()) // 2

    return NetworkCost(_num_parameters(network), without_computing(network, count))


def tensors_of(output: Any) -> list[Tensor]:
    """Returns the tensors of a network's output; of one that makes its losses later, by `fake_work`, those of these."""
    if callable(fake_work := getattr(output, "fake_work", None)):
        output = fake_work()
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def shared_costs(pathways: Pathways) -> list[PathwayCost]:
    """Returns the cost of every block that pathways share, with all of its levels, in the order of `shared`."""
    return [_shared_cost(block) for block in pathways.shared]


def _pathway_cost(pathways: Pathways, k: int) -> PathwayCost:
    teacher_level, start_level = pathways.infos[k].teacher, pathways.start_level(k)
    distance, transform = pathways.distances[k], pathways.transforms[k]

    def measure(copied: nn.Module, device: str) -> tuple[int, int]:
        start, teacher = feature_of(start_level, device).requires_grad_(), feature_of(teacher_level, device)
        return _block_cost(copied, [start], lambda: copied(start), lambda made: distance(made, teacher))

    return PathwayCost(_num_parameters(transform), *without_computing(transform, measure))


def _shared_cost(block: nn.Module) -> PathwayCost:
    assert isinstance(block, SharedBlock)
    levels = block.levels

    def measure(copied: nn.Module, device: str) -> tuple[int, int]:
        features = {level.number: feature_of(level, device).requires_grad_() for level in levels}
        return _block_cost(copied, list(features.values()), lambda: copied(features, set(features)), lambda made: None)

    return PathwayCost(_num_parameters(block), *without_computing(block, measure))


def _block_cost(
    block: nn.Module, given: list[Tensor], run: Callable[[], Any], measure_distance: Callable[[Any], object]
) -> tuple[int, int]:
    """Returns multiply-adds of `run`, and bytes that it and `measure_distance` keep beyond what is `given`."""
    # By the address of the storage, each once; data_ptr() is 0 for all meta tensors.
    addresses = {tensor.untyped_storage()._cdata for tensor in (*given, *block.parameters(), *block.buffers())}
    kept: dict[int, Tensor] = {}  # holding them keeps their addresses from being used again

    def pack(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage()._cdata) not in addresses:
            kept[address] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        with FlopCounterMode(display=False) as counter:
            made = run()
        measure_distance(made)
    kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return counter.get_total_flops() // (2 * NUM_IMAGES), kept_bytes // NUM_IMAGES


def feature_of(level: LevelInfo, device: str, num_images: int = NUM_IMAGES) -> Tensor:
    """Returns zeros in the place of a feature, [num_images, *level.shape]."""
    return torch.zeros(num_images, *level.shape, device=device)


def without_computing(module: nn.Module, measure: Callable[[nn.Module, str], Measured]) -> Measured:
    """Measures a copy of the module on the meta device, or on the CPU if some operation needs values."""
    try:
        with torch.device("meta"):
            return measure(_copied(module).to("meta"), "meta")
    except (NotImplementedError, RuntimeError, AssertionError):  # the last: of TorchScript
        return measure(_copied(module).to("cpu"), "cpu")


def _copied(module: nn.Module) -> nn.Module:
    with torch.no_grad():  # else parameters of TorchScript are copied as results of an operation
        return copy.deepcopy(module)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
