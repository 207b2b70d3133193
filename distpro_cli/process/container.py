"""The safetensors layout as far as a process needs it: float32 tables and string metadata, strictly read.

8 bytes little-endian length of the header, the header as JSON, the tables one after the other.
`safetensors` reads what this writes. The own writer makes equal input equal bytes. The own reader refuses what
that of `safetensors` lets pass: keys that occur twice, unknown keys, other types, no metadata.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import ProcessError

MAX_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 16 * 2**20
LENGTH_BYTES = 8
_ALIGNMENT = 8


def to_json(value: object) -> str:
    """Returns the one JSON text of `value`: sorted keys, no spaces, ASCII.

    Raises:
        ProcessError: it holds something that JSON does not know.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProcessError(f"cannot be written as JSON: {error}") from None


def from_json(text: str, what: str) -> Any:
    """Reads JSON without NaN, infinities and keys that occur twice.

    Raises:
        ProcessError: it is not that; `what` names the text.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ProcessError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ProcessError(f"{what} is not valid JSON: {error}") from None


def encode(tables: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a file that holds the tables, sorted by name, and the metadata."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name in sorted(tables):
        end = start + tables[name].size * 4
        header[name] = {"dtype": "F32", "shape": list(tables[name].shape), "data_offsets": [start, end]}
        start = end
    text = to_json(header).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES or LENGTH_BYTES + len(text) + start > MAX_BYTES:
        raise ProcessError(f"the process is too large for a file: {MAX_BYTES // 2**20} MiB at most")
    data = [tables[name].astype("<f4").tobytes() for name in sorted(tables)]
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *data])


def decode_header(text: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the metadata, and the entries by tensor, which are not checked: other formats have other entries.

    Raises:
        ProcessError: it is not JSON, or has other than strings as metadata.
    """
    try:
        entries = from_json(text.decode("utf-8"), "the header")
    except UnicodeDecodeError:
        raise ProcessError("the header is not UTF-8 text") from None
    if not isinstance(entries, dict):
        raise ProcessError("the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ProcessError("the header's __metadata__ is not a mapping of strings")
    return metadata, entries


def decode_tables(entries: Mapping[str, Any], data: bytes) -> dict[str, NDArray[np.float32]]:
    """Returns the tables that lie in `data`.

    Raises:
        ProcessError: an entry is malformed, or the tables are not float32, have gaps between them, or are longer or
            shorter than the data.
    """
    for name, entry in entries.items():
        _check_entry(name, entry)
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        if start != position:
            raise ProcessError(f"tensor {name!r} starts at byte {start} of the data; expected {position}")
        position = end
    if len(data) != position:
        state = "truncated" if len(data) < position else "followed by something else"
        raise ProcessError(f"{len(data)} bytes of data where the header says {position}: the file is {state}")
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], dtype="<f4").reshape(entry["shape"]).astype(np.float32)
        for name, entry in entries.items()
    }


def _check_entry(name: str, entry: object) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ProcessError(f"tensor {name!r}: expected exactly dtype, shape and data_offsets")
    if entry["dtype"] != "F32":
        raise ProcessError(f"tensor {name!r} is of type {ascii(entry['dtype'])[:40]}; expected 'F32'")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 2:
        raise ProcessError(f"tensor {name!r}: the shape is not a list of at most two sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != 4 * math.prod(shape):
        raise ProcessError(f"tensor {name!r}: data_offsets do not fit the shape {shape}")


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= MAX_BYTES for size in value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return result
