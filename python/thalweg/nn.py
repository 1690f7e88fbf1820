"""Layers: immutable descriptions that `thalweg.Model` compiles.

A layer knows its own width only; what comes in follows from the layers before it. The arrays named
in the docstrings are row-major ``[rows, features]`` and weights are ``[out, in]``.

Examples
--------
>>> from thalweg import nn
>>> network = nn.Sequential(nn.Dense(512), nn.BatchNorm(), nn.ReLU(), nn.Dense(10))
>>> len(network), network[0]
(4, Dense(units=512, bias=None, init='auto'))
>>> nn.from_dict(network.to_dict()) == network
True
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from thalweg import _check
from thalweg import init as _init
from thalweg._description import (
    Description,
    activation_table,
    build,
    by_type,
    check_parameters,
)

__all__ = [
    "ELU",
    "GELU",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Identity",
    "Layer",
    "LeakyReLU",
    "Maxout",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "from_dict",
]


class Layer(Description):
    """One entry of a network."""


def _affine(layer: Dense | Maxout) -> None:
    """Checks of the layers that own a weight and a bias."""
    where = type(layer).__name__
    layer._set("units", _check.integer(where, "units", layer.units, 1))
    if layer.bias is not None:
        layer._set("bias", _check.flag(where, "bias", layer.bias))
    layer._set("init", _init.resolve(where, layer.init))


def _init_value(values: dict[str, Any], init: str | _init.Initializer) -> dict[str, Any]:
    """Initializers without a parameter are strings in the description."""
    if isinstance(init, _init.Initializer) and values["init"] == {"type": init.type}:
        values["init"] = init.type
    return values


@dataclass(frozen=True)
class Dense(Layer):
    """Fully connected layer: y = x W' + b, x ``[rows, in]``, W ``[units, in]``, b ``[units]``.

    Parameters
    ----------
    units : int
        Width of the output, at least 1.
    bias : bool or None, default None
        Whether b exists. None leaves it out when a `BatchNorm` follows, which would cancel it.
    init : str or Initializer, default "auto"
        Initial W, see `thalweg.init`. b starts at zero.

    Raises
    ------
    ValueError, TypeError
        For units below 1, an unknown initializer or values of another type.

    Examples
    --------
    >>> Dense(10, init="orthogonal")
    Dense(units=10, bias=None, init=Orthogonal(gain=1.0))
    """

    units: int
    bias: bool | None = field(default=None, kw_only=True)
    init: str | _init.Initializer = field(default="auto", kw_only=True)
    type: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        _affine(self)

    def to_dict(self) -> dict[str, Any]:
        """The layer as plain values."""
        return _init_value(super().to_dict(), self.init)


@dataclass(frozen=True)
class Maxout(Layer):
    """Maximum over `pieces` affine functions of the input (Goodfellow et al. 2013).

    Parameters
    ----------
    units : int
        Width of the output, at least 1; the weight is ``[units * pieces, in]``.
    pieces : int, default 2
        Affine functions per unit, at least 1.
    bias : bool or None, default None
        Whether every piece has a bias; None means True.
    init : str or Initializer, default "auto"
        Initial weights, see `thalweg.init`.

    Examples
    --------
    >>> Maxout(64, pieces=3).pieces
    3
    """

    units: int
    pieces: int = 2
    bias: bool | None = field(default=None, kw_only=True)
    init: str | _init.Initializer = field(default="auto", kw_only=True)
    type: ClassVar[str] = "maxout"

    def __post_init__(self) -> None:
        _affine(self)
        self._set("pieces", _check.integer("Maxout", "pieces", self.pieces, 1))

    def to_dict(self) -> dict[str, Any]:
        """The layer as plain values."""
        return _init_value(super().to_dict(), self.init)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalization of every column (Ioffe and Szegedy 2015).

    Training divides by the biased variance of the minibatch and moves the running mean and the
    running unbiased variance, which evaluation uses. Two rows at least are needed in training.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance, > 0.
    momentum : float or None, default 0.1
        Weight of a new minibatch in the running statistics, in [0, 1]; None takes the plain average
        over all minibatches.
    weighted : bool, default False
        Whether sample weights count in mean and variance.

    Examples
    --------
    >>> BatchNorm(momentum=None)
    BatchNorm(eps=1e-05, momentum=None, weighted=False)
    """

    eps: float = field(default=1e-5, kw_only=True)
    momentum: float | None = field(default=0.1, kw_only=True)
    weighted: bool = field(default=False, kw_only=True)
    type: ClassVar[str] = "batch_norm"

    def __post_init__(self) -> None:
        self._set("eps", _check.real("BatchNorm", "eps", self.eps, 1e-30))
        if self.momentum is not None:
            self._set("momentum", _check.real("BatchNorm", "momentum", self.momentum, 0.0, 1.0))
        self._set("weighted", _check.flag("BatchNorm", "weighted", self.weighted))


class Activation(Layer):
    """An elementwise function; its parameter and range come from the engine's list."""

    def __post_init__(self) -> None:
        check_parameters(self, activation_table()[self.type]["parameters"])


@dataclass(frozen=True)
class Identity(Activation):
    """y = z."""

    type: ClassVar[str] = "identity"


@dataclass(frozen=True)
class ReLU(Activation):
    """y = max(0, z), with derivative 0 at z = 0 (Glorot et al. 2011)."""

    type: ClassVar[str] = "relu"


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """y = z for z > 0, slope * z otherwise (Maas et al. 2013).

    Parameters
    ----------
    slope : float, default 0.01
        Slope for negative z, >= 0.
    """

    slope: float = 0.01
    type: ClassVar[str] = "leaky_relu"


@dataclass(frozen=True)
class ELU(Activation):
    """y = z for z > 0, alpha * (exp(z) - 1) otherwise (Clevert et al. 2015).

    Parameters
    ----------
    alpha : float, default 1.0
        Minus the limit for z to -infinity.
    """

    alpha: float = 1.0
    type: ClassVar[str] = "elu"


@dataclass(frozen=True)
class GELU(Activation):
    """y = z * Phi(z) with the normal distribution function Phi (Hendrycks and Gimpel 2016)."""

    type: ClassVar[str] = "gelu"


@dataclass(frozen=True)
class SiLU(Activation):
    """y = z * sigmoid(z) (Elfwing et al. 2017)."""

    type: ClassVar[str] = "silu"


@dataclass(frozen=True)
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-z))."""

    type: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Tanh(Activation):
    """y = tanh(z)."""

    type: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class Softplus(Activation):
    """y = log(1 + exp(z))."""

    type: ClassVar[str] = "softplus"


@dataclass(frozen=True)
class Dropout(Layer):
    """Sets elements to zero with probability p in training and scales the rest by 1 / (1 - p).

    The mask is a function of seed, layer, step, row and column. Evaluation leaves values as they
    are (Srivastava et al. 2014).

    Parameters
    ----------
    p : float, default 0.5
        Probability of zero, 0 <= p < 1.
    """

    p: float = 0.5
    type: ClassVar[str] = "dropout"

    def __post_init__(self) -> None:
        self._set("p", _check.real("Dropout", "p", self.p, 0.0, 1.0))
        if self.p == 1.0:
            raise ValueError("[Dropout] expected p < 1, got 1.0; nothing would be left to train")


def _checked_layers(where: str, layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
        layers = tuple(layers[0])
    built = (from_dict(layer) if isinstance(layer, Mapping) else layer for layer in layers)
    checked = tuple(
        _check.instance(
            where, f"layer {i}", layer, Layer, "a layer of thalweg.nn, e.g. nn.Dense(10)"
        )
        for i, layer in enumerate(built)
    )
    if not checked:
        raise ValueError(f"[{where}] expected at least one layer, got none")
    return checked


class _Container(Layer):
    """A sequence of layers."""

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]


@dataclass(frozen=True, init=False)
class Sequential(_Container):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        At least one; a single list is taken as the layers.

    Examples
    --------
    >>> Sequential(Dense(3), Tanh())
    Sequential(layers=(Dense(units=3, bias=None, init='auto'), Tanh()))
    """

    layers: tuple[Layer, ...]
    type: ClassVar[str] = "sequential"

    def __init__(self, *layers: Layer) -> None:
        self._set("layers", _checked_layers("Sequential", layers))


@dataclass(frozen=True, init=False)
class Residual(_Container):
    """h + F(h), where F is the given layers and keeps the width of h (He et al. 2015).

    Parameters
    ----------
    *layers : Layer
        F; its output must be as wide as its input.
    zero_init : bool, default True
        Whether the last weight of F starts at zero, so that the block starts as the identity.

    Examples
    --------
    >>> block = Residual(Dense(64), ReLU(), Dense(64))
    >>> block.zero_init, len(block)
    (True, 3)
    """

    layers: tuple[Layer, ...]
    zero_init: bool = True
    type: ClassVar[str] = "residual"

    def __init__(self, *layers: Layer, zero_init: bool = True) -> None:
        self._set("layers", _checked_layers("Residual", layers))
        self._set("zero_init", _check.flag("Residual", "zero_init", zero_init))


_BY_TYPE: dict[str, type[Layer]] = by_type(
    [
        Dense,
        BatchNorm,
        Identity,
        ReLU,
        LeakyReLU,
        ELU,
        GELU,
        SiLU,
        Sigmoid,
        Tanh,
        Softplus,
        Dropout,
        Maxout,
        Residual,
        Sequential,
    ]
)


def from_dict(value: Mapping[str, Any]) -> Layer:
    """The layer that a dict describes.

    Parameters
    ----------
    value : mapping
        As `Layer.to_dict` returns it; missing keys take their defaults.

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        For an unknown type or key; the message lists the known ones.

    Examples
    --------
    >>> from_dict({"type": "dropout", "p": 0.1})
    Dropout(p=0.1)
    """
    fields = _check.mapping("layer", value)
    if fields.get("type") in (Sequential.type, Residual.type):
        fields = dict(fields)
        container = Sequential if fields.pop("type") == Sequential.type else Residual
        layers = fields.pop("layers", ())
        return container(*_checked_layers(container.__name__, tuple(layers)), **fields)
    return build("layer", _BY_TYPE, fields)


def activation(name: str) -> Layer:
    """The activation layer of that name with its default parameter."""
    names = list(activation_table())
    return _BY_TYPE[_check.choice("activation", "the activation", name, names)]()
