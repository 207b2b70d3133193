"""The head of a network: its parts, and whether weights bring one of the right width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from distpro_cli.networks.dry_run import stated_classifiers


@dataclass(frozen=True)
class NewHead:
    """A head that keeps random weights, because the weights bring none of its width.

    Attributes:
        found: Outputs of the weights' own head; None where they have none.
        needed: Outputs of the network's.
    """

    found: int | None
    needed: int

    def __str__(self) -> str:
        theirs = "they bring none" if self.found is None else f"theirs has {self.found}"
        return f"a new head of {self.needed} outputs ({theirs})"


def head_modules(model: nn.Module) -> list[nn.Module]:
    """Returns what the network calls its classifier, else its last linear layer, else its last convolution."""
    if stated := stated_classifiers(model):
        return stated
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    linears: list[nn.Module] = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return linears[-1:] or layers[-1:]


def head_names(model: nn.Module) -> set[str]:
    """Returns the names of the head's tensors."""
    heads = head_modules(model)
    return {
        f"{name}.{inner}"
        for name, module in model.named_modules()
        if any(module is head for head in heads)
        for inner, _ in module.named_parameters()
    }


def pretrained_new_head(model: nn.Module) -> NewHead | None:
    """Says whether a network, of timm or of one's own, has a random head when it has loaded its pretrained weights."""
    if callable(own := getattr(model, "pretrained_new_head", None)):
        found: NewHead | None = own()
        return found
    config = getattr(model, "pretrained_cfg", None) or {}
    needed, found = getattr(model, "num_classes", None), config.get("num_classes")
    if needed is None or found is None or needed == found or not head_names(model):
        return None
    return NewHead(found or None, needed)
