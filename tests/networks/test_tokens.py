"""The distillation token: its logits as a level, and what the network then returns."""

from __future__ import annotations

import pytest
import timm
import torch

from distpro_cli.errors import DistproError
from distpro_cli.networks.levels import TappedNetwork

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}


def tapped(name: str, **options: object) -> TappedNetwork:
    model = timm.create_model(name, **{**SMALL, **{k: v for k, v in options.items() if k != "levels"}})
    return TappedNetwork(model, levels=options.get("levels"), mean=(0.5,) * 3, std=(0.5,) * 3, image_size=16)  # type: ignore[arg-type]


def test_the_distillation_token_has_logits_of_its_own() -> None:
    network = tapped("deit_tiny_distilled_patch16_224", levels=["distillation-logits", "logits"])
    assert [(level.kind, level.shape) for level in network.levels] == [("logits", (5,))] * 2
    images = torch.rand(3, 3, 16, 16)
    model = network.model
    tokens = model.forward_features((images - 0.5) / 0.5)
    of_class, of_distillation = model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])
    mean = (of_class + of_distillation) / 2
    for training in (True, False):
        network.train(training)
        output, features = network(images, levels=[1, 2])
        torch.testing.assert_close(features[1], of_distillation)
        torch.testing.assert_close(output, of_class if training else mean)
        torch.testing.assert_close(features[2], output)
        # Where the token does not learn from the teacher, both are trained as one.
        torch.testing.assert_close(network(images)[0], mean)


def test_a_network_without_the_token() -> None:
    with pytest.raises(DistproError, match="there is no level distillation-logits, because it has no distillation tok"):
        tapped("vit_tiny_patch16_224", levels=["distillation-logits"])
