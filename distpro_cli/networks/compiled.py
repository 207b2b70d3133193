"""Networks as they were before `torch.compile`, which hides the modules that levels are tapped at; and compiled again
between the taps.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

MOST_FORMS = 256  # of one piece of code: blocks of other sizes, in training or not, with gradients or not


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


def compile_between_taps(model: nn.Module) -> int:
    """Compiles, in place, the largest parts of a tapped network, or of blocks, without a tap; returns how many.

    Taps stay outside, so that a forward still stops where the last wanted level is. Copies of the network, and what it
    saves, are as without. Compilation itself happens when a part first runs.
    """
    import torch._dynamo
    import torch._functorch.config

    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # the latter in torch 2.6
    for name, least in ((limit, MOST_FORMS), (f"accumulated_{limit}", 4 * MOST_FORMS)):
        setattr(config, name, max(getattr(config, name), least))
    torch._functorch.config.donated_buffer = False  # a graph may be gone through several times
    # Torch's own code asks a feature for its gradient.
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
    return _compile_parts(model)


def _compile_parts(module: nn.Module) -> int:
    if not any(True for _ in module.children()):
        return 0  # one operation is as good as a kernel
    tapped = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    if tapped or isinstance(module, (nn.ModuleList, nn.ModuleDict)):  # the latter are not called
        return sum(_compile_parts(child) for child in module.children())
    module.compile()
    return 1


def is_compiled(module: nn.Module) -> bool:
    """Says whether a part of it is compiled."""
    return any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())


def as_written(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, what is compiled runs as it is written; nothing is imported where nothing is compiled."""
    if not is_compiled(module):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _inside(module: nn.Module) -> nn.Module:
    if type(module).__module__.startswith("torch._dynamo"):
        inner = getattr(module, "_orig_mod", None)
        return _inside(inner) if isinstance(inner, nn.Module) else module
    return module
