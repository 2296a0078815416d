"""The safetensors format, read with NumPy alone.

A file is eight bytes of header length (little endian), a JSON header of names, dtypes,
shapes and byte ranges, then the raw tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import ModuleError

__all__ = ["Tensors", "read_safetensors"]

Tensors = dict[str, npt.NDArray[Any]]

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> Tensors:
    """Read all tensors of a safetensors file.

    Returns:
        Name → array, of the shape and dtype stored. The arrays share one read-only buffer;
        bfloat16 is widened to float32.

    Raises:
        ModuleError: the file cannot be read, or is not a safetensors file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModuleError(f"cannot read the checkpoint {path}: {error}") from error
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header_bytes > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise ModuleError(f"{path} is not a safetensors file: it is cut, or of another format")
    try:
        header = json.loads(content[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        body = memoryview(content)[8 + header_bytes :]
        return {name: _decode_tensor(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModuleError(f"{path} is not a safetensors file that can be read: {error}") from error


def _decode_tensor(body: memoryview, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return one tensor of a safetensors file, from its entry in the header."""
    begin, end = entry["data_offsets"]
    raw = body[begin:end]
    if entry["dtype"] == "BF16":
        # bfloat16 is the upper half of a float32.
        widened = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return widened.view(np.float32).reshape(entry["shape"])
    return np.frombuffer(raw, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
