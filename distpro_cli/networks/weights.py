"""Weights in files: read without running code from them, written so that timm reads them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError, first_line
from distpro_cli.files import write_atomically
from distpro_cli.image_size import size_text
from distpro_cli.networks.channels import COLOUR, GREY
from distpro_cli.networks.dry_run import stated_classifiers, title
from distpro_cli.networks.heads import NewHead, head_names
from distpro_cli.networks.torchscript import is_script_archive, script_tensors

# What training scripts wrap a state dict in; the averaged weights come first, as with timm.
WRAPPERS = (
    "state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "state_dict", "model", "model_state",
    "model_state_dict", "net", "network", "student", "module", "weights", "params",
)  # fmt: skip
_COMPILED = "_orig_mod."
_PREFIXES = re.compile(r"(?:module|model|student|teacher|net|network|backbone)\.")
_SHOWN = 3


def load_weights(model: nn.Module, source: Path, *, new_head: bool = False, head: bool = True) -> NewHead | None:
    """Fills a network with the weights of a file, all of them or none.

    Args:
        model: On any device.
        source: A safetensors file under any name; a torch checkpoint of plain tensors, beside which there may be what
            timm's training script adds; or a TorchScript archive, whose tensors alone are read. Wrappers such as
            `state_dict` and `model`, prefixes such as `module.` and `backbone.`, and what `torch.compile` adds to names
            are looked through.
        new_head: Whether the network may keep its own head where the file has none, or one of another width.
        head: False: a head does not count. What the file has beyond the network's tensors is left out, and the network
            keeps its head only if it says which that is.

    Returns:
        The head that was kept; None if every weight comes from the file.

    Raises:
        DistproError: the file is missing, broken, holds code to be unpickled or numbers that are not finite, or does
            not fit the network.
    """
    found, kept = fitting_weights(model, source, new_head=new_head, head=head)
    model.load_state_dict(found, strict=False)
    return kept


def fitting_weights(
    model: nn.Module, source: Path, *, new_head: bool = False, head: bool = True
) -> tuple[dict[str, Tensor], NewHead | None]:
    """Returns what `load_weights` would load, by name, and the head that it would keep; it raises as that does."""
    expected = model.state_dict()
    found = _without_prefix(_unwrapped(_read(source), source), expected)
    for name, _ in model.named_buffers():
        if name not in expected:  # TorchScript keeps those that a state dict leaves out
            found.pop(name, None)
    if not head:
        found = {name: tensor for name, tensor in found.items() if name in expected}
        new_head = new_head and bool(stated_classifiers(model))
    _check_finite(found, expected, source)
    heads = head_names(model)
    unfit = _unfit(expected, found)
    if new_head and unfit and unfit <= heads:
        first = next(name for name in expected if name in unfit)
        width = found[first].shape[0] if first in found else None
        found = {name: tensor for name, tensor in found.items() if name not in heads}
        return found, NewHead(width, expected[first].shape[0])
    _check_fit(model, found, source)
    return found, None


def weights_metadata(source: Path) -> dict[str, str]:
    """Returns what a safetensors file says of its weights; nothing where that cannot be read."""
    try:
        with safetensors.safe_open(source, "pt") as file:
            return dict(file.metadata() or {})
    except Exception:  # whatever is wrong with it is said when the weights are read
        return {}


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a network's state dict as safetensors, atomically; `timm.create_model` loads it for its names.

    Args:
        model: On any device, in any memory format.
        path: Replaced if it exists.
        metadata: Strings for the file's header.

    Raises:
        DistproError: the folder is missing or read-only, or the disk full.
    """
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    content = _in_fixed_order(safetensors.torch.save(tensors, {"format": "pt", **metadata}))
    write_atomically(path, content)


def _in_fixed_order(content: bytes) -> bytes:
    """The same weights give the same bytes; safetensors writes the metadata in another order every time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _read(source: Path) -> Any:
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "there is no such file"
        raise DistproError(f"weights {source}: {what}; give a .safetensors or a torch checkpoint file")
    try:
        if _is_safetensors(source):
            return safetensors.torch.load_file(source)
        if is_script_archive(source):
            return script_tensors(source)
        with warnings.catch_warnings():  # torch's remark on other pickle protocols is answered below
            warnings.simplefilter("ignore")
            # Opened here, since torch goes by the name.
            with torch.serialization.safe_globals(_harmless()), source.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except DistproError:
        raise
    except pickle.UnpicklingError as error:
        if _is_pickle(source):
            raise DistproError(
                f"weights {source}: holds more than plain tensors, and reading it would run code from the "
                f"file, which is refused{_culprit(error)}; save the state dict alone, best as .safetensors"
            ) from None
        raise DistproError(f"weights {source}: neither a torch checkpoint nor safetensors") from None
    except OSError as error:
        raise DistproError(f"weights {source}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # broken files fail in many ways
        raise DistproError(f"weights {source}: broken, or no weights ({first_line(error)})") from None


def _is_safetensors(source: Path) -> bool:
    """Goes by the content, a length and a JSON object of that length; by the name where that tells nothing."""
    with source.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= source.stat().st_size - 8:
        return True
    return source.suffix == ".safetensors" and not _is_pickle(source)


def _harmless() -> list[Any]:
    """Returns what timm's training checkpoints hold besides tensors: their arguments, and numpy's scalars.

    None of these runs code of the file's: a Namespace takes attributes, a scalar takes its type and bytes.
    """
    scalar = numpy.float64(0).__reduce__()[0]
    kinds = (numpy.dtypes.Float64DType, numpy.dtypes.Float32DType, numpy.dtypes.Int64DType, numpy.dtypes.BoolDType)
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and 2
    return [argparse.Namespace, numpy.dtype, *kinds, *((scalar, f"{module}.scalar") for module in modules)]


def _is_pickle(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _culprit(error: Exception) -> str:
    match = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
    return f" (it asks for {match[1] or match[2]})" if match else ""


def _unwrapped(content: Any, source: Path) -> dict[str, Tensor]:
    """Returns the state dict inside any wrappers."""
    for _ in range(5):  # a file may hold a wrapper that holds itself
        wrapped = content if isinstance(content, Mapping) else {}
        content = next((wrapped[key] for key in WRAPPERS if isinstance(wrapped.get(key), Mapping)), content)
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        holds = f"it holds {_some(map(str, content))}"
    else:
        holds = f"it holds a {type(content).__name__}"
    raise DistproError(f"weights {source}: no state dict found; {holds}, looked for {', '.join(WRAPPERS)}")


def _without_prefix(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strips the prefix under which most of the expected names lie, and what torch.compile adds anywhere."""
    found = {name.replace(_COMPILED, ""): tensor for name, tensor in found.items()}
    prefixes = {""}
    for name in found:
        end = 0
        while match := _PREFIXES.match(name, end):
            end = match.end()
            prefixes.add(name[:end])

    def under(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}

    def matches(prefix: str) -> tuple[int, int]:
        return sum(name in expected for name in under(prefix)), -len(prefix)

    return under(max(sorted(prefixes), key=matches))  # of equals, the student rather than the teacher


def not_finite(tensors: Mapping[str, Tensor], unbounded: Collection[str] = ()) -> list[str]:
    """Returns the names of the tensors that hold NaN or an infinity; a device is waited for once.

    Those that are `unbounded` may hold infinities.
    """
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return []
    fine = [~t.isnan().any() if name in unbounded else t.isfinite().all() for name, t in floating.items()]
    return [name for name, is_fine in zip(floating, torch.stack(fine).tolist(), strict=True) if not is_fine]


def unbounded_tensors(tensors: Mapping[str, Tensor]) -> set[str]:
    """Returns the names of the tensors that hold an infinity and no NaN, as limits of a network do that clips."""
    return set(not_finite(tensors)) - set(not_finite(tensors, tensors))


def _check_finite(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    if wrong := not_finite(found, unbounded_tensors(expected)):
        raise DistproError(
            f"weights {source}: {len(wrong)} of {len(found)} tensors hold NaN or infinity ({_some(wrong)}), so the "
            "network that they are of has diverged; take other weights"
        )


def _unfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> set[str]:
    """Returns the names that only one of both has, or that have another shape in each."""
    both = expected.keys() & found.keys()
    lone = {name for name in expected.keys() ^ found.keys() if not _is_counter(name)}
    return lone | {name for name in both if expected[name].shape != found[name].shape}


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # absent from checkpoints older than the counter itself


def _check_fit(model: nn.Module, found: Mapping[str, Tensor], source: Path) -> None:
    expected = model.state_dict()
    missing = [name for name in expected if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in expected]
    differing = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    if not (missing or unexpected or differing):
        return
    if differing and not missing and not unexpected and set(differing) <= head_names(model):
        has, needs = (tensors[differing[0]].shape[0] for tensors in (found, expected))
        raise DistproError(
            f"weights {source}: its head has {has} outputs, {title(model)} here has {needs}; "
            f"set data.num_classes to {has}, or take other weights"
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unknown ({_some(unexpected)})")
    if differing:
        shapes = (f"{name} {list(found[name].shape)} for {list(expected[name].shape)}" for name in differing)
        parts.append(f"{len(differing)} of another shape ({_some(shapes)})")
    raise DistproError(
        f"weights {source}: they do not fit {title(model)}, of {len(expected)} tensors {', '.join(parts)}; "
        f"check the network's name and options{_colour_remark(expected, found)}{_origin(source)}"
    )


def _colour_remark(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Says what to write where weights for images of colour meet a network of grey ones."""
    first = next((name for name, tensor in expected.items() if tensor.ndim == 4), "")
    if first not in found or found[first].ndim != 4:
        return ""
    if (expected[first].shape[1], found[first].shape[1]) != (GREY, COLOUR):
        return ""
    return " (a network of 3 channels takes grey images as well: leave the channels out of its options)"


def _origin(source: Path) -> str:
    """Returns what the file says it is, as the end of a message."""
    metadata = weights_metadata(source)
    parts = [metadata["network"]] if "network" in metadata else []
    parts += [f"options {metadata['options']}"] if metadata.get("options", "{}") != "{}" else []
    parts += [f"images of {_size(metadata['image_size'])} pixels"] if "image_size" in metadata else []
    return f"; the file is of {', '.join(parts)}" if parts else ""


def _size(text: str) -> str:
    """Returns a size of a file's metadata, JSON, as people write it."""
    try:
        return size_text(json.loads(text))
    except (ValueError, TypeError):
        return text


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
