"""Transform blocks: small trainable modules that carry a student feature into the teacher's space.

| name | block | options |
| --- | --- | --- |
| conv1 | 1×1 convolution | |
| conv2 | 1×1 and 3×3 convolution | mid |
| conv3 | 1×1, 3×3, 1×1 bottleneck | mid |
| attention | conv2 whose inner map is gated by channel and by position | mid, reduction |
| gated | the released code's: three 3×3 convolutions, a gate x · conv1×1(x) after the first | mid |
| linear | one linear map for every position, token or vector | |
| orthogonal | linear without bias, its weight kept orthogonal (VkD) | |
| transformer | self-attention, linear blocks, a linear map | depth, heads, dropout, expansion, checkpoint |
| review | ReviewKD's: levels fused from deep to shallow in a block that pathways share, then a 3×3 convolution | mid |
| resize | the teacher's resolution, the student's channels: for distances that do not compare channels | |
| identity | nothing; shapes must agree | |

`auto` is none of them: it stands for `transformer` where a side has tokens and for `conv2` elsewhere.

A new one is a subclass of `Transform` (or any `nn.Module` built as `Block(student, teacher, **options)` whose
output has the teacher feature's shape) under `@register_transform("name")`, here or in a file of the user's,
which a recipe names as `path/to/file.py:Class`.
"""

# Importing a module registers its blocks.
from distpro_cli.pathways.transforms import (  # noqa: F401
    attention,
    convolutions,
    gated,
    linear,
    orthogonal,
    resize,
    review,
    transformer,
)
from distpro_cli.pathways.transforms.base import TRANSFORMS, Transform, make_transform, register_transform

__all__ = ["TRANSFORMS", "Transform", "make_transform", "register_transform"]
