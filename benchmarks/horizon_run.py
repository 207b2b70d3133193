"""One seed of `horizon.py`: a distillation by the package's own steps, and the way back through all of them.

Shape legend: t steps, k pathways, p parameters of student and transform blocks, the student's first.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from distpro_cli import load_recipe
from distpro_cli.errors import DistproError
from distpro_cli.pathways.distances import Distance, HierarchicalContext
from distpro_cli.pathways.hcl import pool_weights
from distpro_cli.recipe.schema import Recipe
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.folder import RunFolder
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.classification import Classification
from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import choose_device, describe_device, full_float32
from distpro_cli.training.hypergradients.base import outer_gradient
from distpro_cli.training.optimiser import learning_rate, make_schedule
from distpro_cli.training.step import active_pathways
from distpro_cli.workflows.pairs import build_pair
from distpro_cli.workflows.search import searched_weights
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.teacher import prepare_teacher

FINAL_BATCH_SIZE = 250


@dataclass(frozen=True)
class Settings:
    """What determines the numbers of a seed."""

    recipe: str
    overrides: tuple[str, ...]
    teacher: str | None
    steps: int
    horizons: tuple[int, ...]
    final_images: int

    @cached_property
    def teacher_digest(self) -> str | None:
        """Of the teacher's weights: their content counts, not their place."""
        return None if self.teacher is None else hashlib.sha256(Path(self.teacher).read_bytes()).hexdigest()[:12]

    def as_json(self) -> dict[str, Any]:
        """Returns the settings as values that JSON knows."""
        own = asdict(self) | {"teacher": self.teacher_digest}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}

    def load(self, seed: int) -> Recipe:
        """Returns the recipe of a seed."""
        weights = [] if self.teacher is None else [f"teacher.weights={self.teacher}", "teacher.train=null"]
        held_out = ["data.test_on=held-out", "data.held_out=0.2", "data.test_images=null", "precision=float32"]
        return load_recipe(self.recipe, *held_out, *weights, *self.overrides, f"seed={seed}")


class TwiceDifferentiable:
    """A distance in any floating type whose gradient can be differentiated, which the package's HCL cannot."""

    def __init__(self, distance: Distance) -> None:
        self.distance = distance

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the scalar that `distance` gives."""
        if not (isinstance(self.distance, HierarchicalContext) and prediction.ndim == 4):
            return self.distance.measure(prediction, target)
        difference = prediction - target
        weights = pool_weights(difference.shape[2])
        total = difference.square().mean() * (1 - sum(weights.values()))
        for size, weight in weights.items():
            total = total + weight * F.adaptive_avg_pool2d(difference, size).square().mean()
        return total


class AnyPrecision(Classification):
    """Classification whose loss stays in the precision of the logits."""

    @override
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        smoothing = self.training.label_smoothing
        return {"cross_entropy": F.cross_entropy(output, targets, label_smoothing=smoothing)}


class Bench:
    """A pair on a device, the batches of its run and its weights, all from a seed."""

    def __init__(self, settings: Settings, seed: int, device: str | None, folder: Path) -> None:
        self.settings = settings
        self.recipe = load_recipe_that_fits(settings, seed)
        context = RunContext(choose_device(device), Reporter(), Interruption())
        self.session = Session(self.recipe, context, outer_share=self.recipe.search.held_out_share)
        self.device, self.training = self.session.device, self.recipe.search_training
        self.pair = build_pair(self.session)
        self.folder = RunFolder(folder, resuming=False)
        pathways = self.pair.pathways
        pathways.distances = [TwiceDifferentiable(distance) for distance in pathways.distances]
        self.pair.student.train()
        for module in (*self.pair.student.modules(), *self.pair.pathways.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None
        self.distiller = self.session.distiller(self.pair, self.training)
        self.distiller.task = AnyPrecision(self.recipe, self.training)
        self.parameters = [*self.distiller.student_parameters, *self.pair.pathways.parameters()]
        self.weights_k = searched_weights(self.session, self.distiller, self.training).weights()
        size, steps = self.training.batch_size, settings.steps
        outer_size = self.recipe.search.images_per_outer_batch(size)
        self.inner = list(self.session.batches("train", size, steps, self.distiller.task)(0))
        self.outer = list(self.session.batches("outer", outer_size, steps, inner=(size, 1))(0))

    def teach(self) -> None:
        """Makes the teacher ready; one that is trained is trained once and kept in the package's cache."""
        prepare_teacher(self.session, self.pair.teacher, self.folder, announce=False)

    @cached_property
    def final(self) -> list[Batch]:
        """The held-out batches that the final loss is the mean of: the same images for every seed."""
        batches = list(self.session.data.test_batches())
        images, targets = torch.cat([b.images_bchw for b in batches]), torch.cat([b.targets for b in batches])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: self.settings.final_images]
        parts = order.split(FINAL_BATCH_SIZE)
        return [Batch(images[part], targets[part]).to(self.device) for part in parts if len(part) == len(parts[0])]

    def double(self) -> None:
        """Turns everything to float64."""
        for module in (self.pair.student, self.pair.teacher, self.pair.pathways):
            module.double()
        self.weights_k = self.weights_k.double()
        for batches in (self.inner, self.outer, self.final):
            batches[:] = [replace(batch, images_bchw=batch.images_bchw.double()) for batch in batches]


def load_recipe_that_fits(settings: Settings, seed: int) -> Recipe:
    """Returns the recipe of a seed.

    Raises:
        DistproError: its way of training is not one that is carried back here.
    """
    recipe = settings.load(seed)
    training = recipe.search_training
    if recipe.task != "classification":
        raise DistproError(f"task: {recipe.task}: this benchmark differentiates classification")
    if training.optimizer.name not in ("sgd", "momentum") or training.optimizer.options or training.clip_grad:
        raise DistproError(
            f"distill.optimizer: {training.optimizer.name}: this benchmark differentiates sgd and momentum without "
            "options and without clip_grad"
        )
    return recipe


@dataclass
class Way:
    """The states that a run went through.

    Attributes:
        rates: Learning rate of each step.
        states_tp: Parameters before each step, and after the last.
        outer_tp: Gradient of the outer loss by the parameters after each step; zero for transform blocks.
        decay_p: Weight decay.
        momentum: Factor of the momentum.
        nesterov: Whether it is Nesterov's.
    """

    rates: list[float]
    states_tp: Tensor
    outer_tp: Tensor
    decay_p: Tensor
    momentum: float
    nesterov: bool


def train(bench: Bench, weights_tk: Tensor) -> Way:
    """Distils the student by the package's own steps; row t of `weights_tk` holds in step t."""
    distiller, steps = bench.distiller, bench.settings.steps
    per_epoch = bench.session.data.steps_per_epoch(bench.training.batch_size)
    schedule = make_schedule(distiller.optimizer, bench.training.schedule, steps, per_epoch)
    states = [flat(bench.parameters)]
    outer_tp = torch.zeros(steps, states[0].numel(), dtype=states[0].dtype, device=bench.device)
    rates = []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(learning_rate(distiller.optimizer))
        distiller.step(bench.inner[step], weights_tk[step], step)
        _, v = outer_gradient(distiller, bench.outer[step], step)
        v_p = flat(v)
        outer_tp[step, : v_p.numel()] = v_p
        states.append(flat(bench.parameters))
    groups = distiller.optimizer.param_groups
    decay_of = {parameter: float(group["weight_decay"]) for group in groups for parameter in group["params"]}
    decay_p = torch.cat([torch.full_like(p, decay_of[p]).flatten() for p in bench.parameters])
    return Way(rates, torch.stack(states), outer_tp, decay_p, groups[0]["momentum"], groups[0]["nesterov"])


@dataclass
class Adjoint:
    """How a loss at the end changes with parameters and momentum behind a step; both [P].

    A step is g = ∇L + decay · θ, m' = μ m + g, θ' = θ - lr · m', or θ - lr · (g + μ m') by Nesterov.
    """

    theta_p: Tensor
    momentum_p: Tensor

    def at_gradient(self, way: Way, step: int) -> Tensor:
        """Returns d(loss)/d(∇L) in the step, and takes m' from behind the step."""
        rate = way.rates[step]
        self.momentum_p = self.momentum_p - rate * (way.momentum if way.nesterov else 1.0) * self.theta_p
        return self.momentum_p - rate * self.theta_p if way.nesterov else self.momentum_p

    def before(self, way: Way, at_gradient_p: Tensor, hessian_product_p: Tensor) -> None:
        """Goes to before the step."""
        self.theta_p = self.theta_p + way.decay_p * at_gradient_p + hessian_product_p
        self.momentum_p = way.momentum * self.momentum_p


def differentiate(bench: Bench, way: Way) -> dict[str, np.ndarray]:
    """Goes back through the run; returns what the report is made of, by step and pathway where not said otherwise.

    `truth`: d(final loss)/d(weight); `horizon_h`: likewise of the outer loss at the end of the step's stretch of h
    steps, with the run cut into such stretches; `product`: ⟨v, ∇_w D_k⟩, `product_h` with v taken h steps later;
    `gram` [T, K, K]: ⟨∇_w D_k, ∇_w D_l⟩; `outer_norm` [T]: ‖v‖.
    """
    steps, count, size = (
        len(way.rates),
        len(bench.pair.infos),
        sum(p.numel() for p in bench.distiller.student_parameters),
    )
    horizons = bench.settings.horizons
    products = {"product": 0} | {f"product_{h}": h for h in horizons}
    found = {name: np.zeros((steps, count)) for name in ("truth", "distance", *products)}
    found |= {f"horizon_{h}": np.zeros((steps, count)) for h in horizons} | {"gram": np.zeros((steps, count, count))}
    adjoints = {"truth": Adjoint(final_gradient(bench, way), torch.zeros_like(way.decay_p))}
    for step in reversed(range(steps)):
        put(bench.parameters, way.states_tp[step])
        for h in horizons:
            if (step + 1) % h == 0 or step == steps - 1:
                adjoints[f"horizon_{h}"] = Adjoint(way.outer_tp[step], torch.zeros_like(way.decay_p))
        distances_k, jacobian_kp, gradients = second_order(bench, step)
        found["distance"][step] = distances_k.cpu()
        student_kp = jacobian_kp[:, :size]
        found["gram"][step] = (student_kp @ student_kp.T).cpu()
        for name, later in products.items():
            found[name][step] = (student_kp @ way.outer_tp[min(step + later, steps - 1), :size]).cpu()
        for name, adjoint in adjoints.items():
            q_p = adjoint.at_gradient(way, step)
            found[name][step] = (jacobian_kp @ q_p).cpu()
            # An adjoint that starts anew in the next step back need not go there.
            if step and not (name != "truth" and step % int(name.rsplit("_", 1)[1]) == 0):
                adjoint.before(way, q_p, hessian_product(gradients, bench.parameters, q_p))
    return found | {"outer_norm": way.outer_tp.norm(dim=1).cpu().numpy(), "rate": np.array(way.rates)}


def second_order(bench: Bench, step: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns D_k [K], ∇D_k [K, P], and the gradient of the step's loss with its graph, by parameter."""
    distiller, batch, pathways = bench.distiller, bench.inner[step], bench.pair.pathways
    active = active_pathways(bench.weights_k)
    teacher_features = distiller.teacher_features(batch, active)
    output, features = distiller.student_forward(batch, pathways.student_levels(active), step)
    distances = pathways(features, teacher_features, active)
    rows = [torch.autograd.grad(distances[k], bench.parameters, retain_graph=True, allow_unused=True) for k in active]
    _, total = distiller.task_loss(output, batch.targets)
    for k in active:
        total = total + bench.weights_k[k] * distances[k]
    gradients = torch.autograd.grad(total, bench.parameters, create_graph=True)
    jacobian_kp = torch.stack([flat(filled(row, bench.parameters)) for row in rows])
    return torch.stack([distances[k].detach() for k in active]), jacobian_kp, list(gradients)


def hessian_product(gradients: list[Tensor], parameters: list[Tensor], q_p: Tensor) -> Tensor:
    """Returns H q, [P], H the Hessian of the step's loss."""
    parts = [part.view_as(p) for part, p in zip(q_p.split([p.numel() for p in parameters]), parameters, strict=True)]
    found = torch.autograd.grad(gradients, parameters, parts, retain_graph=True, allow_unused=True)
    return flat(filled(found, parameters))


def final_gradient(bench: Bench, way: Way) -> Tensor:
    """Returns the gradient of the final held-out loss, [P], zero for transform blocks."""
    put(bench.parameters, way.states_tp[-1])
    mean_p = torch.zeros_like(way.decay_p)
    for batch in bench.final:
        _, v = outer_gradient(bench.distiller, batch, len(way.rates))
        v_p = flat(v)
        mean_p[: v_p.numel()] += v_p / len(bench.final)
    return mean_p


@torch.no_grad()
def held_out(bench: Bench, batches: list[Batch]) -> tuple[float, float]:
    """Returns mean loss and top-1 in % on batches, where the student stands."""
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        output, _ = bench.distiller.student_forward(batch, (), 0)
        score = bench.distiller.task.scores(output, batch.targets)["top1"]
        totals += torch.stack([F.cross_entropy(output, batch.targets), score]).double().cpu()
    loss, top1 = (totals / len(batches)).tolist()
    return loss, top1


def flat(tensors: Any) -> Tensor:
    """Returns tensors as one vector without graph; a copy."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def filled(parts: Any, parameters: list[Tensor]) -> list[Tensor]:
    """Returns the parts with zeros where there is none."""
    return [torch.zeros_like(p) if part is None else part for part, p in zip(parts, parameters, strict=True)]


@torch.no_grad()
def put(parameters: list[Tensor], values_p: Tensor) -> None:
    """Writes one vector into the parameters."""
    for p, part in zip(parameters, values_p.split([p.numel() for p in parameters]), strict=True):
        p.copy_(part.view_as(p))


def run_seed(settings: Settings, seed: int, device: str | None, threads: int | None, folder: Path) -> float:
    """Runs one seed in this process, and writes its file; returns the seconds it took."""
    if threads:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    with full_float32():
        bench = Bench(settings, seed, device, folder / "teacher")
        bench.teach()
        way = train(bench, bench.weights_k.expand(settings.steps, -1))
        loss, top1 = held_out(bench, bench.final)
        found = differentiate(bench, way)
    seconds = time.perf_counter() - started
    about = {
        "settings": settings.as_json(),
        "seed": seed,
        "pathways": [info.id for info in bench.pair.infos],
        "lr_in_hypergradient": bench.recipe.search.lr_in_hypergradient,
        "device": describe_device(bench.device),
        "seconds": seconds,
        "final_loss": loss,
        "final_top1": top1,
    }
    part = folder / f"seed-{seed}.part.npz"
    np.savez(part, about=json.dumps(about), weights=bench.weights_k.cpu().numpy(), **found)
    part.replace(seed_file(folder, seed))
    return seconds


def seed_file(folder: Path, seed: int) -> Path:
    """Returns where the results of a seed lie."""
    return folder / f"seed-{seed}.npz"
