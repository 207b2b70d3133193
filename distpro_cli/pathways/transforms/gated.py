"""The transform block of the paper's released code.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from torch import Tensor, nn

from distpro_cli.pathways.layouts import from_map, to_map
from distpro_cli.pathways.resize import Size, grow, shrink
from distpro_cli.pathways.transforms.base import Transform, register_transform, smaller_size
from distpro_cli.pathways.transforms.convolutions import conv_bn
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import positive_integer

MOST_MID = 512  # channels between the convolutions, unless told


@register_transform("gated")
class Gated(Transform):
    """Three 3×3 convolutions, each with BatchNorm, two ReLUs between them, the first followed by a gate x · conv1×1(x).

    The gate multiplies every position by one number, a 1×1 convolution to one channel without bias and without
    sigmoid. Structure and initialisation (Kaiming normal, fan out; the gate PyTorch's own) are those of
    https://github.com/bytedance/DistPro, distiller.py, `build_feature_connector_complex`. As there, a smaller student
    map is upsampled (nearest) before the last convolution; a larger one is average-pooled before the first, as in
    every block here, where the released code convolves it whole and picks cells.

    Args:
        student: Level the feature comes from.
        teacher: Level it is carried to.
        mid: Channels between the convolutions; default: the smaller of both sides, at most 512.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, mid: int | None = None) -> None:
        super().__init__(student, teacher)
        smaller = min(MOST_MID, self.in_channels, self.out_channels)
        mid = smaller if mid is None else positive_integer("mid", mid)
        self.first = nn.Sequential(*_conv_bn(self.in_channels, mid, self.size), nn.ReLU(inplace=True))
        self.gate = nn.Conv2d(mid, 1, 1, bias=False)
        self.second = nn.Sequential(*_conv_bn(mid, mid, self.size), nn.ReLU(inplace=True))
        self.last = nn.Sequential(*_conv_bn(mid, self.out_channels, self.teacher_layout.size))

    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Carries a student feature [B, *student.shape] to [B, *teacher.shape]; for `size` see `Transform`."""
        map_bchw = to_map(student_feature, self.student_layout)
        size = self.teacher_layout.size if size is None else size
        inner_bchw = self.first(shrink(map_bchw, smaller_size(map_bchw, size)))
        inner_bchw = self.second(inner_bchw * self.gate(inner_bchw))
        carried_bchw = self.last(grow(inner_bchw, size))
        return from_map(carried_bchw, self.teacher, self.teacher_layout)


def _conv_bn(in_channels: int, out_channels: int, size: Size) -> list[nn.Module]:
    layers = conv_bn(in_channels, out_channels, 3, size)
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return layers
