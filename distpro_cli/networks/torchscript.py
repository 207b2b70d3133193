"""TorchScript: the tensors of an archive, read without loading any of its code.

An archive is a zip of a pickle, which names scripted modules and their attributes, of storages, and of code. Only the
first two are read here. All that the pickle can make is plain containers, tensors and `_Scripted`, which does nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from distpro_cli.errors import DistproError

_MOST_NAMES = 100_000  # modules that share modules could spell out any number
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_script_archive(source: Path) -> bool:
    """Says whether a file is a TorchScript archive; what `torch.save` writes has no constants."""
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def script_tensors(source: Path) -> dict[str, Tensor]:
    """Returns the parameters and buffers of the scripted or traced network in an archive, by their names in it.

    Raises:
        DistproError: it holds none.
        Exception: it is broken, in one of many ways; or an `UnpicklingError`, it asks for more than tensors.
    """
    with zipfile.ZipFile(source) as archive:
        (inside,) = {name.partition("/")[0] for name in archive.namelist() if name.endswith("/constants.pkl")}
        root = _Reader(archive, inside).load()
    found: dict[str, Tensor] = {}
    _collect(root, "", found, ())
    if not found:
        raise DistproError(
            f"weights {source}: a TorchScript archive without parameters, as torch.jit.freeze makes it; script or "
            "trace the network without freezing, or save its state_dict()"
        )
    return found


class _Scripted:
    """Any object of an archive's own types, as its attributes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = {}


class _Reader(pickle._Unpickler):
    """Pickle's own implementation in Python, because that in C refuses what torch makes of an enumeration."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, archive: zipfile.ZipFile, inside: str) -> None:
        self._archive, self._inside = archive, inside
        self._storages: dict[str, Tensor] = {}
        super().__init__(io.BytesIO(self._content("data.pkl")))

    def _content(self, name: str) -> bytes:
        info = self._archive.getinfo(f"{self._inside}/{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")  # torch never does so, and little could become much
        return self._archive.read(info)

    def load_build(self) -> None:
        """Gives an object its attributes; nothing but what an archive defines takes any."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        scripted = self.stack[-1]  # type: ignore[attr-defined]
        if type(scripted) is not _Scripted:
            raise ValueError(f"attributes of a {type(scripted).__name__}")
        scripted.state = state

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands in for a name of the pickle; all but tensors and plain containers are refused."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Scripted
        harmless = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch", "device"): str,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
            ("torch.jit._pickle", "restore_type_tag"): _first,
            **{("torch", storage): dtype for storage, dtype in _STORAGES.items()},
        }
        if (module, name) not in harmless:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return harmless[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns a storage as a tensor [numel]."""
        _, dtype, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._content(f"data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    if storage.storage_offset() or storage.ndim != 1:
        raise ValueError("a tensor of a tensor")
    return storage.as_strided(size, stride, offset)  # raises where that leaves the storage


def _first(value: Any, *_: Any) -> Any:
    return value


def _collect(scripted: Any, prefix: str, found: dict[str, Tensor], around: tuple[Any, ...]) -> None:
    """Adds the tensors of a scripted module and of those inside it under their dotted names."""
    attributes = scripted.state if isinstance(scripted, _Scripted) and isinstance(scripted.state, dict) else {}
    if any(scripted is outer for outer in around):
        raise ValueError("a module inside itself")
    for name, value in attributes.items():
        if len(found) > _MOST_NAMES:
            raise ValueError("too many names")
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Scripted):
            _collect(value, f"{prefix}{name}.", found, (*around, scripted))
