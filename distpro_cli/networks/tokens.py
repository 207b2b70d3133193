"""Where the tokens of timm's transformers lie.

Shape legend: b images, n tokens, d width of a token, h height, w width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from distpro_cli.image_size import Size
from distpro_cli.process.pathway import Grid


@dataclass(frozen=True)
class TokenOrder:
    """What brings the tokens of a level into the order of their grid.

    Attributes:
        block: Number of the block of a Hiera after which they come, unit by unit; None: they come row by row.
        prefix: Tokens before the grid that are left out.
    """

    block: int | None = None
    prefix: int = 0

    def apply(self, model: nn.Module, tokens_bnd: Tensor) -> Tensor:
        """Returns [B, N - prefix, D], row by row."""
        if self.block is not None:
            tokens_bhwd: Tensor = model.reroll(tokens_bnd, self.block)  # type: ignore[operator]
            tokens_bnd = tokens_bhwd.flatten(1, 2)
        return tokens_bnd[:, self.prefix :] if self.prefix else tokens_bnd

    def grid_of(self, model: nn.Module, tokens_bnd: Tensor) -> tuple[int, Grid] | None:
        """Returns prefix tokens and grid of tokens that come unit by unit, None of others."""
        if self.block is None:
            return None
        _, height, width, _ = model.reroll(tokens_bnd, self.block).shape  # type: ignore[operator]
        return 0, (height, width)


def rolled_block(model: nn.Module, name: str) -> int | None:
    """Returns the number of a block whose tokens `model.reroll` brings into order (Hiera); None for other modules."""
    block = re.fullmatch(r"blocks\.(\d+)", name)
    return int(block[1]) if block and isinstance(getattr(model, "reroll", None), nn.Module) else None


def stated_grid(model: nn.Module, num_tokens: int, reduction: int | None, image_size: Size) -> tuple[int, Grid | None]:
    """Returns prefix tokens and grid as timm's transformers state them; 0 and None where that is not these tokens.

    Args:
        model: States the grid of its patches, or does not.
        num_tokens: Of the level.
        reduction: Pixels per cell as timm lists them for the level.
        image_size: In pixels.
    """
    prefix = getattr(model, "num_prefix_tokens", 0)
    patches = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    grid = getattr(patches, "grid_size", None)
    stated = [grid] if isinstance(grid, tuple) and len(grid) == 2 else []
    if reduction:
        stated.append((-(-image_size[0] // reduction), -(-image_size[1] // reduction)))
    for grid in stated:
        before_grid = num_tokens - grid[0] * grid[1]
        if isinstance(prefix, int) and before_grid in (0, prefix):
            return before_grid, grid
    return 0, None
