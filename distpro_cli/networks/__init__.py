"""Teacher and student: what builds them, and the levels that are tapped.

Of the networks that are not timm's, a new family is one file and one decorator, `@register_network("name")`, on a
function that takes `num_classes` (or what else the task gives) and the recipe's options and returns an `nn.Module`.
The module may carry `default_levels` (names of modules) or timm's `feature_info` (a list of `module`, `num_chs`,
`reduction`), from which the default levels are taken, and `get_classifier()`. One that brings published weights has
`load_pretrained()`, which fills them in and returns the `NewHead` that they lack, and `pretrained_new_head()`, which
says so before. Names are compared in lower case with `-` read as `_`: WRN-16-2 is wrn_16_2.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from distpro_cli.registry import Registry

NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network",
    package=("distpro_cli.networks.cifar", "distpro_cli.networks.detectors"),
    canonical=lambda name: name.strip().lower().replace("-", "_"),
)
register_network = NETWORKS.register
