"""A task of one's own: how much ink a digit has. A recipe names it as `task: regression.py:Ink`."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.tasks.images.data import ImageData, open_source
from distpro_cli.tasks.task import Task


def open_with_ink(spec, split):
    """Opens a split of the digits; the target of an image is its share of ink, float32 [1] in [0, 1]."""
    source = open_source(spec, split)
    shares = [source.load(index).mean() / 255 for index in range(len(source))]
    return replace(source, targets=np.array(shares, dtype=np.float32)[:, None])


class Ink(Task):
    """Predicts the share of ink; outputs and targets are [B, 1]."""

    metric = Metric("ink_error", "ink error", higher_is_better=False)

    def data(self, spec, seed, outer_share=None):
        return ImageData(spec, seed, outer_share, open_with_ink)

    def network_options(self, spec):
        return {"num_classes": 1}

    def check_output(self, name, output, spec):
        if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[1] != 1:
            raise DistproError(f"network {name}: ink needs one number per image, a tensor [batch, 1]")

    def losses(self, output, targets):
        return {"squared_error": functional.mse_loss(output.float(), targets)}

    def scores(self, output, targets):
        return {"ink_error": (output.float() - targets).abs().mean()}

    def evaluate(self, forward, batches):
        errors = [(forward(batch.images_bchw) - batch.targets).abs() for batch in batches]
        return {"ink_error": torch.cat(errors).mean().item()}
