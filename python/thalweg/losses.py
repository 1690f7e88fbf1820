"""Losses: what `thalweg.Model` minimizes.

z is the output of the network ``[rows, out]``, t the target. Row losses are weighted by the sample
weights w: ``"batch_mean"`` is sum(w l) / sum(w) with l summed over outputs, ``"sum"`` is sum(w l)
and ``"element_mean"`` divides the batch mean by the number of outputs.

A loss may also be a Python function ``loss(prediction, target) -> (value, gradient)``, where
`prediction` is a copy of z, `target` holds the same rows of y, and `gradient` is the derivative of
the value with respect to the prediction ``[rows, out]``.

Examples
--------
>>> from thalweg import losses
>>> losses.Huber(delta=0.5).to_dict()
{'type': 'huber', 'delta': 0.5, 'reduction': 'batch_mean'}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from thalweg import _check
from thalweg._description import Description, build, by_type, check_parameters, loss_table

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Exponential",
    "Huber",
    "Logistic",
    "Loss",
    "LossFunction",
    "SquaredError",
    "from_dict",
]

LossFunction = Callable[["npt.NDArray[Any]", "npt.NDArray[Any]"], "tuple[float, npt.NDArray[Any]]"]
_REDUCTIONS = ("batch_mean", "sum", "element_mean")


class Loss(Description):
    """A loss of the engine."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy of logits: log(sum(exp(z))) - z[label], averaged over the rows.

    Targets are integer labels ``[rows]`` in [0, out), or probabilities ``[rows, out]``.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        Share of the target spread evenly over the classes, 0 <= label_smoothing < 1
        (Szegedy et al. 2015).
    """

    label_smoothing: float = 0.0
    type: ClassVar[str] = "cross_entropy"

    def __post_init__(self) -> None:
        where = "CrossEntropy"
        smoothing = _check.real(where, "label_smoothing", self.label_smoothing, 0.0, 1.0)
        if smoothing == 1.0:
            raise ValueError(
                f"[{where}] expected label_smoothing < 1, got 1.0; no label would be left"
            )
        self._set("label_smoothing", smoothing)


class _Elementwise(Loss):
    """A loss that sums over outputs; its parameter and range come from the engine's list."""

    reduction: str

    def __post_init__(self) -> None:
        check_parameters(self, loss_table()[self.type]["parameters"])
        where = type(self).__name__
        self._set("reduction", _check.choice(where, "reduction", self.reduction, _REDUCTIONS))


@dataclass(frozen=True)
class SquaredError(_Elementwise):
    """(z - t)^2, without the factor 1/2. Targets ``[rows, out]``, or ``[rows]`` for one output.

    Parameters
    ----------
    reduction : str, default "batch_mean"
        "batch_mean", "sum" or "element_mean" (PyTorch's "mean").
    """

    reduction: str = "batch_mean"
    type: ClassVar[str] = "squared_error"


@dataclass(frozen=True)
class Huber(_Elementwise):
    """(z - t)^2 / 2 where abs(z - t) <= delta, linear beyond (Huber 1964).

    Parameters
    ----------
    delta : float, default 1.0
        Where the parabola ends, > 0.
    reduction : str, default "batch_mean"
        "batch_mean", "sum" or "element_mean".
    """

    delta: float = 1.0
    reduction: str = "batch_mean"
    type: ClassVar[str] = "huber"


@dataclass(frozen=True)
class BinaryCrossEntropy(_Elementwise):
    """log(1 + exp(z)) - t z: cross-entropy of sigmoid(z) with targets in [0, 1].

    Parameters
    ----------
    reduction : str, default "batch_mean"
        "batch_mean", "sum" or "element_mean".
    """

    reduction: str = "batch_mean"
    type: ClassVar[str] = "binary_cross_entropy"


@dataclass(frozen=True)
class Logistic(_Elementwise):
    """log(1 + exp(-t z)) with targets -1 or +1.

    Parameters
    ----------
    reduction : str, default "sum"
        "batch_mean", "sum" or "element_mean".
    """

    reduction: str = "sum"
    type: ClassVar[str] = "logistic"


@dataclass(frozen=True)
class Exponential(_Elementwise):
    """exp(-t z) with targets -1 or +1.

    Parameters
    ----------
    reduction : str, default "sum"
        "batch_mean", "sum" or "element_mean".
    """

    reduction: str = "sum"
    type: ClassVar[str] = "exponential"


_BY_TYPE: dict[str, type[Loss]] = by_type(
    [CrossEntropy, SquaredError, Huber, BinaryCrossEntropy, Logistic, Exponential]
)


def from_dict(value: Mapping[str, Any]) -> Loss:
    """The loss that a dict describes; missing keys take their defaults.

    Examples
    --------
    >>> from_dict({"type": "logistic"})
    Logistic(reduction='sum')
    """
    return build("loss", _BY_TYPE, value)


def resolve_loss(value: Loss | str | Mapping[str, Any] | LossFunction) -> Loss | LossFunction:
    """The loss that a user names: an object, a name of the list, a dict, or a Python function."""
    if isinstance(value, Loss):
        return value
    if isinstance(value, str):
        return _BY_TYPE[_check.choice("Model", "loss", value, _BY_TYPE)]()
    if isinstance(value, Mapping):
        return from_dict(value)
    if callable(value) and not isinstance(value, type):
        return value
    raise TypeError(
        f"[Model] expected loss to be one of {', '.join(map(repr, _BY_TYPE))}, an object of "
        "thalweg.losses, or a function loss(prediction, target) -> (value, gradient), "
        f"got {_check.shown(value)}"
    )
