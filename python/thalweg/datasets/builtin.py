"""Data sets by name: the embedded digits, and MNIST from a folder that the user has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ._dataset import Dataset
from ._errors import DataError
from .arrays import read_npz
from .idx import read_idx_folder

_DIGITS = Path(__file__).with_name("digits.npz")
_DIGITS_TRAINING_ROWS = 1200


def load_digits() -> Dataset:
    """Load the handwritten digits that ship with the package: 8x8 pixels, 10 classes.

    The 1,797 images of scikit-learn's copy, in the order `numpy.random.default_rng(0).permutation`
    and split once: 1,200 rows for training, 597 for testing. (In their original order the last
    images come from other writers than the first, which makes the split much harder.)

    Returns
    -------
    Dataset
        `x_train` float32 [1200, 64] and `x_test` float32 [597, 64], ink in [0, 1] (the 17 levels of
        the source divided by 16); `y_train`, `y_test` int64 labels 0 to 9.

    References
    ----------
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49. Licence CC BY 4.0.

    Examples
    --------
    >>> from thalweg.datasets import load_digits
    >>> x_train, y_train, x_test, y_test = load_digits()
    >>> x_train.shape, x_test.shape, float(x_train.max())
    ((1200, 64), (597, 64), 1.0)
    """
    arrays = read_npz(_DIGITS, ("x", "y"))
    x = arrays["x"].astype(np.float32) / np.float32(16)
    y = arrays["y"].astype(np.int64)
    n = _DIGITS_TRAINING_ROWS
    return Dataset(x[:n], y[:n], x[n:], y[n:])


def load_mnist(folder: str | os.PathLike[str] | None = None, *, dtype: str = "float32") -> Dataset:
    """Load MNIST from its four IDX files.

    Parameters
    ----------
    folder : path-like, optional
        Where the files are, plain or `.gz`. Default: `mnist/` in the folder that the environment
        variable `THALWEG_DATA` names. Nothing is downloaded.
    dtype : {"float32", "uint8"}
        "float32": pixels divided by 255. "uint8": pixels as stored, a quarter of the memory.

    Returns
    -------
    Dataset
        `x_train` [60000, 784], `x_test` [10000, 784]; int64 labels.

    Raises
    ------
    DataError
        No folder is known, or a file is missing or malformed.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE, 1998.
    """
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"[load_mnist] expected dtype 'float32' or 'uint8', got {dtype!r}")
    if folder is None:
        root = os.environ.get("THALWEG_DATA")
        if not root:
            raise DataError(
                "[load_mnist] expected a folder, got none; pass one, or set THALWEG_DATA to a "
                "folder that holds mnist/"
            )
        folder = Path(root) / "mnist"
    data = read_idx_folder(folder)
    if dtype == "uint8":
        return data
    scale = np.float32(255)
    x_train, x_test = data.x_train.astype(np.float32), data.x_test.astype(np.float32)
    x_train /= scale
    x_test /= scale
    return Dataset(x_train, data.y_train, x_test, data.y_test)
