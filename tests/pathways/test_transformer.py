"""The transformer-style block against torch's own attention, what it does with class tokens, and `transform: auto`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distpro_cli.errors import DistproError, RecipeError
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.transforms import make_transform
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.recipe.schema import PathwayGroup
from tests.pathways.levels import feature, level, levels


def tokens(prefix: int, side: int, width: int) -> LevelInfo:
    return LevelInfo(1, 1, "block", "tokens", 4, (prefix + side * side, width), prefix, (side, side))


def by_hand(block: nn.Module, tokens_bnd: Tensor) -> Tensor:
    """The block in eval mode: torch's MultiheadAttention and plain functions."""
    for part in block.parts:  # type: ignore[union-attr]
        normed = F.layer_norm(tokens_bnd, part.norm.normalized_shape, part.norm.weight, part.norm.bias)
        if hasattr(part, "query_key_value"):
            attention = nn.MultiheadAttention(tokens_bnd.shape[2], part.heads, batch_first=True)
            attention.in_proj_weight.data = part.query_key_value.weight.data
            attention.in_proj_bias.data = part.query_key_value.bias.data
            attention.out_proj.load_state_dict(part.join.state_dict())
            tokens_bnd = tokens_bnd + attention(normed, normed, normed)[0]
        else:
            for layer in part.stack:
                if isinstance(layer, nn.Linear):
                    normed = F.gelu(normed @ layer.weight.T + layer.bias)
            tokens_bnd = tokens_bnd + normed
    return tokens_bnd @ block.to_teacher.weight.T + block.to_teacher.bias  # type: ignore[union-attr,operator,no-any-return]


@pytest.mark.parametrize("options", [{}, {"depth": 2, "heads": 3, "expansion": 1.5}])
def test_the_block_by_hand(options: dict[str, Any]) -> None:
    student, teacher = tokens(1, 4, 12), tokens(1, 4, 20)
    torch.manual_seed(0)
    block = make_transform("transformer", student, teacher, options).eval()
    given = feature(student)
    torch.testing.assert_close(block(given), by_hand(block, given), rtol=1e-4, atol=1e-5)


def test_class_tokens_meet_class_tokens() -> None:
    student, teacher = tokens(1, 4, 12), tokens(2, 2, 20)
    block = make_transform("transformer", student, teacher).eval()
    given = feature(student)
    pooled = given[:, 1:].reshape(2, 2, 2, 2, 2, 12).mean((2, 4)).reshape(2, 4, 12)
    carried = by_hand(block, torch.cat([given[:, :1], pooled], 1))
    grid = carried[:, 1:]
    expected = torch.cat([carried[:, :1], grid.mean(1, keepdim=True), grid], 1)
    torch.testing.assert_close(block(given), expected, rtol=1e-4, atol=1e-5)


def test_a_token_by_itself_has_no_attention() -> None:
    block = make_transform("transformer", tokens(1, 4, 12), level(20))
    assert not any(hasattr(part, "query_key_value") for part in block.parts)  # type: ignore[union-attr]


def test_what_is_run_again_in_the_backward_pass_changes_nothing() -> None:
    student, teacher = tokens(0, 4, 12), tokens(0, 4, 20)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        block = make_transform("transformer", student, teacher, {"checkpoint": checkpoint, "dropout": 0.5})
        given = feature(student).requires_grad_()
        block(given).square().sum().backward()
        assert given.grad is not None
        found.append([given.grad, *(p.grad for p in block.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads does not divide the width of the student's block: 5 heads, width 12"),
        ({"dropout": 1.0}, "option 'dropout' is 1.0; it must be a number from 0 to below 1"),
        ({"checkpoint": 1}, "option 'checkpoint' is 1; it must be true or false"),
        ({"depths": 1}, r"transform transformer has no option 'depths' \(did you mean 'depth'\?\)"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        make_transform("transformer", tokens(0, 4, 12), tokens(0, 4, 20), options)


TOKENS = (tokens(1, 4, 12), LevelInfo(2, 2, "pooled", "vector", None, (12,)))


def test_auto_is_what_the_pair_needs() -> None:
    maps = levels((8, 16, 16), (16,))
    group = PathwayGroup(connections="all", transform_options={"mid": 4, "depth": 2})
    assert group.transform == "auto"
    found = [(i.id, i.transform, i.transform_options) for i in resolve_pathways([group], maps, TOKENS)]
    transformer, convolutions = ("transformer", {"depth": 2}), ("conv2", {"mid": 4})
    assert found == [("1-1", *transformer), ("1-2", *convolutions), ("2-1", *transformer), ("2-2", *convolutions)]
    assert {info.transform for info in resolve_pathways([PathwayGroup()], maps, maps)} == {"conv2"}
    assert resolve_pathways([PathwayGroup()], maps, maps) == resolve_pathways(
        [PathwayGroup(transform="conv2")], maps, maps
    )


def test_auto_knows_the_options_of_both_blocks() -> None:
    group = PathwayGroup(transform_options={"mit": 4})
    message = (
        r"transform auto has no option 'mit' \(did you mean 'mid'\?\); its options, for conv2 and transformer: mid,"
    )
    with pytest.raises(RecipeError, match=message):
        resolve_pathways([group], TOKENS, TOKENS)


@pytest.mark.parametrize(("width", "out_width"), [(12, 20), (20, 12)])
def test_an_orthogonal_block_stays_orthogonal(width: int, out_width: int) -> None:
    torch.manual_seed(0)
    block = make_transform("orthogonal", tokens(1, 4, width), level(out_width))
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1)
    given, target = feature(tokens(1, 4, width), 4), feature(level(out_width), 4, seed=1)
    before = block.layer.weight.detach().clone()  # type: ignore[union-attr,operator]
    for _ in range(5):
        F.smooth_l1_loss(block(given), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    weight = block.layer.weight.detach()  # type: ignore[union-attr,operator]
    assert (weight - before).abs().max() > 0.01
    gram = weight @ weight.T if out_width < width else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(block(given), given[:, 1:].mean(1) @ weight.T, rtol=1e-4, atol=1e-5)
