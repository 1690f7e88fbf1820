"""Argument checks: each error says what was expected and what came."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def shown(value: object) -> str:
    """`value` for an error message, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def integer(where: str, name: str, value: object, lowest: int | None = None) -> int:
    """`value` as an int; booleans and fractions are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"[{where}] expected {name} to be an integer, got {shown(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"[{where}] expected {name} to be an integer, got {shown(value)}") from None
    if lowest is not None and number < lowest:
        raise ValueError(f"[{where}] expected {name} >= {lowest}, got {number}")
    if number >= 2**63:
        raise ValueError(f"[{where}] expected {name} < 2**63, got {number}")
    return number


def real(
    where: str,
    name: str,
    value: object,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> float:
    """`value` as a finite float in [lowest, highest]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"[{where}] expected {name} to be a number, got {shown(value)}")
    number = float(value)
    if not math.isfinite(number) or not lowest <= number <= highest:
        bounded = (lowest, highest) != (-math.inf, math.inf)
        bounds = f" in [{lowest:g}, {highest:g}]" if bounded else ""
        raise ValueError(f"[{where}] expected {name} to be a finite number{bounds}, got {number!r}")
    return number


def flag(where: str, name: str, value: object) -> bool:
    """`value` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"[{where}] expected {name} to be True or False, got {shown(value)}")
    return bool(value)


def choice(where: str, name: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of the allowed strings."""
    names = list(allowed)
    listed = ", ".join(repr(entry) for entry in names)
    if not isinstance(value, str):
        raise TypeError(f"[{where}] expected {name} to be one of {listed}, got {shown(value)}")
    if value not in names:
        raise ValueError(f"[{where}] expected {name} to be one of {listed}, got {value!r}")
    return value


def array(where: str, name: str, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    """`value` as an array; masked elements and sequences of different lengths are refused."""
    unmasked(where, name, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"[{where}] expected {name} to be an array of numbers, got {shown(value)}: {error}"
        ) from None


def unmasked(where: str, name: str, value: object) -> None:
    """Refuses arrays of numpy.ma in which a mask hides something: a conversion would drop it."""
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        count = int(np.ma.getmaskarray(value).sum())
        if count:
            raise ValueError(
                f"[{where}] expected {name} without masked elements, got {count} of {value.size}; "
                "replace them with .filled(value), or leave their rows out"
            )


def instance(where: str, name: str, value: object, kind: type[T], hint: str) -> T:
    """`value` if it is a `kind`; `hint` says how to get one."""
    if not isinstance(value, kind):
        raise TypeError(f"[{where}] expected {name} to be {hint}, got {shown(value)}")
    return value


def mapping(where: str, value: object) -> dict[str, Any]:
    """A copy of a description dictionary."""
    if not isinstance(value, dict):
        raise TypeError(f"[{where}] expected a dict, got {shown(value)}")
    return dict(value)
