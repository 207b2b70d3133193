"""Detection does what every task does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distpro_cli.networks import NETWORKS
from tests.tasks.detection.fake import SMALL
from tests.tasks.suite import TaskSuite


class TestDetection(TaskSuite):
    task = "detection"

    @pytest.fixture(autouse=True)
    def _on_squares(self, squares: Path) -> None:
        type(self).data = {
            "root": str(squares),
            "num_classes": 2,
            "image_size": 64,
            "workers": 0,
            "augment": {"resize": [1.0, 1.0]},
        }

    def build(self, options: dict[str, Any]) -> nn.Module:
        torch.manual_seed(0)
        factory = NETWORKS.get("faster_rcnn")
        assert factory is not None
        return factory(**SMALL, **options)
