"""The K pathways of a pair as one module: features of both networks in, K losses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from distpro_cli.pathways.distances import make_distance
from distpro_cli.pathways.transforms import make_transform
from distpro_cli.process.pathway import PathwayInfo


class Pathways(nn.Module):
    """K transform blocks, each pathway's own, and K distances.

    Args:
        infos: The pathways in the order of a process's columns. The blocks' weights are drawn from torch's
            global random state.

    Attributes:
        infos: The pathways.
        transforms: Their blocks; a module may stand in several places once blocks share state.
        distances: Their distances.

    Raises:
        DistproError: an unknown name or option, or levels that a block cannot bring together.
    """

    def __init__(self, infos: Sequence[PathwayInfo]) -> None:
        super().__init__()
        self.infos = tuple(infos)
        self.transforms = nn.ModuleList(
            make_transform(info.transform, info.student, info.teacher, info.transform_options) for info in self.infos
        )
        self.distances = [make_distance(info.distance, info.distance_options) for info in self.infos]

    def distance(self, k: int, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """Returns D_k, a float32 scalar.

        Args:
            k: Number of the pathway, from 0.
            student_feature: [B, *infos[k].student.shape].
            teacher_feature: [B, *infos[k].teacher.shape].
        """
        measured: Tensor = self.distances[k](self.transforms[k](student_feature), teacher_feature)
        return measured

    def forward(
        self,
        student_features: Mapping[int, Tensor],
        teacher_features: Mapping[int, Tensor],
        active: Sequence[int],
    ) -> dict[int, Tensor]:
        """Returns D_k of the `active` pathways by k; of the others neither block nor distance runs.

        Args:
            student_features: By level number; those the active pathways need.
            teacher_features: Likewise.
            active: Numbers of pathways, from 0.
        """
        return {
            k: self.distance(
                k,
                student_features[self.infos[k].student.number],
                teacher_features[self.infos[k].teacher.number],
            )
            for k in active
        }
