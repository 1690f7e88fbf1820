"""IDX files, the format of MNIST: magic number, big-endian extents, values."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._dataset import Dataset
from ._errors import DataError

_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_DIMENSIONS = 8
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read one IDX file, plain or gzip-compressed.

    Parameters
    ----------
    path : path-like
        Compression is recognized by content, not by name.

    Returns
    -------
    ndarray
        In native byte order, with the shape that the file states.

    Raises
    ------
    DataError
        Wrong magic number, unknown element type, or a length that does not fit the extents.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from thalweg.datasets import read_idx
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    >>> read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    place = os.fspath(path)
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            return _read_stream(file, place)
        try:
            with gzip.open(file) as stream:
                return _read_stream(stream, place)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"[read_idx] damaged gzip data in {place}: {error}") from error


def _read_stream(file: io.BufferedIOBase, place: str) -> npt.NDArray[Any]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"[read_idx] expected a magic number 00 00 TYPE DIMENSIONS, "
            f"got {magic.hex(' ') or 'an empty file'} in {place}"
        )
    dtype, dimensions = _TYPES.get(magic[2]), magic[3]
    if dtype is None:
        raise DataError(f"[read_idx] unknown element type 0x{magic[2]:02x} in {place}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise DataError(
            f"[read_idx] expected 1 to {_MAX_DIMENSIONS} dimensions, got {dimensions} in {place}"
        )
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"[read_idx] the file ends inside its header: {place}")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    expected = math.prod(shape) * dtype.itemsize
    data = bytearray()
    # Grown as data arrives: a false extent cannot ask for more memory than the file fills.
    while len(data) <= expected:
        chunk = file.read(min(_CHUNK, expected + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    if len(data) != expected:
        found = "more" if len(data) > expected else str(len(data))
        raise DataError(
            f"[read_idx] expected {expected} bytes of data for shape {shape}, "
            f"got {found} in {place}"
        )
    array: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_idx_folder(folder: str | os.PathLike[str]) -> Dataset:
    """Read a folder of four IDX files named as MNIST's (`train-images*`, `t10k-labels*`, ...).

    Parameters
    ----------
    folder : path-like
        Holds `train-images*` and `train-labels*`, and `t10k-*` or `test-*` for the test part;
        each plain or `.gz`.

    Returns
    -------
    Dataset
        `x_*` of the files' element type, flattened to [rows, features]; `y_*` int64 [rows].

    Raises
    ------
    DataError
        A file is missing, ambiguous or malformed, or images and labels differ in number.
    """
    train, test = ("train",), ("t10k", "test")
    x_train, y_train = _read_pair(Path(folder), train)
    x_test, y_test = _read_pair(Path(folder), test)
    if x_train.shape[1] != x_test.shape[1]:
        raise DataError(
            f"[read_idx_folder] expected {x_train.shape[1]} values per test image as in training, "
            f"got {x_test.shape[1]}"
        )
    return Dataset(x_train, y_train, x_test, y_test)


def _read_pair(
    folder: Path, prefixes: tuple[str, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    images = read_idx(_find(folder, prefixes, "images"))
    labels = read_idx(_find(folder, prefixes, "labels"))
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"[read_idx_folder] expected one-dimensional integer labels, "
            f"got shape {labels.shape} of {labels.dtype}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"[read_idx_folder] expected as many labels as images ({len(images)}), "
            f"got {len(labels)}"
        )
    if len(images) == 0:
        raise DataError(f"[read_idx_folder] no images in {folder}")
    return images.reshape(len(images), -1), labels.astype(np.int64)


def _find(folder: Path, prefixes: tuple[str, ...], what: str) -> Path:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.startswith(tuple(f"{p}-{what}" for p in prefixes))
    )
    if not found:
        raise DataError(
            f"[read_idx_folder] expected a file {' or '.join(f'{p}-{what}*' for p in prefixes)} "
            f"in {folder}, got none; a folder of IDX files is named as MNIST's"
        )
    plain = [path for path in found if path.suffix != ".gz"]
    if len(plain or found) > 1:
        raise DataError(
            f"[read_idx_folder] expected one file {prefixes[0]}-{what}*, "
            f"got {', '.join(path.name for path in found)}"
        )
    return (plain or found)[0]
