"""What a training step of a pair costs, part by part: the table from which the cost of dropping is predicted.

Everything runs on the meta device, as in `distpro_cli.costs.complexity`; no data is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from distpro_cli.costs.complexity import NUM_IMAGES, feature_of, tensors_of, without_computing
from distpro_cli.costs.operation_costs import Counts, OperationCosts
from distpro_cli.image_size import ImageSize, height_width
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.cost import SHARED, STUDENT_BACKWARD, STUDENT_FORWARD, STUDENT_UPDATE, Part
from distpro_cli.process.machine import Work
from distpro_cli.process.pathway import LevelInfo

# How often an update reads or writes as many bytes as the parameters hold: SGD with momentum reads the parameter,
# its gradient and its momentum and writes two of them; weight decay mostly finds them in the cache.
UPDATE_PASSES = 6


def step_parts(
    teacher: TappedNetwork, student: TappedNetwork, pathways: Pathways, image_size: ImageSize, batch_size: int
) -> tuple[Part, ...]:
    """Returns the parts of a plain distillation step; together they are the step with all pathways on.

    The student always runs. The teacher's forward is cut at its levels, each piece needed by the pathways from
    that level or a deeper one. Of a block that pathways share every level is a part of its own. What a
    pathway alone needs (transform and distance, forward, backward and update) is the part of its name.

    Args:
        teacher: Its levels are those of `pathways`.
        student: Likewise.
        pathways: Between the two.
        image_size: Of the images in pixels, one number or height and width.
        batch_size: Images per step, at least 1; the more, the less an update weighs.

    Returns:
        The same for equal shapes, whatever the weights; the random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        return (
            *_student_parts(student, image_size, batch_size),
            *_teacher_parts(teacher, pathways, image_size, batch_size),
            *_shared_parts(pathways, batch_size),
            *(_pathway_part(pathways, k, batch_size) for k in range(len(pathways.infos))),
        )


def _student_parts(student: TappedNetwork, image_size: ImageSize, batch_size: int) -> list[Part]:
    def run(network: nn.Module, device: str, num_images: int) -> list[Counts]:
        images_bchw = torch.zeros(num_images, 3, *height_width(image_size), device=device)
        with OperationCosts() as forward:
            output, _ = network.train()(images_bchw)
            sums = [leaf.sum() for leaf in tensors_of(output) if leaf.requires_grad]
        with OperationCosts() as backward:
            torch.autograd.backward(sums)
        return [forward.counts, backward.counts]

    forward, backward = _measured(student, run, batch_size)
    return [
        _part(STUDENT_FORWARD, forward, None),
        _part(STUDENT_BACKWARD, backward, None),
        _part(STUDENT_UPDATE, _update(student.parameters()), None),
    ]


def _teacher_parts(teacher: TappedNetwork, pathways: Pathways, image_size: ImageSize, batch_size: int) -> list[Part]:
    levels = sorted(pathways.teacher_levels(range(len(pathways.infos))))

    def run(network: nn.Module, device: str, num_images: int) -> list[Counts]:
        images_bchw = torch.zeros(num_images, 3, *height_width(image_size), device=device)
        costs = []
        for level in levels:
            with OperationCosts() as spent, torch.no_grad():
                network.eval()(images_bchw, levels=[level], output=False)
            costs.append(spent.counts)
        return costs

    parts, before = [], np.zeros(5)
    for level, reached in zip(levels, _measured(teacher, run, batch_size), strict=True):
        columns = tuple(k for k, info in enumerate(pathways.infos) if info.teacher.number >= level)
        parts.append(_part(f"teacher {level}", np.maximum(reached - before, 0.0), columns))
        before = reached
    return parts


def _shared_parts(pathways: Pathways, batch_size: int) -> list[Part]:
    parts = []
    for number, block in enumerate(pathways.shared):
        starts = {k: level for k, (own, level) in enumerate(pathways.start_of) if own == number}
        needs = {level: pathways.student_levels([k]) for k, level in starts.items()}
        infos = {info.student.number: info.student for info in pathways.infos}
        found: dict[int, Counts] = {}
        # What one output costs beyond the outputs that it is made of.
        for level in sorted(needs, key=lambda level: (len(needs[level]), level)):
            whole = _shared_cost(block, [infos[n] for n in sorted(needs[level])], level, batch_size)
            others = sum((found[other] for other in needs[level] - {level} if other in found), np.zeros(5))
            found[level] = np.maximum(whole - others, 0.0)
        for level, counts in sorted(found.items()):
            columns = tuple(k for k, start in starts.items() if level == start or level in needs[start])
            parts.append(_part(f"{SHARED} {number + 1} level {level}", counts, columns))
    return parts


def _shared_cost(block: nn.Module, given: list[LevelInfo], wanted: int, batch_size: int) -> Counts:
    def run(copied: nn.Module, device: str, num_images: int) -> list[Counts]:
        features = {info.number: feature_of(info, device, num_images).requires_grad_() for info in given}
        with OperationCosts() as spent:
            copied(features, [wanted])[wanted].sum().backward()
        parameters = [p for p in copied.parameters() if p.grad is not None]
        return [spent.counts, _update(parameters)]

    counts, update = _measured(block, run, batch_size)
    return counts + update


def _pathway_part(pathways: Pathways, k: int, batch_size: int) -> Part:
    distance, start, target = pathways.distances[k], pathways.start_level(k), pathways.infos[k].teacher

    def run(transform: nn.Module, device: str, num_images: int) -> list[Counts]:
        student = feature_of(start, device, num_images).requires_grad_()
        teacher = feature_of(target, device, num_images)
        with OperationCosts() as spent:
            distance(transform(student), teacher).backward()
        # Its pull is added to those of the other pathways from the same start: two reads and a write.
        return [spent.counts + _moving(3 * student.numel() * student.element_size(), operations=1)]

    (counts,) = _measured(pathways.transforms[k], run, batch_size)
    return _part(pathways.infos[k].id, counts + _update(pathways.transforms[k].parameters()), (k,))


def _part(name: str, counts: Counts, columns: tuple[int, ...] | None) -> Part:
    cost, *work = (float(round(value)) for value in counts.tolist())
    return Part(name, cost, columns, Work(*work))


def _update(parameters: Iterable[Tensor]) -> Counts:
    # Kernels of an update are not counted: where their number matters, on a GPU, one takes all parameters at once.
    return _moving(UPDATE_PASSES * sum(p.numel() * p.element_size() for p in parameters if p.requires_grad))


def _moving(num_bytes: int, operations: int = 0) -> Counts:
    """Returns the counts of moving so many bytes."""
    return np.array([num_bytes, num_bytes, 0.0, 0.0, operations])


def _measured(module: nn.Module, run: Callable[[nn.Module, str, int], list[Counts]], batch_size: int) -> list[Counts]:
    """Runs a copy of the module on a batch; where values have to be computed, on few images."""

    def measure(copied: nn.Module, device: str) -> list[Counts]:
        copied.zero_grad(set_to_none=True)
        if device == "meta":
            return run(copied, device, max(NUM_IMAGES, batch_size))
        # Of a batch everything but the weights' own bytes grows with its size, and in proportion.
        few, more = (run(copied, device, number * NUM_IMAGES) for number in (1, 2))
        beyond = (batch_size - NUM_IMAGES) / NUM_IMAGES
        return [cost + (other - cost) * beyond for cost, other in zip(few, more, strict=True)]

    return without_computing(module, measure)
