"""A matching of a user's own: by connection alone, whatever else the process holds."""

from __future__ import annotations

from collections.abc import Sequence

from distpro_cli.errors import ProcessError
from distpro_cli.process.matching import Matching, register_matching
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process


@register_matching("loose")
class Loose(Matching):
    """Takes the first column of the same connection."""

    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> list[int]:
        by_connection = {info.connection: k for k, info in reversed(list(enumerate(process.pathways)))}
        if missing := [info.id for info in pathways if info.connection not in by_connection]:
            raise ProcessError(f"only in the pair: {', '.join(missing)}")
        return [by_connection[info.connection] for info in pathways]
