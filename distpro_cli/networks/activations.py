"""Where a feature lies relative to the activation at the end of its stage, found in a trace."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from distpro_cli.errors import DistproError
from distpro_cli.networks.dry_run import Call, Trace, parts_of, version

_ACTIVATIONS = (
    nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Threshold, nn.GLU,
)  # fmt: skip
_ACTIVATION_NAME = re.compile(r"(?i)relu|elu|swish|silu|mish|gelu|sigmoid|tanh|activation")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Point:
    """What a tap takes: the first argument of one module call, or what it returned, or a part of that."""

    call: Call
    side: str  # "input" | "output"
    part: int | str | None = None  # of an output of several tensors

    @property
    def order(self) -> int:
        """When the tensor is there, in the trace's counting."""
        return self.call.start if self.side == "input" else self.call.finish

    @property
    def tensor(self) -> Tensor:
        """The tensor of the dry forward; it may have been overwritten since."""
        value = self.call.input if self.side == "input" else self.call.output
        value = value if self.part is None else parts_of(value)[self.part]
        assert isinstance(value, Tensor)
        return value

    @property
    def text(self) -> str:
        """The point in words."""
        return f"{self.side}{'' if self.part is None else f' {self.part}'} of {self.call.name}"

    @property
    def overwritten(self) -> bool:
        """Whether the network wrote into the tensor after this point."""
        then = self.call.input_version if self.side == "input" else self.call.output_version
        then = then if self.part is None else self.call.part_versions[self.part]
        return version(self.tensor) != then


def is_activation(module: nn.Module) -> bool:
    """Tells activation modules from others: torch's, timm's, and a user's own that is called like one."""
    kind = type(module)
    if isinstance(module, _ACTIVATIONS) or kind.__module__.startswith("timm.layers.activations"):
        return True
    return _is_leaf(module) and not _is_library(module) and bool(_ACTIVATION_NAME.search(kind.__name__))


def before_activation(trace: Trace, stage: Call) -> Point:
    """Returns what goes into the activation that ends the stage, or that follows it behind normalisation.

    As in ReviewKD's code: of a residual network the sum before the last ReLU of the stage; of a pre-activation
    network the output of the next BatchNorm, f1 = block2.layer[0].bn1(f1). Where neither is there (a linear
    bottleneck before a convolution, a transformer's block) it is the stage's output.

    Raises:
        DistproError: the stage ends in an activation that is no module, so its input cannot be seen.
    """
    if activation := _ending_activation(trace, stage):
        return Point(activation, "input")
    if _looks_rectified(trace, stage):
        raise DistproError(
            f"level {stage.name}: it ends in an activation that is not a module (such as F.relu), so what "
            "comes before it cannot be tapped; name the module before it as the level, or set feature: output"
        )
    following = _following_activation(trace, stage)
    return Point(stage, "output") if following is None else following[1]


def after_activation(trace: Trace, stage: Call) -> Point:
    """Returns the stage's output if an activation ends it, else the first activation that follows.

    Between stage and activation only normalisation is allowed, as in pre-activation networks.

    Raises:
        DistproError: no activation follows.
    """
    if _ending_activation(trace, stage) or stage.nonnegative:
        return Point(stage, "output")
    if following := _following_activation(trace, stage):
        return Point(following[0], "output")
    raise DistproError(
        f"level {stage.name}: no activation ends or follows it (only normalisation may come between), "
        "so there is nothing to tap after an activation; set feature: output or name another module"
    )


def _ending_activation(trace: Trace, stage: Call) -> Call | None:
    """The last activation whose output, unwritten since, is the stage's output."""
    return next((call for call in _makers(trace, stage) if is_activation(call.module)), None)


def _looks_rectified(trace: Trace, stage: Call) -> bool:
    """Whether the output is nowhere negative and no module made it: the mark of a functional ReLU."""
    made_by_module = any(
        _is_leaf(call.module) and _is_library(call.module) and call.input is not call.output
        for call in _makers(trace, stage)
    )
    return stage.nonnegative and not made_by_module


def _makers(trace: Trace, stage: Call) -> list[Call]:
    """The calls up to the stage's end that returned the very tensor the stage returned, last first."""
    return [
        call
        for call in reversed(trace.calls)
        if call.finish <= stage.finish and call.output is stage.output and call.output_version == stage.output_version
    ]


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _is_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.", "timm."))


def _following_activation(trace: Trace, stage: Call) -> tuple[Call, Point] | None:
    """The activation that follows and the point before it; nothing but normalisation lies between it and the stage."""
    before = Point(stage, "output")
    for call in trace.calls:
        takes_it = call.input is before.tensor and call.input_version == before.call.output_version
        if call.start < stage.finish or not takes_it or not isinstance(call.output, Tensor):
            continue
        if call.output.shape != stage.output.shape:
            continue
        if is_activation(call.module):
            return call, before
        if isinstance(call.module, _NORMS):
            if fused := _ending_activation(trace, call):  # timm's BatchNormAct2d
                return fused, Point(fused, "input")
            before = Point(call, "output")
    return None
