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
from distpro_cli.process.matching import fit
from distpro_cli.recipe.schema import Recipe
from distpro_cli.report.comparison import STUDENT
from distpro_cli.runs.checkpoint import load_checkpoint
from distpro_cli.runs.folder import RunFolder
from distpro_cli.tasks.classification.task import task_loss
from distpro_cli.training.device import autocast
from distpro_cli.training.step import Batch, Stepper, unmoved_buffers
from distpro_cli.workflows.methods import Method
from distpro_cli.workflows.search import make_ready
from distpro_cli.workflows.session import Session, Surroundings
from distpro_cli.workflows.transfer import set_up

NUM_BATCHES = 4  # over which the directions of gradients are averaged


def explain_worse(
    recipe: Recipe,
    methods: Sequence[Method],
    results: Sequence[Mapping[str, Any]],
    teacher_top1: float | None,
    around: Surroundings,
) -> list[dict[str, Any]]:
    """Returns the methods whose mean last accuracy is below that of the student alone, with reasons in words.

    Args:
        recipe: Of all runs but for their seeds.
        methods: What was compared.
        results: As `summarize_method` returns them, in the same order, the student alone among them.
        teacher_top1: In percent, None if it is not known.
        around: Where to compute the gradients.

    Returns:
        A list of `name`, `difference` in points, `certain` (whether the 95 % interval lies below 0, None for one
        seed) and `reasons`.
    """
    alone = next((result for result in results if result["name"] == STUDENT), None)
    found = []
    for method, result in zip(methods, results, strict=True):
        difference = result["difference"]
        if alone is None or difference is None or difference["mean"] >= 0:
            continue
        reasons = []
        if teacher_top1 is not None and teacher_top1 <= alone["top1_last"]["mean"]:
            reasons.append(
                f"the teacher ({teacher_top1:.2f} %) is no better than the student alone "
                f"({alone['top1_last']['mean']:.2f} %)"
            )
        reasons += _reasons(recipe, method, [Path(run) for run in result["run_dirs"]], around)
        found.append(
            {
                "name": method.name,
                "difference": difference["mean"],
                "certain": None if difference["high"] is None else difference["high"] < 0,
                "reasons": reasons,
            }
        )
    return found


def _reasons(recipe: Recipe, method: Method, folders: Sequence[Path], around: Surroundings) -> list[str]:
    shares = [share for folder in folders if (share := distillation_share(folder / "metrics.jsonl")) is not None]
    reasons = []
    if shares:
        reasons.append(f"distillation is {100 * sum(shares) / len(shares):.0f} % of the loss, mean over the run")
    try:
        directions = gradient_directions(recipe, method, folders[0], around)
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


def gradient_directions(recipe: Recipe, method: Method, folder: Path, around: Surroundings) -> dict[str, float]:
    """Returns the cosine of ∇_w D_k and ∇_w L_task at the end of a run, by pathway, over a few train batches.

    Pathways that were never on are left out.

    Args:
        recipe: Of the run.
        method: What drove it.
        folder: Of the finished run.
        around: Device.

    Raises:
        DistproError: its checkpoint cannot be read.
    """
    run = RunFolder(folder, resuming=True)
    session = Session(recipe, around)
    assert method.source is not None
    pair, process = set_up(session, method.source)
    assert pair.teacher is not None and pair.pathways is not None
    infos = pair.pathways.infos
    schedule = fit(process, infos).schedule(threshold=method.dropping.threshold, keep=method.dropping.keep)
    used = [k for k, on in enumerate(schedule.ever_on) if on]
    state = load_checkpoint(run.checkpoint, session.device)
    pair.student.model.load_state_dict(state["student"])
    pair.pathways.load_state_dict(state["transforms"])
    make_ready(session, pair, run, announce=False)
    stepper = Stepper(
        pair,
        torch.optim.SGD(pair.student.parameters()),
        lambda logits, targets: task_loss(logits, targets, recipe.distill.label_smoothing),
        device=session.device,
        precision=recipe.precision,
        seed=recipe.seed,
    )
    pair.student.train()
    batches = session.batches("train", recipe.distill.batch_size, NUM_BATCHES)(0)
    cosines = [_cosines(stepper, batch, step, used) for step, batch in enumerate(batches)]
    means = torch.stack(cosines).mean(0).tolist()
    return {infos[k].id: cosine for k, cosine in zip(used, means, strict=True)}


def _cosines(stepper: Stepper, batch: Batch, step: int, active: Sequence[int]) -> Tensor:
    """Returns the cosine of each `active` pathway's gradient to the task's on a batch; 0 where either is zero."""
    pathways = stepper.pair.pathways
    assert pathways is not None
    parameters = stepper.student_parameters
    with unmoved_buffers(stepper.pair.student), unmoved_buffers(pathways):
        features = stepper.teach(batch.images_bchw, active)
        logits, own = stepper.study(batch, pathways.student_levels(active), step)
        with autocast(stepper.device, stepper.precision):
            distances = pathways(own, features, active)
        losses = [stepper.task_loss(logits, batch.targets), *(distances[k] for k in active)]
        gradients = [_flat_gradient(loss, parameters) for loss in losses]
    return torch.stack([cosine_similarity(gradients[0], gradient, dim=0) for gradient in gradients[1:]])


def _flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if gradient is None else gradient).flatten()
            for p, gradient in zip(parameters, gradients, strict=True)
        ]
    )
