"""What every transform block shares: the way from the student's layout to the teacher's.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from distpro_cli.pathways.layouts import from_map, layouts_of_pair, to_map
from distpro_cli.pathways.resize import Size, grow, shrink
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import Registry, check_options

TRANSFORMS: Registry[Callable[..., nn.Module]] = Registry("transform")
register_transform = TRANSFORMS.register


def make_transform(
    name: str, student: LevelInfo, teacher: LevelInfo, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Builds a new transform block; its weights are drawn from torch's global random state.

    Raises:
        DistproError: unknown name or option, or a pair of levels that the block cannot bring together.
    """
    entry = TRANSFORMS.find(name)
    check_options("transform", name, entry, options or {})
    return entry(student, teacher, **(options or {}))


class SharedBlock(nn.Module):
    """Base of what several pathways have in common: it stands between the student and their own blocks.

    Args:
        levels: The student levels that the pathways start from, shallow to deep.

    Attributes:
        outputs: What the pathways' own blocks are given in place of the student's level, by its number.
    """

    outputs: Mapping[int, LevelInfo]

    def __init__(self, levels: Sequence[LevelInfo]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def needs(self, wanted: Collection[int]) -> set[int]:
        """Returns the student levels that the outputs of the `wanted` ones are made of."""
        raise NotImplementedError

    def forward(self, features: Mapping[int, Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Makes the outputs of the `wanted` levels, [B, *outputs[level].shape], and nothing that only others need.

        Args:
            features: The student's, by level number; at least those that `needs` names.
            wanted: Numbers of levels.
        """
        raise NotImplementedError


def smaller_size(map_bchw: Tensor, size: Size) -> Size:
    """Returns the smaller height and width of a map's [B, C, H, W] and `size`."""
    return (min(map_bchw.shape[2], size[0]), min(map_bchw.shape[3], size[1]))


class Transform(nn.Module):
    """Base of the blocks that see every feature as a map; a subclass fills in `convert`.

    The block runs at the smaller of the two resolutions: a larger student map is average-pooled before it, a
    smaller one is upsampled (nearest) after it, so that no convolution runs on cells that hold nothing new.
    Vectors are 1×1 maps. Tokens lie on their grid: the student's prefix tokens are left out, the
    teacher's are met by the mean of the converted map.

    Attributes:
        shared: What pathways with this transform and equal options have in common, before their own blocks.
        in_channels: Channels of the student's feature.
        out_channels: Channels of the teacher's feature.
        size: Height and width at which `convert` runs, for maps of the levels' sizes.
    """

    shared: ClassVar[type[SharedBlock] | None] = None

    def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.student_layout, self.teacher_layout = layouts_of_pair(student, teacher)
        self.in_channels = self.student_layout.channels
        self.out_channels = self.teacher_layout.channels
        self.size = (
            min(self.student_layout.size[0], self.teacher_layout.size[0]),
            min(self.student_layout.size[1], self.teacher_layout.size[1]),
        )

    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Carries a student feature [B, *student.shape] to [B, *teacher.shape].

        Args:
            student_feature: A map may be of another size than the level.
            size: Height and width of the teacher's map, where they are not the level's.
        """
        map_bchw = to_map(student_feature, self.student_layout)
        size = self.teacher_layout.size if size is None else size
        map_bchw = grow(self.convert(shrink(map_bchw, smaller_size(map_bchw, size))), size)
        return from_map(map_bchw, self.teacher, self.teacher_layout)

    def convert(self, map_bchw: Tensor) -> Tensor:
        """Converts a map [B, in_channels, *size] to [B, out_channels, *size]."""
        raise NotImplementedError
