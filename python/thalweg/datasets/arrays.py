"""NumPy files, read without pickle and without trusting a length that the file does not back."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import struct
import zipfile
import zlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ._errors import DataError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 65_536
_DESCR = re.compile(r"'descr':\s*'([<>|=]?)([a-zA-Z])(\d{1,9})'")
_ORDER = re.compile(r"'fortran_order':\s*(True|False)")
_SHAPE = re.compile(r"'shape':\s*\(([\d\s,]*)\)")
_NUMERIC = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8),
}
_TEXT = ("U", "S")
# A deflate stream cannot expand further than this.
_MAX_EXPANSION = 1032


def read_npy(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read one array from a `.npy` file.

    Parameters
    ----------
    path : path-like
        A file of real numbers, booleans or texts, in C or Fortran order, of any byte order.

    Returns
    -------
    ndarray
        In native byte order.

    Raises
    ------
    DataError
        The file is malformed, truncated, or holds objects, records or complex numbers.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from thalweg.datasets import read_npy
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.eye(2))
    >>> read_npy(path)
    array([[1., 0.],
           [0., 1.]])
    """
    with open(path, "rb") as file:
        return _read_stream(file, os.fstat(file.fileno()).st_size, os.fspath(path))


def read_npz(
    path: str | os.PathLike[str], names: tuple[str, ...] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays from a `.npz` file.

    Parameters
    ----------
    path : path-like
        As written by `numpy.savez` or `numpy.savez_compressed`.
    names : tuple of str, optional
        Read only these arrays; all must be there. Default: every array of the file.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    DataError
        The file is malformed or truncated, an array is missing or not numeric or textual.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from thalweg.datasets import read_npz
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.npz"
    >>> np.savez(path, x=np.eye(2), y=np.array([0, 1]))
    >>> read_npz(path, ("y",))
    {'y': array([0, 1])}
    """
    place = os.fspath(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            if names is not None:
                missing = [name for name in names if name not in members]
                if missing:
                    raise DataError(
                        f"[read_npz] expected the arrays {', '.join(names)} in {place}, "
                        f"got {', '.join(sorted(members)) or 'none'}"
                    )
            return {
                name: _read_member(archive, members[name], f"{place}:{name}")
                for name in (names if names is not None else members)
            }
    except DataError:
        raise
    except OSError as error:
        # A damaged archive can point before the beginning of the file.
        if error.errno != errno.EINVAL:
            raise
        raise DataError(f"[read_npz] expected a .npz file, got {place}: {error}") from error
    # zipfile reports damage by all of these; ValueError also for text that does not decode.
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        IndexError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        raise DataError(f"[read_npz] expected a .npz file, got {place}: {error}") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> npt.NDArray[Any]:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"[read_npz] expected a stored or deflated array, got {place}")
    if info.file_size > _MAX_EXPANSION * info.compress_size + 1024:
        raise DataError(
            f"[read_npz] {place}: {info.file_size} bytes cannot come out of "
            f"{info.compress_size} compressed bytes"
        )
    with archive.open(info) as file:
        return _read_stream(cast(io.BufferedIOBase, file), info.file_size, place)


def _read_exactly(file: io.BufferedIOBase, count: int, place: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise DataError(f"[read_npy] expected {count} more bytes, got {len(data)} in {place}")
    return data


def _read_stream(file: io.BufferedIOBase, size: int, place: str) -> npt.NDArray[Any]:
    """The array in `file`, whose length must be the `size` bytes that the header implies."""
    start = _read_exactly(file, 8, place)
    if start[:6] != _MAGIC:
        raise DataError(f"[read_npy] expected a file that begins with \\x93NUMPY, got {place}")
    width = 2 if start[6] == 1 else 4
    if start[6] not in (1, 2, 3):
        raise DataError(f"[read_npy] expected format version 1 to 3, got {start[6]} in {place}")
    length = int.from_bytes(_read_exactly(file, width, place), "little")
    if length > _MAX_HEADER:
        raise DataError(f"[read_npy] expected a header of at most {_MAX_HEADER} bytes in {place}")
    dtype, fortran, shape = _parse_header(
        _read_exactly(file, length, place).decode("utf-8", "replace"), place
    )
    count = math.prod(shape)
    expected = 8 + width + length + count * dtype.itemsize
    if size != expected:
        raise DataError(
            f"[read_npy] expected {expected} bytes for shape {shape} of {dtype}, "
            f"got {size} in {place}"
        )
    array = np.empty(count, dtype)
    if count and dtype.itemsize:
        view = array.view(np.uint8).data
        filled = 0
        while filled < len(view):
            got = file.readinto(view[filled : filled + (1 << 20)])
            if not got:
                raise DataError(f"[read_npy] expected {len(view)} bytes, got {filled} in {place}")
            filled += got
    if dtype.kind == "b":
        array = array.view(np.uint8) != 0
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _parse_header(text: str, place: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    descr, order, shape = _DESCR.search(text), _ORDER.search(text), _SHAPE.search(text)
    if descr is None or order is None or shape is None:
        raise DataError(
            f"[read_npy] expected an array of numbers or texts, got the header "
            f"{text.strip()[:120]!r} in {place}"
        )
    byte_order, kind, size = descr[1], descr[2], int(descr[3])
    if size not in _NUMERIC.get(kind, ()) and not (kind in _TEXT and 0 < size <= 4096):
        raise DataError(
            f"[read_npy] expected real numbers, booleans or texts, got type '{descr[2]}{size}' "
            f"in {place}"
        )
    extents = tuple(int(n) for n in shape[1].replace(",", " ").split() if len(n) < 19)
    if len(extents) > 32 or len(extents) != len(shape[1].replace(",", " ").split()):
        raise DataError(f"[read_npy] expected a shape, got ({shape[1][:80]}) in {place}")
    return np.dtype(f"{byte_order}{kind}{size}"), order[1] == "True", extents
