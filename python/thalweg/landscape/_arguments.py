"""Checks of the arguments that several analyses share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg import _check
from thalweg.errors import NonFiniteError
from thalweg.model import Model

Vector = npt.NDArray[np.float64]


def model(where: str, value: Any) -> Model:
    """`value` if it is a model."""
    return _check.instance(where, "model", value, Model, "a thalweg.Model")


def reals(where: str, name: str, value: Any, dimensions: int | None = None) -> Vector:
    """`value` as a float64 array of finite numbers."""
    array = _check.array(where, name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"[{where}] expected {name} to hold real numbers, got dtype {array.dtype}")
    if dimensions is not None and array.ndim != dimensions:
        raise ValueError(
            f"[{where}] expected {name} with {dimensions} dimension(s), got shape {array.shape}"
        )
    result = np.array(array, dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError(f"[{where}] expected finite numbers in {name}, got NaN or infinity")
    return result


def vector(where: str, name: str, value: Any, size: int) -> Vector:
    """A parameter vector of `size` numbers, or the parameters of a model."""
    array = reals(where, name, value.parameters if isinstance(value, Model) else value, 1)
    if array.size != size:
        raise ValueError(f"[{where}] expected {name} with {size} parameters, got {array.size}")
    return array


def unit(where: str, name: str, value: Vector) -> Vector:
    """`value` divided by its norm."""
    largest = float(np.max(np.abs(value), initial=0.0))
    if largest == 0.0:
        raise ValueError(f"[{where}] expected {name} that is not zero, got the zero vector")
    scaled = value / largest  # whose squares neither overflow nor vanish
    result: Vector = scaled / np.linalg.norm(scaled)
    return result


def all_finite(where: str, name: str, values: Any, layer: str = "") -> None:
    """Refuses NaN and infinity in what a network computed; `layer` says where they came out."""
    if np.isfinite(values).all():
        return
    source = f" out of {layer}" if layer else ""
    error = NonFiniteError(
        f"[{where}] expected finite {name}, got NaN or infinity{source}; look at the parameters "
        "and the data"
    )
    error.layer = layer
    raise error
