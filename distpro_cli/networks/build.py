"""From a recipe's network to a tapped one: our CIFAR families, timm's models, or the user's own file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

import distpro_cli.networks.cifar  # noqa: F401 - registers its families
from distpro_cli.errors import DistproError, nearest
from distpro_cli.files import expand_path
from distpro_cli.networks.dry_run import first_line
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.registry import find_network, network_names
from distpro_cli.networks.user_file import call_factory, is_user_file, load_factory
from distpro_cli.networks.weights import load_weights
from distpro_cli.recipe import schema
from distpro_cli.tasks.classification.data import known_num_classes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRETRAINED = "pretrained"
# What other keys of the recipe decide, or what would load a file past our own reader.
_RESERVED = {
    "num_classes": "data.num_classes",
    "pretrained": "weights",
    "checkpoint_path": "weights",
    "pretrained_cfg": "weights",
    "pretrained_cfg_overlay": "weights",
    "features_only": "levels",
}


def build_network(
    spec: schema.Network, data: schema.Data, *, logits: bool = False, pretrained_ok: bool = True
) -> TappedNetwork:
    """Builds a network with its weights and taps its levels; on the CPU, float32, in train mode.

    Random weights are drawn from torch's global generator, which the caller seeds.

    Args:
        spec: Name, options, weights, levels, feature, mean and std.
        data: Image size, number of classes, and the mean and std of networks that bring none.
        logits: Whether the default levels end with the logits.
        pretrained_ok: False: no weights are downloaded or read, the network keeps random ones.

    Raises:
        DistproError: a name, option, level or file is wrong, or pretrained weights cannot be fetched.
    """
    options = _checked_options(spec)
    pretrained = spec.weights == PRETRAINED
    if is_user_file(spec.name):
        model = call_factory(load_factory(spec.name), spec.name, known_num_classes(data), options)
    elif builder := find_network(spec.name):
        model = call_factory(builder, spec.name, known_num_classes(data), options)
    else:
        model = _build_timm(spec, options, data, pretrained=pretrained and pretrained_ok)
        pretrained = False
    if pretrained:
        raise DistproError(
            f"network {spec.name}: weights: pretrained is for timm's models; give a file, or train it "
            "(teacher.train, distpro train)"
        )
    mean, std = normalization(spec, data, model)
    network = TappedNetwork(
        model,
        levels=spec.levels,
        feature=spec.feature,
        logits=logits,
        mean=mean,
        std=std,
        image_size=data.image_size,
    )
    if network.num_classes != known_num_classes(data):
        raise DistproError(
            f"network {spec.name}: it returns logits of {network.num_classes} classes, data.num_classes is "
            f"{known_num_classes(data)}; let its constructor take num_classes, or set data.num_classes"
        )
    if spec.weights not in (None, PRETRAINED) and pretrained_ok:
        load_weights(model, expand_path(str(spec.weights)))
    return network


def normalization(
    spec: schema.Network, data: schema.Data, model: nn.Module
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std per channel: the recipe's, else the pretrained weights', the data's, ImageNet's.

    Raises:
        DistproError: not three numbers each, or a std that is not above 0.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    config = config if spec.weights == PRETRAINED and isinstance(config, dict) else {}
    digits = data.name == "digits"
    mean = spec.mean or config.get("mean") or data.mean or ((0.5,) * 3 if digits else IMAGENET_MEAN)
    std = spec.std or config.get("std") or data.std or ((0.5,) * 3 if digits else IMAGENET_STD)
    for key, values in (("mean", mean), ("std", std)):
        wrong = len(values) != 3 or not all(math.isfinite(value) for value in values)
        if wrong or (key == "std" and min(values) <= 0):
            raise DistproError(
                f"network {spec.name}: {key} is three numbers, one a channel"
                f"{', above 0' if key == 'std' else ''}; found {list(values)}"
            )
    return tuple(map(float, mean)), tuple(map(float, std))


def _checked_options(spec: schema.Network) -> dict[str, Any]:
    for key in spec.options:
        if key in _RESERVED:
            raise DistproError(f"network {spec.name}: option {key} is not set here; use {_RESERVED[key]}")
    return dict(spec.options)


def _build_timm(spec: schema.Network, options: dict[str, Any], data: schema.Data, *, pretrained: bool) -> nn.Module:
    if not timm.is_model(spec.name):
        raise DistproError(_unknown_name(spec.name))
    given = {"num_classes": known_num_classes(data), **options}
    try:
        given |= _size_option(spec.name, options, data.image_size)
        model: nn.Module = timm.create_model(spec.name, pretrained=pretrained, **given)
    except Exception as error:
        raise DistproError(_timm_failure(spec.name, options, given, error, pretrained)) from error
    return model


def _timm_failure(name: str, options: dict[str, Any], given: dict[str, Any], error: Exception, pretrained: bool) -> str:
    """Says which of the two failed: building the network, or fetching its weights."""
    if not pretrained:
        return _build_failure(name, options, error)
    try:
        model = timm.create_model(name, pretrained=False, **given)
    except Exception as earlier:
        return _build_failure(name, options, earlier)
    if not any(model.pretrained_cfg.get(key) for key in ("hf_hub_id", "url", "file")):
        return f"network {name}: timm has no pretrained weights for it; set weights to a file, or train it"
    return (
        f"network {name}: its pretrained weights could not be fetched ({first_line(error)}); check the "
        "connection to the Hugging Face hub, or set weights to a file"
    )


def _size_option(name: str, options: dict[str, Any], image_size: int) -> dict[str, int]:
    """Transformers of a fixed image size are built for the recipe's."""
    config = timm.get_pretrained_cfg(name)
    fixed = bool(getattr(config, "fixed_input_size", False))
    if not fixed or "img_size" in options or config.input_size[-1] == image_size:
        return {}
    return {"img_size": image_size}


def _build_failure(name: str, options: dict[str, Any], error: Exception) -> str:
    text = first_line(error)
    if "unexpected keyword argument" in text:
        wrong = text.rsplit("unexpected keyword argument", 1)[1].strip(" '\".")
        return f"network {name}: it takes no option {wrong}; its options were {', '.join(options) or 'none'}"
    if "Invalid pretrained tag" in text:
        base, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
        return f"network {name}: timm knows no weights '{tag}' for {base}; there are {', '.join(tags) or 'none'}"
    return f"network {name} cannot be built with the options {options or 'given'}: {text}"


def _unknown_name(name: str) -> str:
    known: Sequence[str] = [*network_names(), *timm.list_models()]
    return (
        f"network '{name}' is not known{nearest(name.lower().replace('-', '_'), known)}; give a timm model, "
        f"one of {', '.join(network_names())}, or your own as path/to/file.py:Name"
    )
