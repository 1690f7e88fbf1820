"""Dual numbers over NumPy arrays: values that carry their derivative along one direction.

The float64 reference of the tests computes with them what it computes with arrays: its gradient on
dual parameters gives exact products with second derivatives (Pearlmutter 1994) without a formula
for any of them. Only what the reference uses is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

# A ufunc, so that a dual number can answer for it.
erfc = np.frompyfunc(math.erfc, 1, 1)


class Dual(np.lib.mixins.NDArrayOperatorsMixin):
    """An array and its tangent, of the same shape."""

    def __init__(self, value: npt.ArrayLike, tangent: npt.ArrayLike) -> None:
        self.value: Float = np.asarray(value, dtype=np.float64)
        self.tangent: Float = np.broadcast_to(
            np.asarray(tangent, dtype=np.float64), self.value.shape
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def T(self) -> Dual:
        return self._both(lambda a: a.T)

    def _both(self, linear: Callable[[Float], Any]) -> Dual:
        return Dual(linear(self.value), linear(self.tangent))

    def __len__(self) -> int:
        return len(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __getitem__(self, key: Any) -> Dual:
        return self._both(lambda a: a[key])

    def reshape(self, *shape: Any) -> Dual:
        return self._both(lambda a: a.reshape(*shape))

    def ravel(self) -> Dual:
        return self._both(np.ravel)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Dual:
        return self._both(lambda a: a.sum(axis=axis, keepdims=keepdims))

    def argmax(self, axis: int) -> Any:
        return self.value.argmax(axis=axis)

    def min(self) -> Any:
        return self.value.min()

    def max(self, axis: int, keepdims: bool = False) -> Dual:
        first = np.expand_dims(self.value.argmax(axis=axis), axis)
        largest = self._both(lambda a: np.take_along_axis(a, first, axis))
        return largest if keepdims else largest._both(lambda a: a.squeeze(axis))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            return NotImplemented
        values = [_value(x) for x in inputs]
        result = ufunc(*values)
        if ufunc in _COMPARISONS:
            return result
        if ufunc not in _TANGENTS:
            return NotImplemented
        return Dual(result, _TANGENTS[ufunc](*values, *map(_tangent, inputs)))

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        if function not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[function](*inputs, **options)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Dual) else x


def _tangent(x: Any) -> Any:
    return x.tangent if isinstance(x, Dual) else np.zeros(np.shape(x))


_COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}

# Tangent of a function from the values and the tangents of its arguments.
_TANGENTS: dict[Any, Callable[..., Any]] = {
    np.add: lambda a, b, da, db: da + db,
    np.subtract: lambda a, b, da, db: da - db,
    np.multiply: lambda a, b, da, db: da * b + a * db,
    np.divide: lambda a, b, da, db: (da - a / b * db) / b,
    np.power: lambda a, b, da, db: b * a ** (b - 1) * da,  # the exponent is a constant
    np.matmul: lambda a, b, da, db: da @ b + a @ db,
    np.negative: lambda a, da: -da,
    np.absolute: lambda a, da: np.where(a < 0, -da, da),
    np.maximum: lambda a, b, da, db: np.where(a > b, da, db),
    np.minimum: lambda a, b, da, db: np.where(a < b, da, db),
    np.exp: lambda a, da: np.exp(a) * da,
    np.expm1: lambda a, da: np.exp(a) * da,
    np.log: lambda a, da: da / a,
    np.log1p: lambda a, da: da / (1.0 + a),
    np.sqrt: lambda a, da: 0.5 / np.sqrt(a) * da,
    np.tanh: lambda a, da: (1.0 - np.tanh(a) ** 2) * da,
    erfc: lambda a, da: -2.0 / math.sqrt(math.pi) * np.exp(-a * a) * da,
}


def _where(condition: Any, a: Any, b: Any) -> Dual:
    return Dual(
        np.where(condition, _value(a), _value(b)), np.where(condition, _tangent(a), _tangent(b))
    )


def _zeros_like(a: Dual) -> Dual:
    return Dual(np.zeros(a.shape), 0.0)


def _put_along_axis(a: Dual, indices: Any, values: Any, axis: int) -> None:
    a.value, a.tangent = a.value.copy(), a.tangent.copy()
    np.put_along_axis(a.value, indices, _value(values), axis)
    np.put_along_axis(a.tangent, indices, _tangent(values), axis)


def _clip(a: Dual, lowest: Any, highest: Any) -> Dual:
    inside = (a.value > lowest) & (a.value < highest)
    return Dual(np.clip(a.value, lowest, highest), np.where(inside, a.tangent, 0.0))


def _sort(a: Dual, axis: int = -1) -> Dual:
    order = a.value.argsort(axis=axis)
    return a._both(lambda part: np.take_along_axis(part, order, axis))


def _ones_like(a: Dual) -> Dual:
    return Dual(np.ones(a.shape), 0.0)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.zeros_like: _zeros_like,
    np.ones_like: _ones_like,
    np.put_along_axis: _put_along_axis,
    np.clip: _clip,
    np.sort: _sort,
}
