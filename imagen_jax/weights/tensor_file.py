"""Writes a safetensors file one array at a time, so that the weights need not fit into memory.

The library `safetensors` writes whole files only. The layout: eight bytes with the length of the
header, the header (JSON with the dtype, shape and place of each array, padded with spaces to a
multiple of eight bytes), then the arrays without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from imagen_jax.errors import UserError

_DTYPES = {"float16": "F16", "float32": "F32"}


def write_tensors(
    path: epath.Path,
    arrays: dict[str, Any],
    dtype: str,
    metadata: dict[str, str],
    read: Callable[[Any], np.ndarray] = np.asarray,
) -> str:
    """Writes the arrays in the order of their names and returns the sha256 of the file.

    Args:
      path: of the file.
      arrays: by name; anything that has a `shape`.
      dtype: of the file, "float16" or "float32".
      metadata: texts for the header.
      read: gives the values of one of the `arrays`. It is called once for each, in the order of the
        file; at most one result is kept at a time.

    Raises:
      UserError: the dtype is another one, or values do not fit float16.
      OSError: the file cannot be written.
    """
    if dtype not in _DTYPES:
        raise UserError(f"weights are saved as float16 or float32, not {dtype!r}")
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in file_order(arrays):
        shape = tuple(arrays[name].shape)
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(text).to_bytes(8, "little") + text)
        for name in file_order(arrays):
            write(_converted(name, read(arrays[name]), dtype).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_order(arrays: dict[str, Any]) -> list[str]:
    """The names in the order in which `write_tensors` reads the arrays."""
    return sorted(arrays)


def _converted(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """`value` as a contiguous array of `dtype`, in the byte order of the file."""
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(value, np.dtype(dtype).newbyteorder("<"))
    if np.isinf(converted).any() and np.isfinite(value).all():
        raise UserError(f"{name} has values beyond float16 (65504); save it as float32")
    return converted
