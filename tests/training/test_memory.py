"""What a step holds and what it runs again: nothing of it changes a number."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distpro_cli.recipe.schema import PathwayGroup
from distpro_cli.tasks.task import Batch, Filled
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.scale import distances
from distpro_cli.training.step import Distiller
from tests.conftest import Run
from tests.test_transformer_pairs import SIZE, make_distiller, recipe_of


def distiller(**options: Any) -> Distiller:
    torch.manual_seed(0)
    recipe = recipe_of("vit", "deit")
    recipe.student.options.update(drop_path_rate=0.3)
    return make_distiller(recipe, [PathwayGroup(transform_options=options)])


def batches() -> list[Batch]:
    images = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return [Batch(images[:8], torch.arange(8)), Batch(images[8:], torch.arange(8))]


def searched(found: Distiller, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Returns the hypergradient of the third step and the parameters after it."""
    hypergradient = make_hypergradient("cheap", found, options)
    weights_k = torch.linspace(0.2, 1.5, len(found.trained.infos))
    for step in range(3):
        *_, hypergradient_k = hypergradient.step(*batches(), weights_k, step)
    return hypergradient_k, [p.detach() for p in found.trained_parameters]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_search_with_checkpointing_is_the_same_to_the_bit(micro_batch_size: int | None) -> None:
    results = []
    for checkpoint in (False, True):
        found = distiller(checkpoint=checkpoint, dropout=0.3, depth=2)
        found.micro_batch_size = micro_batch_size
        results.append(searched(found))
    (plain_k, plain), (checkpointed_k, checkpointed) = results
    assert torch.equal(plain_k, checkpointed_k)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))


def test_gradients_kept_in_bfloat16_point_the_same_way() -> None:
    (exact_k, exact), (kept_k, kept) = (searched(distiller(), keep_bfloat16=keep) for keep in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(exact, kept, strict=True))
    assert not torch.equal(exact_k, kept_k)
    assert cosine_similarity(exact_k, kept_k, dim=0) > 0.9999


def test_a_wrong_option_is_status_2(distpro: Run) -> None:
    given = "search.hypergradient_options={keep_bfloat16: 1}"
    result = distpro("search", "tiny.yaml", given, "-q")
    assert result.status == 2
    assert "option 'keep_bfloat16' is 1; it must be true or false" in result.err


def test_the_teachers_feature_is_held_until_its_last_pathway(monkeypatch: pytest.MonkeyPatch) -> None:
    found = distiller()
    infos, measure = found.pathways.infos, found.pathways.distance
    features: dict[int, weakref.ref[Tensor]] = {}
    alive: list[set[int]] = []

    def watched(k: int, start: Tensor, teacher_feature: Tensor, filled: Filled | None = None) -> Tensor:
        features[infos[k].teacher.number] = weakref.ref(teacher_feature)
        alive.append({level for level, feature in features.items() if feature() is not None})
        return measure(k, start, teacher_feature, filled)

    monkeypatch.setattr(found.pathways, "distance", watched)
    found.step(batches()[0], [1.0] * len(infos), 0)
    assert alive == [{info.teacher.number} for info in infos]  # `lower` goes by teacher level


def test_the_first_look_of_a_scale_goes_by_micro_batches() -> None:
    found = distiller(dropout=0.0)
    found.student.eval()
    found.pathways.eval()  # BatchNorm, of vectors, would take a part's statistics
    whole_k = distances(found, batches()[0], 0)
    seen: list[int] = []
    found.student.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    found.micro_batch_size = 3
    torch.testing.assert_close(distances(found, batches()[0], 0), whole_k, rtol=1e-4, atol=1e-6)
    assert seen == [3, 3, 2]
