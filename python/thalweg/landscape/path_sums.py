"""Sums over the paths of a network: the path norm and the scales of Path-SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thalweg import _check, _core
from thalweg.model import Model

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    ArrayLike = npt.ArrayLike

__all__ = ["path_norm", "path_scales"]


def path_norm(
    model: Model, *, p: float = 2.0, theta: ArrayLike | None = None, biases: bool = True
) -> float:
    """The path norm: (sum over all paths of the product of their abs(w)^p)^(1/p).

    A path goes from an input, or from a bias, to an output. Activations and dropout do not count, a
    residual addition adds paths, and the pieces of a maxout unit are paths of their own. The norm
    does not change when the weights into a rectifier unit are multiplied by a number and those out
    of it divided by it, which leaves the network as it is (Neyshabur, Salakhutdinov, Srebro, *Path-
    SGD*, 2015).

    Parameters
    ----------
    model : Model
    p : float, default 2
        Larger than 0.
    theta : array ``[num_parameters]``, optional
        None: the model's parameters.
    biases : bool, default True
        Whether paths begin at biases too.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For networks with batch norm, where paths have no weights.

    Examples
    --------
    >>> import thalweg as tw
    >>> from thalweg import nn
    >>> network = [nn.Dense(2, bias=False), nn.ReLU(), nn.Dense(1, bias=False)]
    >>> model = tw.Model(network, 1, "squared_error", dtype="float64")
    >>> path_norm(model, theta=[1.0, 2.0, 3.0, 2.0])
    5.0
    """
    exponent = _exponent("path_norm", p)
    at = _point("path_norm", model, theta)
    return _core.path_norm(model._core, at, exponent, _check.flag("path_norm", "biases", biases))


def path_scales(model: Model, *, p: float = 2.0, theta: ArrayLike | None = None) -> Array:
    """The scales kappa by which Path-SGD divides the gradient (same paper).

    For a weight from unit u to unit v, kappa is (in_u out_v)^(2/p), with the sums of abs(w)^p over
    the paths that lead to u and from v on; in_u is 1 for a bias. For p = 2 it is the derivative of
    the squared path norm, divided by 2 w. It is 0 for weights on dead paths, which Path-SGD leaves
    alone.

    Parameters
    ----------
    model : Model
    p : float, default 2
        Larger than 0.
    theta : array ``[num_parameters]``, optional
        None: the model's parameters.

    Returns
    -------
    array ``[num_parameters]`` of the model's dtype

    Raises
    ------
    ValueError
        For networks with batch norm.

    Examples
    --------
    >>> import thalweg as tw
    >>> from thalweg import nn
    >>> network = [nn.Dense(2, bias=False), nn.ReLU(), nn.Dense(1, bias=False)]
    >>> model = tw.Model(network, 1, "squared_error", dtype="float64")
    >>> path_scales(model, theta=[1.0, 2.0, 3.0, 2.0])
    array([9., 4., 1., 4.])
    """
    exponent = _exponent("path_scales", p)
    at = _point("path_scales", model, theta)
    return _core.path_scales(model._core, at, exponent)


def _exponent(where: str, p: float) -> float:
    value = _check.real(where, "p", p)
    if value <= 0.0:
        raise ValueError(f"[{where}] expected p > 0, got {value!r}")
    return value


def _point(where: str, model: Model, theta: ArrayLike | None) -> Array | None:
    _check.instance(where, "model", model, Model, "a thalweg.Model")
    if theta is None:
        return None
    return model._values(where, "theta", theta, (model.num_parameters,))
