"""What the built-in data sets and the IDX reader return."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Dataset(NamedTuple):
    """A classification data set with a fixed split; unpacks to its four arrays.

    Attributes
    ----------
    x_train, x_test : ndarray [rows, features]
    y_train, y_test : int64 ndarray [rows]
        Labels 0 ... classes - 1.
    """

    x_train: npt.NDArray[Any]
    y_train: npt.NDArray[np.int64]
    x_test: npt.NDArray[Any]
    y_test: npt.NDArray[np.int64]
