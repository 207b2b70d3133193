"""The K pathways of a pair as one module: features of both networks in, K losses out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from distpro_cli.pathways.distances import make_distance
from distpro_cli.pathways.transforms import make_transform
from distpro_cli.pathways.transforms.base import TRANSFORMS, SharedBlock
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.tasks.task import Filled

Start = tuple[int | None, int]  # where a pathway's own block begins: number of a shared block or None, student level


class Pathways(nn.Module):
    """K transform blocks, each pathway's own, the blocks that some of them share, and K distances.

    Args:
        infos: The pathways in the order of a process's columns. The blocks' weights are drawn from torch's
            global random state.

    Attributes:
        infos: The pathways.
        shared: Blocks between the student and the own blocks of pathways with one transform and equal options.
        start_of: By pathway, what its own block is given: the student's feature, or an output of a shared block.
        transforms: The pathways' own blocks.
        distances: Their distances.

    Raises:
        DistproError: an unknown name or option, or levels that a block cannot bring together.
    """

    def __init__(self, infos: Sequence[PathwayInfo]) -> None:
        super().__init__()
        self.infos = tuple(infos)
        self.start_of: list[Start] = [(None, info.student.number) for info in self.infos]
        self.shared = nn.ModuleList()
        for members in _sharing(self.infos):
            for k in members:
                self.start_of[k] = (len(self.shared), self.infos[k].student.number)
            self.shared.append(_shared_block([self.infos[k] for k in members]))
        self.transforms = nn.ModuleList(
            make_transform(info.transform, self.start_level(k), info.teacher, info.transform_options)
            for k, info in enumerate(self.infos)
        )
        self.distances = [make_distance(info.distance, info.distance_options) for info in self.infos]
        for distance, info in zip(self.distances, self.infos, strict=True):
            distance.fit(info.teacher)

    def teacher_levels(self, active: Collection[int]) -> set[int]:
        """Returns the teacher levels that the `active` pathways read."""
        return {self.infos[k].teacher.number for k in active}

    def student_levels(self, active: Collection[int]) -> set[int]:
        """Returns the student levels that the `active` pathways read, on their own or through a shared block."""
        needed: set[int] = set()
        for block, levels in self._levels_by_block(active).items():
            needed |= levels if block is None else self._shared(block).needs(levels)
        return needed

    def start_level(self, k: int) -> LevelInfo:
        """Returns what the own block of pathway `k` is given: the student's level, or a shared block's output."""
        block, number = self.start_of[k]
        return self.infos[k].student if block is None else self._shared(block).outputs[number]

    def starts(self, student_features: Mapping[int, Tensor], active: Collection[int]) -> dict[Start, Tensor]:
        """Returns what the own blocks of the `active` pathways are given; what only others need does not run.

        Args:
            student_features: By level number, [B, *shape]; those of `student_levels(active)`.
            active: Numbers of pathways, from 0.
        """
        found: dict[Start, Tensor] = {}
        for block, levels in self._levels_by_block(active).items():
            outputs = student_features if block is None else self._shared(block)(student_features, levels)
            found |= {(block, level): outputs[level] for level in sorted(levels)}
        return found

    def distance(self, k: int, start: Tensor, teacher_feature: Tensor, filled: Filled | None = None) -> Tensor:
        """Returns D_k, a float32 scalar.

        Args:
            k: Number of the pathway, from 0.
            start: What its own block is given; without a shared block the student's feature
                [B, *infos[k].student.shape].
            teacher_feature: [B, *infos[k].teacher.shape]. Maps of a batch may be of another size than those of the
                infos.
            filled: Shares of height and width that every image fills, where images are padded; the rest of a map does
                not count.
        """
        size = tuple(teacher_feature.shape[2:])
        if teacher_feature.ndim == 4 and size != self.infos[k].teacher.shape[1:]:
            carried = self.transforms[k](start, size)
        else:
            carried = self.transforms[k](start)
        distance = self.distances[k]
        return distance(carried, teacher_feature) if filled is None else distance(carried, teacher_feature, filled)

    def forward(
        self,
        student_features: Mapping[int, Tensor],
        teacher_features: Mapping[int, Tensor],
        active: Sequence[int],
        filled: Filled | None = None,
    ) -> dict[int, Tensor]:
        """Returns D_k of the `active` pathways by k; of the others neither block nor distance runs.

        Args:
            student_features: By level number; those the active pathways need.
            teacher_features: Likewise.
            active: Numbers of pathways, from 0.
            filled: As in `distance`.
        """
        starts = self.starts(student_features, active)
        return {
            k: self.distance(k, starts[self.start_of[k]], teacher_features[self.infos[k].teacher.number], filled)
            for k in active
        }

    def _levels_by_block(self, active: Collection[int]) -> dict[int | None, set[int]]:
        levels: dict[int | None, set[int]] = {}
        for k in active:
            block, level = self.start_of[k]
            levels.setdefault(block, set()).add(level)
        return levels

    def _shared(self, number: int) -> SharedBlock:
        block = self.shared[number]
        assert isinstance(block, SharedBlock)
        return block


def _sharing(infos: Sequence[PathwayInfo]) -> list[list[int]]:
    """Returns the numbers of pathways that share a block, group by group."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, info in enumerate(infos):
        if _shared_kind(info) is not None:
            groups.setdefault((info.transform, json.dumps(info.transform_options, sort_keys=True)), []).append(k)
    return list(groups.values())


def _shared_kind(info: PathwayInfo) -> type[SharedBlock] | None:
    kind: type[SharedBlock] | None = getattr(TRANSFORMS.find(info.transform), "shared", None)
    return kind


def _shared_block(infos: Sequence[PathwayInfo]) -> SharedBlock:
    levels = {info.student.number: info.student for info in infos}
    kind = _shared_kind(infos[0])
    assert kind is not None
    return kind([levels[number] for number in sorted(levels)], **infos[0].transform_options)
