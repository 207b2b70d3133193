"""Linear and identity transform blocks.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.pathways.layouts import shape_text
from distpro_cli.pathways.resize import Size
from distpro_cli.pathways.transforms.base import Transform, register_transform
from distpro_cli.process.pathway import LevelInfo


@register_transform("linear")
class Linear(Transform):
    """One linear map with bias from the student's channels to the teacher's, the same at every position.

    Between equal numbers of tokens every token is carried on its own, prefix tokens too, and no grid is
    needed. Otherwise resolutions are brought together as in every `Transform`; of the prefix tokens those
    that both sides have are carried, further ones of the teacher are met by the mean of the converted map.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
        per_token = student.kind == teacher.kind == "tokens" and student.shape[0] == teacher.shape[0]
        if per_token:
            nn.Module.__init__(self)  # the base would ask for a grid
            self.layer = nn.Linear(student.shape[-1], teacher.shape[-1])
        else:
            super().__init__(student, teacher)
            self.layer = nn.Linear(self.in_channels, self.out_channels)
        self.per_token = per_token

    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Carries a student feature [B, *student.shape] to [B, *teacher.shape]; for `size` see `Transform`."""
        if self.per_token:
            per_token: Tensor = self.layer(student_feature)
            return per_token
        carried = super().forward(student_feature, size)
        shared = min(self.student_layout.prefix, self.teacher_layout.prefix)
        if shared == 0:
            return carried
        return torch.cat([self.layer(student_feature[:, :shared]), carried[:, shared:]], 1)

    @override
    def convert(self, map_bchw: Tensor) -> Tensor:
        converted_bhwc: Tensor = self.layer(map_bchw.permute(0, 2, 3, 1))
        return converted_bhwc.permute(0, 3, 1, 2)


@register_transform("identity")
class Identity(nn.Module):
    """Compares the features as they are; their shapes must agree."""

    def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
        super().__init__()
        if student.shape != teacher.shape:
            raise DistproError(
                f"transform identity needs equal shapes; the student's {student.name} is "
                f"{shape_text(student.shape)}, the teacher's {teacher.name} is {shape_text(teacher.shape)}: "
                "use conv1 or linear"
            )

    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Returns the student feature [B, *teacher.shape]."""
        return student_feature
