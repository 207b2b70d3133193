"""Networks as they were before `torch.compile`, which hides the modules that levels are tapped at."""

from __future__ import annotations

from torch import nn


def without_compiling(model: nn.Module) -> nn.Module:
    """Returns a network with what `torch.compile` wrapped around it, or around parts of it, taken off."""
    model = _inside(model)
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:  # of nn.Module.compile()
            module._compiled_call_impl = None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (inner := _inside(child)) is not child:
                setattr(parent, name, inner)
    return model


def _inside(module: nn.Module) -> nn.Module:
    if type(module).__module__.startswith("torch._dynamo"):
        inner = getattr(module, "_orig_mod", None)
        return _inside(inner) if isinstance(inner, nn.Module) else module
    return module
