"""The header of a safetensors file, read without trusting it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .console import UserError

_MAX_HEADER = 100_000_000
_ELEMENT_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class Tensor:
    """One entry of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class Header:
    """Tensors in file order and the metadata."""

    tensors: list[Tensor]
    metadata: dict[str, str]


def looks_like_safetensors(path: Path) -> bool:
    """Whether the first bytes of a file are those of a safetensors file."""
    with open(path, "rb") as file:
        start = file.read(9)
    return (
        len(start) == 9
        and int.from_bytes(start[:8], "little") <= _MAX_HEADER
        and (start[8:] == b"{")
    )


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises
    ------
    UserError
        The file is not a safetensors file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise UserError(f"expected a safetensors file, got {path}")
        text = file.read(length)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        spans = []
        tensors = []
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]))
            numbers = (begin, end, *tensor.shape)
            if not all(isinstance(n, int) and n >= 0 for n in numbers):
                raise ValueError(f"tensor {name!r}: a shape or offset is no count")
            bytes_each = _ELEMENT_BYTES.get(tensor.dtype)
            if bytes_each is None or tensor.elements * bytes_each != end - begin:
                raise ValueError(f"tensor {name!r}: {tensor.dtype} {tensor.shape} does not fit")
            spans.append((begin, end))
            tensors.append((begin, tensor))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"expected a safetensors file, got {path}: {error}") from error
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise UserError(f"{path}: the tensors leave gaps or overlap at byte {begin}")
        at = end
    if 8 + length + at != size:
        raise UserError(f"{path}: expected {8 + length + at} bytes, got {size}: truncated?")
    tensors.sort(key=lambda pair: pair[0])
    return Header([tensor for _, tensor in tensors], metadata)
