"""Why a method did worse than the student alone: what its runs show.

Shape legend: k pathways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distpro_cli.errors import DistproError
from distpro_cli.process.fitting import fit
from distpro_cli.report.comparison import STUDENT
from distpro_cli.runs.checkpoint import load_checkpoint
from distpro_cli.runs.folder import RunFolder
from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import autocast
from distpro_cli.training.step import Distiller
from distpro_cli.training.tensors import unmoved_buffers
from distpro_cli.workflows.methods import Method
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.teacher import prepare_teacher

NUM_BATCHES = 4  # over which the directions of gradients are averaged


def explain_worse(
    session: Session,
    methods: Sequence[Method],
    results: Sequence[Mapping[str, Any]],
    teacher_figure: float | None,
) -> list[dict[str, Any]]:
    """Returns the methods whose mean last figure is worse than that of the student alone, with reasons in words.

    Args:
        session: Of the comparison; its recipe is that of all runs but for their seeds.
        methods: What was compared.
        results: As `summarize_method` returns them, in the same order, the student alone among them.
        teacher_figure: The teacher's, None if it is not known.

    Returns:
        A list of `name`, `difference` in the metric's unit, `certain` (whether the 95 % interval leaves no doubt,
        None for one seed) and `reasons`.
    """
    metric = session.task.metric
    alone = next((result for result in results if result["name"] == STUDENT), None)
    found = []
    for method, result in zip(methods, results, strict=True):
        difference = result["difference"]
        if alone is None or difference is None or metric.gain(difference["mean"], 0.0) >= 0:
            continue
        reasons = []
        student_figure = alone[f"{metric.name}_last"]["mean"]
        if teacher_figure is not None and metric.gain(teacher_figure, student_figure) <= 0:
            reasons.append(
                f"the teacher ({metric.with_unit(teacher_figure)}) is no better than the student alone "
                f"({metric.with_unit(student_figure)})"
            )
        reasons += _reasons(session, method, [Path(run) for run in result["run_dirs"]])
        nearest_to_zero = difference["high"] if metric.higher_is_better else difference["low"]
        found.append(
            {
                "name": method.name,
                "difference": difference["mean"],
                "certain": None if nearest_to_zero is None else metric.gain(nearest_to_zero, 0.0) < 0,
                "reasons": reasons,
            }
        )
    return found


def _reasons(session: Session, method: Method, folders: Sequence[Path]) -> list[str]:
    shares = [share for folder in folders if (share := distillation_share(folder / "metrics.jsonl")) is not None]
    reasons = []
    if shares:
        reasons.append(f"distillation is {100 * sum(shares) / len(shares):.0f} % of the loss, mean over the run")
    try:
        directions = gradient_directions(session, method, folders[0])
    except DistproError as error:
        return [*reasons, f"the directions of its gradients are not known ({error})"]
    opposed = {name: cosine for name, cosine in directions.items() if cosine < 0}
    if opposed:
        named = ", ".join(f"{name} ({cosine:+.2f})" for name, cosine in sorted(opposed.items(), key=lambda p: p[1]))
        reasons.append(f"at the end of training the gradient opposes the task's (cosine) in pathways {named}")
    elif directions:
        reasons.append("at the end of training no pathway's gradient opposes the task's")
    return reasons


def distillation_share(metrics: Path) -> float | None:
    """Returns Σ_k weight_k · D_k as a share of the whole loss, mean over the steps in a metrics file; None if none."""
    shares = []
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        row = json.loads(line)
        if row.get("distances"):
            distilled = sum(row["weights"][name] * distance for name, distance in row["distances"].items())
            total = distilled + row["task"]
            shares.append(distilled / total if total > 0 else 0.0)
    return sum(shares) / len(shares) if shares else None


def gradient_directions(session: Session, method: Method, folder: Path) -> dict[str, float]:
    """Returns the cosine of ∇_w D_k and ∇_w L_task at the end of a run, by pathway, over a few train batches.

    Pathways that were never on are left out.

    Args:
        session: Of the run.
        method: What drove it.
        folder: Of the finished run.

    Raises:
        DistproError: its checkpoint cannot be read.
    """
    run = RunFolder(folder, resuming=True)
    pair, process = method.set_up(session, run)
    schedule = fit(process, pair.infos).schedule(threshold=method.dropping.threshold, keep=method.dropping.keep)
    used = [k for k, on in enumerate(schedule.ever_on) if on]
    state = load_checkpoint(run.checkpoint)
    for name, module in pair.modules().items():
        module.load_state_dict(state[name])
    prepare_teacher(session, pair.teacher, run, announce=False)
    distiller = session.distiller(pair, session.recipe.distill)
    pair.student.train()
    batches = session.batches("train", session.recipe.distill.batch_size, NUM_BATCHES)(0)
    cosines = [_cosines(distiller, batch, step, used) for step, batch in enumerate(batches)]
    means = torch.stack(cosines).mean(0).tolist()
    return {pair.infos[k].id: cosine for k, cosine in zip(used, means, strict=True)}


def _cosines(distiller: Distiller, batch: Batch, step: int, active: Sequence[int]) -> Tensor:
    """Returns the cosine of each `active` pathway's gradient to the task's on a batch; 0 where either is zero."""
    pathways, parameters = distiller.pathways, distiller.student_parameters
    with unmoved_buffers(distiller.student), unmoved_buffers(pathways):
        features = distiller.teacher_features(batch, active)
        output, own = distiller.student_forward(batch, pathways.student_levels(active), step)
        with autocast(distiller.device, distiller.precision):
            distances = pathways(own, features, active, batch.filled)
        _, task = distiller.task_loss(output, batch.targets)
        gradients = [_flat_gradient(loss, parameters) for loss in (task, *(distances[k] for k in active))]
    return torch.stack([cosine_similarity(gradients[0], gradient, dim=0) for gradient in gradients[1:]])


def _flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if gradient is None else gradient).flatten()
            for p, gradient in zip(parameters, gradients, strict=True)
        ]
    )
