"""A task that builds networks and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.classification import known_num_classes
from distpro_cli.tasks.task import Batch, Task, TaskData


class Stub(Task):
    """Asks for `num_classes` outputs where there are as many; `any_output` asks for nothing."""

    metric = Metric("score", "score")

    def __init__(self, *, any_output: bool = False) -> None:
        self.any_output = any_output

    def network_options(self, spec: Data) -> dict[str, Any]:
        return {} if self.any_output else {"num_classes": known_num_classes(spec)}

    def check_output(self, name: str, output: Any, spec: Data) -> None:
        if not self.any_output and output.shape[1] != known_num_classes(spec):
            raise DistproError(f"network {name}: {output.shape[1]} outputs for {known_num_classes(spec)}")

    def data(self, spec: Data, seed: int, outer_share: float | None = None) -> TaskData:
        raise NotImplementedError

    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def evaluate(self, forward: Callable[[Tensor], Any], batches: Iterable[Batch]) -> dict[str, float]:
        raise NotImplementedError


TASK = Stub()
