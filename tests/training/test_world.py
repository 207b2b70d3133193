"""Many ranks against one process: a ViT in float64, a network with BatchNorm against ghost batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.networks.build import build_network
from distpro_cli.networks.synchronised import synchronise_batch_norm
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import Recipe
from distpro_cli.tasks.classification import mix
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.task import Batch, find_task, rows_of
from distpro_cli.training.alpha import AlphaOptimizer, Record
from distpro_cli.training.device import device_of_rank
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.rivals import RIVALS
from distpro_cli.training.scale import SCALES
from distpro_cli.training.step import Distiller, Pair
from distpro_cli.training.weights import MovedWeights, SearchedWeights
from distpro_cli.workflows.session import Session
from distpro_cli.world import current_world
from tests.helpers import CONTEXT, CPU, digits_recipe
from tests.ranks import NO_RANKS, results_of_ranks

pytestmark = pytest.mark.skipif(NO_RANKS, reason="ranks are forked, and speak by Gloo")

STEPS, BATCH = 12, 16
OTHERS = ("metabalance", "cosine-outer", "uncertainty")
VIT = {"name": "vit_tiny_patch16_224", "options": {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}}
OF_TOKENS = {"connections": [[1, 1], [2, 1]], "transform": "transformer", "transform_options": {"dropout": 0.0}}
OF_MAPS = {"connections": [[1, 1], [3, 2]], "transform": "conv1"}
WRN = {"name": "wrn_10_1", "options": {}}
LOGITS = {"connections": "same", "transform": "identity", "distance": "kl"}

CASES: dict[str, dict[str, Any]] = {
    "clipping": {"distill": {"optimizer": {"name": "sgd", "lr": 0.05}, "clip_grad": 0.5}},
    "accumulation": {"distill": {"micro_batch_size": 3, "optimizer": {"name": "adamw", "lr": 1e-3}}, "steps": 6},
    "exact": {"search": {"hypergradient": "exact", "scale": "gradient", "interval": 3}, "steps": 6},
    "central-difference": {"search": {"hypergradient": "central-difference", "scale": "distance"}, "steps": 4},
    **{name: {"search": {"method": name, "weight": 1, "interval": 2}, "steps": 4} for name in OTHERS},
}


def in_float64() -> None:
    """Makes float64 of every float32 in this process, which is a forked one."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]


def make_distiller(network: dict[str, Any], group: dict[str, Any], given: dict[str, Any]) -> tuple[Distiller, Recipe]:
    """Returns a small pair of two networks of a kind, the same on every rank, and its recipe."""
    sides = {"teacher": network, "student": network, "data": {"name": "digits", "image_size": 16}}
    recipe = Recipe.model_validate({**sides, "pathways": [group, LOGITS], **given})
    torch.manual_seed(0)
    task = find_task(recipe.task)(recipe, recipe.distill)
    teacher = build_network(recipe.teacher, recipe.data, task, logits=True).eval().requires_grad_(False)
    student = build_network(recipe.student, recipe.data, task, logits=True).train()
    assert recipe.pathways is not None
    levels = len(student.levels)
    groups = [recipe.pathways[0], recipe.pathways[1].model_copy(update={"connections": [[levels, levels]]})]
    pair = Pair(student, teacher, Pathways(resolve_pathways(groups, teacher.levels, student.levels)))
    training = recipe.distill
    optimizer = make_optimizer(pair.modules(), training.optimizer)
    options = {"clip_grad": training.clip_grad, "micro_batch_size": training.micro_batch_size}
    return Distiller(pair, optimizer, task, device=CPU, **options), recipe  # type: ignore[arg-type]


def planned_batch(seed: int, step: int) -> Batch:
    """Returns the whole batch of a step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return Batch(torch.rand(BATCH, 3, 16, 16, generator=generator), torch.randint(10, (BATCH,), generator=generator))


def batches_of_rank(seed: int, start: int, ghosts: int = 1, steps: int = STEPS) -> Iterator[Batch]:
    """Yields this rank's part of the batches from a step on; or in one process, one after the other, the parts that
    `ghosts` ranks would see."""
    world = current_world()
    for step in range(start, steps):
        batch = planned_batch(seed, step)
        rows = [row for rank in range(ghosts) for row in rows_of(BATCH, (rank, ghosts))]
        whole = batch if ghosts == 1 else Batch(batch.images_bchw[rows], batch.targets[rows])
        yield whole.part((world.rank, world.size)) if world.size > 1 else whole


def source_of_weights(distiller: Distiller, recipe: Recipe, ghosts: int) -> MovedWeights:
    spec, num_pathways = recipe.search, len(distiller.trained.infos)
    record, factor_k = Record(num_pathways, STEPS, CPU), torch.ones(num_pathways)

    def outer_batches(start: int) -> Iterator[Batch]:
        return batches_of_rank(2, start, ghosts)

    if spec.method != "hypergradient":
        return RIVALS[spec.method](distiller, spec, factor_k, record, outer_batches, STEPS)
    alpha = AlphaOptimizer(factor_k.clone(), factor_k, spec, STEPS, CPU)
    hypergradient = make_hypergradient(spec.hypergradient, distiller, spec.hypergradient_options)
    unit = None if spec.scale == "distance" else SCALES[spec.scale](distiller, STEPS)
    return SearchedWeights(distiller, hypergradient, alpha, record, outer_batches, unit)


def searched(network: dict[str, Any], group: dict[str, Any], given: dict[str, Any], ghosts: int = 1) -> dict[str, Any]:
    """Returns what a search of a few steps ends with, and its hypergradients."""
    in_float64()
    search = {"interval": 1, "alpha_memory": None, **given.get("search", {})}
    distill = {"optimizer": {"name": "sgd", "lr": 0.01}, **given.get("distill", {})}
    distiller, recipe = make_distiller(network, group, {"search": search, "distill": distill})
    weights = source_of_weights(distiller, recipe, ghosts)
    hypergradients: list[Tensor] = []
    if isinstance(weights, SearchedWeights):
        update = weights.alpha.update

        def noted(hypergradient_k: Tensor) -> None:
            hypergradients.append(hypergradient_k.clone())
            update(hypergradient_k)

        weights.alpha.update = noted  # type: ignore[method-assign]
    losses = []
    for step, batch in enumerate(batches_of_rank(1, 0, ghosts, given.get("steps", STEPS))):
        found, outer = weights.step(batch, step)
        losses += [*found.tensors(), *(outer.tensors() if outer else [])]
    return {
        "parameters": [p.detach() for p in distiller.trained_parameters],
        "buffers": [b for b in distiller.student.model.buffers() if b.is_floating_point()],
        "weights": weights.record.weight_tk,
        "alpha": weights.record.alpha_tk,
        "hypergradients": hypergradients,
        "losses": losses,
    }


def assert_close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same_bits(found: list[Any]) -> None:
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_vit_on_ranks_is_that_of_one_process(case: str, tmp_path: Path) -> None:
    def work() -> dict[str, Any]:
        return searched(VIT, OF_TOKENS, CASES[case])

    (alone,) = results_of_ranks(1, work, tmp_path)
    moved = (alone["weights"][3] - alone["weights"][0]).abs().max()
    assert moved > 1e-3
    for size in (2, 4) if case == "clipping" else (2,):
        found = results_of_ranks(size, work, tmp_path)
        assert_same_bits(found)
        assert_close(found[0], alone)


def distilled(ghosts: int) -> dict[str, Any]:
    """Returns what a few steps of a network with BatchNorm end with, under fixed weights, in float32."""
    micro_batch_size = BATCH // ghosts if ghosts > 1 else None
    distiller, _ = make_distiller(WRN, OF_MAPS, {"distill": {"micro_batch_size": micro_batch_size}})
    for step, batch in enumerate(batches_of_rank(1, 0, ghosts)):
        distiller.step(batch, [0.5, 1.5, 1.0], step)
    model = distiller.student.model
    return {"parameters": [p.detach() for p in distiller.trained_parameters], "state": model.state_dict()}


def test_local_batch_norm_is_that_of_ghost_batches(tmp_path: Path) -> None:
    (alone,) = results_of_ranks(1, lambda: distilled(ghosts=2), tmp_path)
    found = results_of_ranks(2, lambda: distilled(ghosts=1), tmp_path)
    assert_same_bits([one["state"] for one in found])
    assert_same_bits([alone["parameters"], *(one["parameters"] for one in found)])


def test_a_search_with_local_batch_norm_is_that_of_ghost_batches(tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "lr": 0.02}
    ghosts = {"distill": {"optimizer": optimizer, "micro_batch_size": BATCH // 2}, "steps": 4}
    (alone,) = results_of_ranks(1, lambda: searched(WRN, OF_MAPS, ghosts, ghosts=2), tmp_path)
    found = results_of_ranks(
        2, lambda: searched(WRN, OF_MAPS, {"distill": {"optimizer": optimizer}, "steps": 4}), tmp_path
    )
    assert_same_bits(found)
    for one in (alone, *found):
        del one["buffers"]  # in one process running statistics see one ghost batch after the other
    assert_close(found[0], alone)


def test_running_statistics_are_the_mean_over_ranks(tmp_path: Path) -> None:
    def work() -> tuple[list[Tensor], list[Tensor]]:
        distiller, _ = make_distiller(WRN, OF_MAPS, {})
        of_parts = []
        for rank in range(2):
            student = copy.deepcopy(distiller.student)
            student(planned_batch(1, 0).part((rank, 2)).images_bchw)
            of_parts.append(list(student.model.buffers()))
        distiller.step(next(batches_of_rank(1, 0)), [1.0, 1.0, 1.0], 0)
        means = [torch.stack([a.float(), b.float()]).mean(0) for a, b in zip(*of_parts, strict=True)]
        return [buffer.float() for buffer in distiller.student.model.buffers()], means

    for statistics, means in results_of_ranks(2, work, tmp_path):
        assert_close(statistics, means, 1e-6)


def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    def work() -> dict[str, Any]:
        world = current_world()
        rank = torch.tensor([float(world.rank), 1.0])
        world.check_same({"student": torch.ones(3), "optimizer": {"momentum": [torch.tensor(2)]}})
        with pytest.raises(DistproError, match="do not hold the same optimizer any more"):
            world.check_same({"student": torch.ones(3), "optimizer": {"momentum": [rank]}})
        means = world.mean([rank, rank.double()[:1], torch.ones(2, 2).bfloat16()])
        return {
            "means": means,
            "sum": world.sum(rank),
            "any": world.any(world.rank == 1, False, True),
            "broadcast": world.broadcast([world.rank, "text"]),
        }

    for found in results_of_ranks(3, work, tmp_path):
        assert [mean.tolist() for mean in found["means"]] == [[1.0, 1.0], [1.0], [[1.0, 1.0], [1.0, 1.0]]]
        assert found["means"][2].dtype == torch.bfloat16
        assert found["sum"].tolist() == [3.0, 3.0]
        assert found["any"] == (True, False, True)
        assert found["broadcast"] == [0, "text"]


@pytest.mark.parametrize(("count", "size"), [(16, 2), (16, 4), (12, 4), (6, 2), (9, 3), (4, 4), (5, 1)])
def test_every_image_of_a_batch_is_seen_by_one_rank(count: int, size: int) -> None:
    rows = [rows_of(count, (rank, size)) for rank in range(size)]
    assert sorted(row for own in rows for row in own) == list(range(count))
    assert {len(own) for own in rows} == {count // size}


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_images_are_those_of_the_whole_batch(mixup: float, cutmix: float) -> None:
    images, targets = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
    whole = mix(images, targets, mixup, cutmix, 10, 3)
    assert not torch.equal(whole[0], images)
    for rank in range(4):
        rows = rows_of(16, (rank, 4))
        for found, expected in zip(mix(images[rows], targets[rows], mixup, cutmix, 10, 3), whole, strict=True):
            assert torch.equal(found, expected[rows])


@pytest.mark.parametrize("repeats", [1, 3])
def test_images_of_ranks_are_those_of_the_whole_batch(repeats: int) -> None:
    data = ImageData(digits_recipe().data.model_copy(update={"train_images": 60}), seed=1)
    beside = {"inner": (12, 1)}
    for source, given in ((data.train_batches, {}), (data.outer_batches, beside)):
        whole = list(source(12, 6, 1, **given, repeats=repeats))
        for rank in range(3):
            parts = list(source(12, 6, 1, **given, repeats=repeats, part=(rank, 3)))
            for found, batch in zip(parts, whole, strict=True):
                expected = batch.part((rank, 3))
                assert torch.equal(found.images_bchw, expected.images_bchw)
                assert torch.equal(found.targets, expected.targets)
    tested = [
        target for rank in range(3) for batch in data.test_batches(50, part=(rank, 3)) for target in batch.targets
    ]
    assert len(tested) == data.test_size


def test_data_that_know_no_parts_are_cut(tmp_path: Path) -> None:
    class Whole(ImageData):
        def train_batches(self, batch_size, num_steps, start_step=0):  # type: ignore
            return super().train_batches(batch_size, num_steps, start_step)

        def test_batches(self):  # type: ignore
            return super().test_batches()

    def work() -> list[Any]:
        session = Session(digits_recipe("data.train_images=40", "data.test_images=300"), CONTEXT)
        network = session.build(session.recipe.student, "student")
        found = []
        for kind in (ImageData, Whole):
            session.data = kind(session.recipe.data, session.recipe.seed)
            batches = [[b.images_bchw, b.targets] for b in session.batches("train", 8, 3, session.task)(1)]
            found.append([batches, session.evaluate(network)])
        return found

    ((alone, _),) = results_of_ranks(1, work, tmp_path)
    for rank, (parts, cut) in enumerate(results_of_ranks(2, work, tmp_path)):
        assert_same_bits([parts, cut])
        assert parts[1] == pytest.approx(alone[1]) and parts[1]["images"] == 300
        rows = rows_of(8, (rank, 2))
        assert_same_bits([parts[0], [[images[rows], targets[rows]] for images, targets in alone[0]]])


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        (None, 1, "cuda:1"),
        ("auto", 0, "cuda:0"),
        ("cuda", 1, "cuda:1"),
        ("cpu", 3, "cpu"),
        ("cuda:1", 1, "--device cuda:1: many ranks compute on cpu or cuda, on which each takes a GPU of its own"),
        ("mps", 0, "--device mps: many ranks compute on cpu or cuda"),
        (None, 2, r"rank 2 of this machine has no GPU, there are 2; start as many ranks \(torchrun --nproc-per-node 2"),
    ],
)
def test_every_rank_has_a_gpu_of_its_own(
    name: str | None, local_rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if " " in expected:
        with pytest.raises(DistproError, match=expected):
            device_of_rank(name, local_rank)
    else:
        assert device_of_rank(name, local_rank) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_rank(None, 5) == "cpu"


def test_batch_norm_is_synchronised_on_cuda_alone() -> None:
    cuda = torch.device("cuda")
    norms = nn.Sequential(nn.BatchNorm1d(3), BatchNormAct2d(3), nn.LayerNorm(3))
    with pytest.raises(DistproError, match="SyncBatchNorm computes on CUDA only, this run on cpu"):
        synchronise_batch_norm(norms, CPU)
    network = timm.create_model("resnet10t", num_classes=3)
    images = torch.rand(4, 3, 16, 16)
    plain = [copy.deepcopy(network).eval()(images), copy.deepcopy(network)(images)]
    synchronise_batch_norm(network, cuda)
    synchronise_batch_norm(norms, cuda)
    assert [type(norm).__name__ for norm in norms] == ["SyncBatchNorm", "SyncBatchNormAct", "LayerNorm"]
    assert_same_bits(
        [plain, [network.eval()(images), network.train()(images)]]
    )  # alone there is nothing to synchronise
    with pytest.raises(DistproError, match="a LazyBatchNorm2d cannot be synchronised"):
        synchronise_batch_norm(nn.LazyBatchNorm2d(), cuda)
