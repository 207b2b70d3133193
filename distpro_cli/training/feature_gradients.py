"""The gradients of the task and of every pathway at one and the same place: the student's feature.

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.functional import cosine_similarity

from distpro_cli.pathways.module import Pathways, Start
from distpro_cli.world import World


@dataclass(frozen=True)
class FeatureGradients:
    """What pulls at the student's level of one pathway, over the whole batch; both have the shape of its feature.

    Attributes:
        task: g_0 = ∂L_task/∂F; zeros where the task does not depend on the feature.
        pathway: g_k = ∂D_k/∂F, without the weight.
    """

    task: Tensor
    pathway: Tensor


def joined_gradients(parts: Sequence[Mapping[int, FeatureGradients]]) -> dict[int, FeatureGradients]:
    """Returns what pulls over a batch from what pulls over its micro-batches."""
    return {
        k: parts[0][k]
        if len(parts) == 1
        else FeatureGradients(
            torch.cat([part[k].task for part in parts]), torch.cat([part[k].pathway for part in parts])
        )
        for k in parts[0]
    }


def feature_gradients(
    pathways: Pathways,
    task: Tensor,
    features: Mapping[int, Tensor],
    starts: Mapping[Start, Tensor],
    gradients: Mapping[int, Tensor],
) -> dict[int, FeatureGradients]:
    """Returns g_0 and g_k by pathway, and keeps the graph.

    g_k is at hand where a pathway starts at the student's feature. One that starts at a shared block goes back through
    it, and through the student as far as its level, on its own.

    Args:
        pathways: Of the pair.
        task: The task loss, with its graph.
        features: The student's, by level, with the same graph.
        starts: What the pathways start from, likewise.
        gradients: ∂D_k/∂start, by pathway.
    """
    on_the_way = _ancestors(task)
    edges = {level: _edge(feature, on_the_way) for level, feature in features.items()}
    levels = {k: pathways.infos[k].student.number for k in gradients}
    wanted = {level: edge for level in sorted(set(levels.values())) if (edge := edges.get(level)) is not None}
    found = torch.autograd.grad(task, list(wanted.values()), retain_graph=True) if wanted else ()
    of_task = dict(zip(wanted, found, strict=True))
    at_student = {}
    for k, gradient in gradients.items():
        level, start = levels[k], starts[pathways.start_of[k]]
        edge = edges.get(level)
        if edge is None:
            at_student[k] = FeatureGradients(torch.zeros_like(gradient), gradient)
            continue
        if edge[:2] != get_gradient_edge(start)[:2]:
            (gradient,) = torch.autograd.grad(start, edge, gradient, retain_graph=True)
        at_student[k] = FeatureGradients(of_task[level], gradient)
    return at_student


def norms(gradients: list[FeatureGradients], world: World) -> tuple[Tensor, Tensor]:
    """Returns ‖g_0‖ and ‖g_k‖ of every pathway over the images of all ranks, float32 [K] each."""
    task_k = [torch.linalg.vector_norm(pair.task.float()) for pair in gradients]
    pathway_k = [torch.linalg.vector_norm(pair.pathway.float()) for pair in gradients]
    if world.size == 1:
        return torch.stack(task_k), torch.stack(pathway_k)
    # A rank's gradients are those of the mean over its own images.
    squares = world.sum(torch.stack([*task_k, *pathway_k]).square())
    task, pathway = (squares.sqrt() / world.size).chunk(2)
    return task, pathway


def cosines(pairs: Sequence[tuple[Tensor, Tensor]], world: World) -> Tensor:
    """Returns the cosine of the two tensors of every pair over the images of all ranks, float32 [K]; 0 where one is 0.

    Args:
        pairs: By pathway.
        world: The ranks.
    """
    flat = [(left.float().flatten(), right.float().flatten()) for left, right in pairs]
    if world.size == 1:
        return torch.stack([cosine_similarity(left, right, dim=0) for left, right in flat])
    products = [torch.stack([left @ right, left @ left, right @ right]) for left, right in flat]
    dot_k, left_k, right_k = world.sum(torch.stack(products, 1)).unbind()
    return dot_k / (left_k * right_k).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def _ancestors(loss: Tensor) -> set[Node]:
    """Returns the nodes of the graph behind a loss."""
    found: set[Node] = set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [before for before, _ in node.next_functions]
    return found


def _edge(feature: Tensor, on_the_way: set[Node]) -> GradientEdge | None:
    """Returns where the feature lies on the way of the task, None if nowhere.

    A tap may have copied, permuted or averaged what the network itself goes on with; that is then looked for behind it.
    """
    if not feature.requires_grad:
        return None
    node, number = get_gradient_edge(feature)[:2]
    while node not in on_the_way:
        if not node.next_functions or node.next_functions[0][0] is None:
            return None
        node, number = node.next_functions[0]  # type: ignore[assignment]
    return GradientEdge(node, number)
