"""Initializers of dense weights. Biases start at zero.

J is the number of inputs of a unit (fan-in), K the number of units of the layer (fan-out). Every
initializer can be given as an object or, when it has no parameter, by its name:
``"auto"``, ``"deck"``, ``"glorot_uniform"``, ``"he_normal"``, ``"lecun_normal"``, ``"orthogonal"``,
``"zeros"``. ``"auto"`` is He's for layers that feed the ReLU family and Glorot's otherwise.

Examples
--------
>>> from thalweg import init, nn
>>> nn.Dense(10, init="he_normal") == nn.Dense(10, init=init.HeNormal())
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from thalweg import _check
from thalweg._description import Description, build, by_type

__all__ = [
    "Deck",
    "GlorotUniform",
    "HeNormal",
    "Initializer",
    "LecunNormal",
    "Normal",
    "Orthogonal",
    "Uniform",
    "Zeros",
]


class Initializer(Description):
    """Distribution of the initial weights of a layer."""


@dataclass(frozen=True)
class Deck(Initializer):
    """U(-1/sqrt(J), 1/sqrt(J)), PyTorch's rule for the weights of a linear layer."""

    type: ClassVar[str] = "deck"


@dataclass(frozen=True)
class GlorotUniform(Initializer):
    """U(-b, b) with b = sqrt(6 / (J + K)) (Glorot and Bengio 2010)."""

    type: ClassVar[str] = "glorot_uniform"


@dataclass(frozen=True)
class HeNormal(Initializer):
    """N(0, 2/J), for layers that feed rectifiers (He et al. 2015)."""

    type: ClassVar[str] = "he_normal"


@dataclass(frozen=True)
class LecunNormal(Initializer):
    """N(0, 1/J) (LeCun et al. 1998)."""

    type: ClassVar[str] = "lecun_normal"


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Rows or columns, whichever are fewer, orthonormal and times `gain` (Saxe et al. 2013).

    Parameters
    ----------
    gain : float, default 1.0
        All singular values of the weight.
    """

    gain: float = 1.0
    type: ClassVar[str] = "orthogonal"

    def __post_init__(self) -> None:
        self._set("gain", _check.real("Orthogonal", "gain", self.gain, 0.0))


@dataclass(frozen=True)
class Zeros(Initializer):
    """All weights zero: for a last layer only, since units with equal weights stay equal."""

    type: ClassVar[str] = "zeros"


@dataclass(frozen=True)
class Normal(Initializer):
    """N(0, std^2).

    Parameters
    ----------
    std : float
        Standard deviation.
    """

    std: float
    type: ClassVar[str] = "normal"

    def __post_init__(self) -> None:
        self._set("std", _check.real("Normal", "std", self.std, 0.0))


@dataclass(frozen=True)
class Uniform(Initializer):
    """U(-bound, bound).

    Parameters
    ----------
    bound : float
        Half the width of the interval.
    """

    bound: float
    type: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        self._set("bound", _check.real("Uniform", "bound", self.bound, 0.0))


_BY_TYPE: dict[str, type[Initializer]] = by_type(
    [Deck, GlorotUniform, HeNormal, LecunNormal, Orthogonal, Zeros, Normal, Uniform]
)
_NEEDS_ARGUMENT = ("normal", "uniform")


def resolve(where: str, value: str | Initializer | Mapping[str, Any]) -> str | Initializer:
    """The initializer that a user or a description names; ``"auto"`` stays a string."""
    if isinstance(value, Initializer) or value == "auto":
        return value
    if isinstance(value, Mapping):
        return build("init", _BY_TYPE, value)
    names = ["auto", *(name for name in _BY_TYPE if name not in _NEEDS_ARGUMENT)]
    hint = "init, an initializer object of thalweg.init or its name,"
    return _BY_TYPE[_check.choice(where, hint, value, names)]()
