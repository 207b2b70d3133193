"""Machines that `distpro doctor --calibrate` measured on this computer, kept in the cache; none of it needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.files import cache_folder, write_atomically
from distpro_cli.process.container import from_json
from distpro_cli.process.machine import Machine

KINDS = ("cuda", "mps", "cpu")  # of devices, the best first
PRECISIONS = ("float32", "bfloat16")
AGAIN = "measure it again: distpro doctor --calibrate"
_MOST_BYTES = 2**20
_MOST_NAME = 200
_RANGES = {  # far beyond any machine
    "flops_per_byte": (1e-6, 1e9),
    "backward_factor": (0.0, 1e6),
    "operation_bytes": (0.0, 1e12),
    "worst_error": (0.0, 1e12),
    "median_error": (0.0, 1e12),
}


@dataclass(frozen=True)
class Calibration:
    """What was measured on a device in one precision.

    Attributes:
        device: In words, such as `cuda, NVIDIA H100`.
        flops_per_byte: As in `Machine`, as are the next two.
        backward_factor: Likewise.
        operation_bytes: Likewise.
        worst_error: Largest relative error of these constants for the times they were read off, 0.1 being 10 %.
        median_error: The median one.
    """

    device: str
    flops_per_byte: float
    backward_factor: float
    operation_bytes: float
    worst_error: float
    median_error: float

    def machine(self, precision: str) -> Machine:
        """Returns the machine that tells costs in a precision."""
        name = f"{self.device}, {precision}"
        return Machine(self.flops_per_byte, self.backward_factor, self.operation_bytes, name)


Calibrations = Mapping[str, Mapping[str, Calibration]]  # by kind of device, then precision


def calibration_file() -> Path:
    """Returns where calibrations are kept."""
    return cache_folder() / "calibration.json"


def load_calibrations() -> Calibrations:
    """Returns what was kept; nothing where nothing was.

    Raises:
        DistproError: the file is damaged, or something else than `keep_calibrations` has written it.
    """
    path = calibration_file()
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ProcessError(f"larger than {_MOST_BYTES} bytes")
        return _checked(from_json(content.decode("utf-8"), "its content"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DistproError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    except ProcessError as error:
        raise DistproError(f"{path}: not a calibration ({error.lines[0]}); {AGAIN}") from None


def keep_calibrations(kind: str, found: Mapping[str, Calibration]) -> Path:
    """Keeps what was measured on a kind of device, by precision, in place of what was kept of it; returns the file.

    Raises:
        DistproError: it cannot be written.
    """
    try:
        before = dict(load_calibrations())
    except DistproError:  # a damaged one, which this replaces
        before = {}
    plain = {
        name: {precision: asdict(one) for precision, one in of_kind.items()}
        for name, of_kind in sorted({**before, kind: found}.items())
    }
    write_atomically(calibration_file(), json.dumps(plain, indent=2) + "\n")
    return calibration_file()


def machines(kind: str | None = None) -> dict[str, Machine]:
    """Returns the machines measured on a kind of device, by precision.

    Args:
        kind: `cuda`, `mps` or `cpu`; None: the best of which anything is kept.

    Returns:
        Nothing where nothing is kept.

    Raises:
        DistproError: what is kept cannot be read.
    """
    kept = load_calibrations()
    chosen = next((name for name in KINDS if kept.get(name)), "") if kind is None else kind
    return {precision: one.machine(precision) for precision, one in kept.get(chosen, {}).items()}


def machines_or_built_in(kind: str | None, say: Callable[[str], object]) -> dict[str, Machine]:
    """Returns what `machines` does; nothing, and tells why by `say`, where what is kept cannot be read."""
    try:
        return machines(kind)
    except DistproError as error:
        say(f"{error}; costs are told by the built-in constants")
        return {}


def _checked(content: Any) -> Calibrations:
    return {
        kind: {precision: _calibration(value) for precision, value in _object(of_kind, PRECISIONS).items()}
        for kind, of_kind in _object(content, KINDS).items()
    }


def _object(value: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(allowed):
        raise ProcessError(f"expected an object of {', '.join(allowed)}")
    return value


def _calibration(value: Any) -> Calibration:
    names = ("device", *_RANGES)
    if set(_object(value, names)) != set(names):
        raise ProcessError(f"expected all of {', '.join(names)}")
    device = value["device"]
    if not isinstance(device, str) or not device.isprintable() or not 1 <= len(device) <= _MOST_NAME:
        raise ProcessError("device is no printable name")
    for name, (least, most) in _RANGES.items():
        if type(value[name]) not in (int, float) or not least <= value[name] <= most:
            raise ProcessError(f"{name} is {ascii(value[name])[:60]}; expected a number from {least:g} to {most:g}")
    return Calibration(device, **{name: float(value[name]) for name in _RANGES})
