"""The transform block that brings resolutions together and nothing else.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from distpro_cli.pathways.transforms.base import Transform, register_transform


@register_transform("resize")
class Resize(Transform):
    """Carries a feature to the teacher's resolution, without parameters.

    The result has the student's channels, so that it goes with distances that do not compare channels, or with
    levels of equal channels.
    """

    keeps_channels: ClassVar[bool] = True

    @override
    def convert(self, map_bchw: Tensor) -> Tensor:
        return map_bchw
