"""The orthogonal linear transform block.

The weight is [teacher's channels, student's channels].
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from distpro_cli.pathways.transforms.base import register_transform
from distpro_cli.pathways.transforms.linear import Linear
from distpro_cli.process.pathway import LevelInfo


@register_transform("orthogonal")
class Orthogonal(Linear):
    """`linear` without bias, whose weight keeps orthonormal rows or columns (VkD, Miles et al. 2024, arXiv 2403.06213).

    A projector that keeps angles cannot learn in the student's place. The weight is torch's parametrisation by the
    Cayley map. VkD goes with distance l1 (smooth: 1, normalize: true) on the pooled level.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
        super().__init__(student, teacher)
        self.layer = nn.Linear(self.layer.in_features, self.layer.out_features, bias=False)
        if not self.layer.weight.is_meta:  # where shapes alone are asked for, torch's parametrisation cannot begin
            orthogonal(self.layer, orthogonal_map="cayley")
