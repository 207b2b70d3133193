"""A matching of a user's own: level numbers alone count, and columns that the pair does not ask for are left out."""

from __future__ import annotations

from collections.abc import Sequence

from distpro_cli.errors import ProcessError
from distpro_cli.process.matching import Matching, register_matching
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process


@register_matching("loose")
class Loose(Matching):
    """Takes for every pathway of the pair the column of the same connection."""

    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> list[int]:
        """Returns the first column of each connection."""
        connections = [info.connection for info in process.pathways]
        if missing := [info.id for info in pathways if info.connection not in connections]:
            raise ProcessError(f"the process has no pathway {', '.join(missing)}")
        return [connections.index(info.connection) for info in pathways]


class Careless(Matching):
    """Forgets the last pathway."""

    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> list[int]:
        """Returns one column too few."""
        return list(range(len(pathways) - 1))
