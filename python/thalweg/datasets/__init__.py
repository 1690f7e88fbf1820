"""Data sets and readers: the embedded digits, MNIST, CSV tables, NumPy files and IDX folders.

Readers accept nothing that they have not checked: a malformed file raises :class:`DataError` (a
`ValueError`) or `OSError`, never anything else, and no file can run code.
"""

from __future__ import annotations

from ._dataset import Dataset
from ._errors import DataError
from .arrays import read_npy, read_npz
from .builtin import load_digits, load_mnist
from .idx import read_idx, read_idx_folder
from .preprocessing import Preprocessing
from .tables import Column, Table, read_csv

__all__ = [
    "Column",
    "DataError",
    "Dataset",
    "Preprocessing",
    "Table",
    "load_digits",
    "load_mnist",
    "read_csv",
    "read_idx",
    "read_idx_folder",
    "read_npy",
    "read_npz",
]
