"""From a recipe's network to a tapped one: our CIFAR families, timm's models, or the user's own file."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from distpro_cli.errors import DistproError, first_line, nearest
from distpro_cli.files import expand_path
from distpro_cli.image_size import Size, height_width, nearest_multiples
from distpro_cli.networks import NETWORKS
from distpro_cli.networks.channels import COLOUR, for_channels, image_channels
from distpro_cli.networks.compiled import without_compiling
from distpro_cli.networks.dry_run import likely_sizes
from distpro_cli.networks.heads import pretrained_new_head
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.weights import load_weights, weights_metadata
from distpro_cli.recipe import schema
from distpro_cli.registry import is_user_file
from distpro_cli.tasks.task import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRETRAINED = "pretrained"
ON_HUB = ("hf-hub:", "hf_hub:")  # timm fetches their configuration, with or without weights
_COUNTS = {1: "one number, as the network takes grey images", 3: "three numbers, one per channel"}
# What other keys of the recipe decide, or what would load a file past our own reader.
_RESERVED = {
    "pretrained": "weights",
    "checkpoint_path": "weights",
    "pretrained_cfg": "weights",
    "pretrained_cfg_overlay": "weights",
    "features_only": "levels",
}


def build_network(
    spec: schema.Network, data: schema.Data, task: Task, *, logits: bool = False, pretrained_ok: bool = True
) -> TappedNetwork:
    """Builds a network with its weights and taps its levels; on the CPU, float32, in train mode.

    Random weights are drawn from torch's global generator, which the caller seeds.

    Args:
        spec: Name, options, weights, levels, feature, mean and std.
        data: Image size, what the task reads, and the mean and std of networks that bring none.
        task: Gives options to the network's constructor and checks what the network returns.
        logits: Whether the default levels end with the logits.
        pretrained_ok: False: no weights are downloaded or read, the network keeps random ones.

    Returns:
        The network; its `new_head` says whether its weights lack a head that fits.

    Raises:
        DistproError: a name, option, level or file is wrong, the task cannot use what the network returns, or
            pretrained weights cannot be fetched.
    """
    task_options = task.network_options(data)
    _check_reserved(spec, task_options)
    factory = NETWORKS.find(spec.name) if is_user_file(spec.name) else NETWORKS.get(spec.name)
    if factory is None:
        model = _build_timm(spec, data, task_options, pretrained=spec.weights == PRETRAINED and pretrained_ok)
    else:
        model = _build_own(factory, spec, task_options)
        if spec.weights == PRETRAINED:
            _load_pretrained(spec, model, pretrained_ok=pretrained_ok)
    file = expand_path(str(spec.weights)) if spec.weights not in (None, PRETRAINED) else None
    channels = image_channels(spec.name, model, data.height_width)
    mean, std = normalization(spec, data, model, {} if file is None else weights_metadata(file), channels)
    network = TappedNetwork(
        model,
        levels=spec.levels,
        feature=spec.feature,
        logits=logits,
        tokens=spec.tokens,
        mean=mean,
        std=std,
        image_size=_seen_size(model, data.height_width),
        output=spec.output,
        check_output=(lambda output: task.check_output(spec.name, output, data)) if spec.head else None,
        head=spec.head,
    )
    new_head = None
    if pretrained_ok and spec.weights == PRETRAINED:
        new_head = pretrained_new_head(model)
    elif pretrained_ok and file is not None:
        new_head = load_weights(model, file, new_head=True, head=spec.head)
    network.new_head = new_head if spec.head else None
    return network


def _seen_size(model: nn.Module, size: Size) -> Size:
    """Returns the size of the images that the network sees: multiples of its `size_multiple`, where it states one."""
    multiple = int(getattr(model, "size_multiple", 1))
    return (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)


def _load_pretrained(spec: schema.Network, model: nn.Module, *, pretrained_ok: bool) -> None:
    """Fills in the published weights of a network that is not timm's, where it has any."""
    load = getattr(model, "load_pretrained", None)
    if not callable(load):
        raise DistproError(
            f"network {spec.name}: weights: pretrained is for timm's models; give a file, or train it "
            "(teacher.train, distpro train)"
        )
    if pretrained_ok:
        load()


def normalization(
    spec: schema.Network,
    data: schema.Data,
    model: nn.Module,
    metadata: Mapping[str, str] | None = None,
    channels: int = COLOUR,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std per channel: the recipe's, else its weights', the data's, ImageNet's.

    Weights are trained for what their file says, else for what timm's configuration of the network says. Of files that
    distpro wrote before it put it into them, it is known that the network's configuration did not count. One number
    counts for every channel; the average of three for the one of a network of grey images.

    Args:
        spec: The network's section.
        data: The data's.
        model: Where timm's configuration lies.
        metadata: Of the file of weights.
        channels: Of the images that the network takes: 3 or 1.

    Raises:
        DistproError: not one number per channel, or a std that is not above 0.
    """
    config: Mapping[str, Any] = {}
    metadata = metadata or {}
    if "mean" in metadata and "std" in metadata:
        config = {key: _numbers(metadata[key]) for key in ("mean", "std")}
    elif spec.weights is not None and "network" not in metadata:
        config = getattr(model, "pretrained_cfg", None) or {}
    digits = data.name == "digits"
    mean = spec.mean or config.get("mean") or data.mean or ((0.5,) * 3 if digits else IMAGENET_MEAN)
    std = spec.std or config.get("std") or data.std or ((0.5,) * 3 if digits else IMAGENET_STD)
    for key, values in (("mean", mean), ("std", std)):
        allowed = (1, channels) if values is getattr(spec, key) else (1, COLOUR)
        wrong = len(values) not in allowed or not all(math.isfinite(value) for value in values)
        if wrong or (key == "std" and min(values) <= 0):
            raise DistproError(
                f"network {spec.name}: {key} is {_COUNTS[max(allowed)]}{', above 0' if key == 'std' else ''}; "
                f"found {list(values)}"
            )
    return for_channels(mean, channels), for_channels(std, channels)


def _numbers(text: str) -> list[float] | None:
    """Returns the numbers that a file's metadata hold as JSON; None if they are none."""
    try:
        values = json.loads(text)
        return [float(value) for value in values] if isinstance(values, list) else None
    except (ValueError, TypeError):
        return None


def _check_reserved(spec: schema.Network, task_options: Mapping[str, Any]) -> None:
    in_data = schema.Data.model_fields
    of_task = {key: f"data.{key}" if key in in_data else "what the task gives" for key in task_options}
    for key in spec.options:
        if remedy := (_RESERVED | of_task).get(key):
            without = ", or head: false for a teacher whose classifier does not count" if key in of_task else ""
            raise DistproError(f"network {spec.name}: option {key} is not set here; use {remedy}{without}")


def _build_own(factory: Callable[..., Any], spec: schema.Network, task_options: Mapping[str, Any]) -> nn.Module:
    """Calls a registered family, or a class or function of the user's; of the task's options it gets those it takes."""
    accepted = _accepted(factory)
    for option in spec.options:
        if accepted is not None and option not in accepted:
            allowed = [name for name in accepted if name not in task_options]
            raise DistproError(
                f"network {spec.name}: it takes no option '{option}'{nearest(option, allowed)}; "
                f"there are {', '.join(allowed) or 'none'}"
            )
    given = {key: value for key, value in task_options.items() if accepted is None or key in accepted} | spec.options
    try:
        model = factory(**given)
    except DistproError:
        raise
    except Exception as error:
        raise DistproError(
            f"network {spec.name} cannot be built with {given}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise DistproError(f"network {spec.name}: it returns a {type(model).__name__}, a torch.nn.Module is needed")
    return without_compiling(model)


def _accepted(factory: Callable[..., Any]) -> list[str] | None:
    """Returns the options that a factory takes; None if it takes any, or if that cannot be known."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    filled_in = factory.keywords if isinstance(factory, partial) else ()
    named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return [name for name in named if name not in filled_in]


def _build_timm(
    spec: schema.Network, data: schema.Data, task_options: Mapping[str, Any], *, pretrained: bool
) -> nn.Module:
    on_hub = spec.name.startswith(ON_HUB)
    if not on_hub and not timm.is_model(spec.name):
        families = NETWORKS.names()
        near = nearest(spec.name.lower().replace("-", "_"), [*families, *timm.list_models()])
        raise DistproError(
            f"network '{spec.name}' is not known{near}; give a timm model, "
            f"one of {', '.join(families)}, or your own as path/to/file.py:Name"
        )
    given = {**spec.options, **task_options}
    try:
        config = None if on_hub else timm.get_pretrained_cfg(spec.name)
        # Transformers of a fixed image size are built for the recipe's.
        if config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != data.height_width:
            size = data.image_size
            given.setdefault("img_size", size if isinstance(size, int) else data.height_width)
        model: nn.Module = timm.create_model(spec.name, pretrained=pretrained, **given)
    except Exception as error:
        if on_hub:
            raise DistproError(
                f"network {spec.name}: it cannot be had from the Hugging Face hub ({first_line(error)}); check the "
                "connection and the name, or give timm's own name and set weights to a file"
            ) from error
        raise DistproError(_timm_failure(spec.name, given, error, pretrained)) from error
    check_patches(spec.name, model, data.height_width)
    return model


def check_patches(name: str, model: nn.Module, image_size: Size) -> None:
    """Raises DistproError where timm's patches would leave rows or columns of the images out, unless weights ask so."""
    patches = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    own_size = tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:])
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad or own_size == image_size:
        return
    height, width = patches.patch_size
    if near := nearest_multiples(image_size, (height, width)):
        raise DistproError(
            f"network {name}: its patches of {height}×{width} pixels do not divide images of "
            f"{image_size[0]}×{image_size[1]}; set data.image_size to the nearest sizes that they do, {near}, or "
            "another patch_size in the network's options"
        )


def _timm_failure(name: str, options: dict[str, Any], error: Exception, pretrained: bool) -> str:
    """Says which of the two failed: building the network, or fetching its weights."""
    if pretrained:
        try:
            model = timm.create_model(name, pretrained=False, **options)
        except Exception as earlier:
            error = earlier
        else:
            if not any(model.pretrained_cfg.get(key) for key in ("hf_hub_id", "url", "file")):
                return f"network {name}: timm has no pretrained weights for it; set weights to a file, or train it"
            return (
                f"network {name}: its pretrained weights could not be fetched ({first_line(error)}); check the "
                "connection to the Hugging Face hub, or set weights to a file"
            )
    text = first_line(error)
    if "unexpected keyword argument" in text:
        wrong = text.rsplit("unexpected keyword argument", 1)[1].strip(" '\".")
        return f"network {name}: it takes no option {wrong}; its options were {', '.join(options) or 'none'}"
    if "Invalid pretrained tag" in text:
        base, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
        return f"network {name}: timm knows no weights '{tag}' for {base}; there are {', '.join(tags) or 'none'}"
    text = text or type(error).__name__
    return f"network {name} cannot be built with the options {options}: {text}{_near(name, options)}"


def _near(name: str, options: dict[str, Any]) -> str:
    """Returns what is known of sizes that fit, as the end of a message, where a size is among the options."""
    others = {key: value for key, value in options.items() if key != "img_size"}
    if others == options:
        return ""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **others)
    except Exception:  # something else is wrong with the options
        return ""
    return likely_sizes(model, height_width(options["img_size"]))
