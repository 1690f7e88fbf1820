"""Stateless operations on arrays: the building blocks that `thalweg.Model` fuses.

Arrays are row-major ``[rows, features]``, weights ``[out, in]``. Every function takes NumPy arrays
of any real dtype and strides, DLPack arrays in CPU memory, and lists. It computes in float64 when a
real argument is float64 and in float32 otherwise, returns new NumPy arrays, and passes NaN and
infinity on. ``threads=0`` uses the default number of threads; results do not depend on it.

Wrong shapes or values raise ValueError, wrong dtypes TypeError, before anything is computed.

Examples
--------
>>> import numpy as np
>>> from thalweg import ops
>>> ops.dense(np.eye(2), [[1.0, 2.0], [3.0, 4.0]], [0.5, -10.0], activation="relu")
array([[1.5, 0. ],
       [2.5, 0. ]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, _core
from thalweg._description import activation_table, loss_table, optimizer_table

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    ArrayLike = npt.ArrayLike

__all__ = [
    "activation",
    "activation_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "clip_by_global_norm",
    "dense",
    "dense_backward",
    "dropout",
    "gemm",
    "loss",
    "maxout",
    "maxout_backward",
    "optimizer_step",
    "softmax",
    "softmax_cross_entropy",
]


def _parameter(where: str, table: Mapping[str, Any], name: str, value: float | None) -> float:
    """The parameter of a listed activation or loss, or its default."""
    rows = table[_check.choice(where, "name", name, table)]["parameters"]
    if not rows:
        if value is not None:
            raise ValueError(f"[{where}] expected no parameter for {name!r}, got {value!r}")
        return 0.0
    ((keyword, row),) = rows.items()
    if value is None:
        return float(row["default"])
    return _check.real(where, keyword, value, row["lowest"], row["highest"])


def _threads(where: str, threads: int) -> int:
    return _check.integer(where, "threads", threads, 0)


def gemm(a: ArrayLike, b: ArrayLike, *, form: str = "forward", threads: int = 0) -> Array:
    """Matrix product in one of the three forms of a dense layer.

    Parameters
    ----------
    a, b : array
        Two-dimensional.
    form : str, default "forward"
        "forward": a ``[M, K]`` times the transpose of b ``[N, K]``; "dgrad": a ``[M, K]`` times b
        ``[K, N]``; "wgrad": the transpose of a ``[K, M]`` times b ``[K, N]``.

    Returns
    -------
    array ``[M, N]``

    Examples
    --------
    >>> gemm([[1.0, 2.0]], [[3.0, 4.0]])
    array([[11.]])
    """
    return _core.ops.gemm(a, b, form, _threads("gemm", threads))


def dense(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "identity",
    parameter: float | None = None,
    threads: int = 0,
) -> Array:
    """Affine function and activation: phi(x W' + b).

    Parameters
    ----------
    x : array ``[rows, in]``
    weight : array ``[out, in]``
    bias : array ``[out]``, optional
    activation : str, default "identity"
        Name of phi.
    parameter : float, optional
        Slope or alpha of phi; None takes its default.

    Returns
    -------
    array ``[rows, out]``
    """
    value = _parameter("dense", activation_table(), activation, parameter)
    return _core.ops.dense(x, weight, bias, activation, value, _threads("dense", threads))


def dense_backward(
    x: ArrayLike, weight: ArrayLike, dy: ArrayLike, *, threads: int = 0
) -> tuple[Array, Array, Array]:
    """Gradients of `dense` with the identity.

    Parameters
    ----------
    x : array ``[rows, in]``
    weight : array ``[out, in]``
    dy : array ``[rows, out]``
        Gradient with respect to the output.

    Returns
    -------
    dx ``[rows, in]``, dweight ``[out, in]``, dbias ``[out]``
    """
    return _core.ops.dense_backward(x, weight, dy, _threads("dense_backward", threads))


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    eps: float = 1e-5,
    threads: int = 0,
) -> tuple[Array, Array, Array]:
    """Normalize with the statistics of the batch (Ioffe and Szegedy 2015).

    y = gamma (x - mean) / sqrt(var + eps) + beta for every column.

    Parameters
    ----------
    x : array ``[rows, width]``, at least two rows
    gamma, beta : array ``[width]``
    sample_weight : array ``[rows]``, optional
        Weights of the rows in mean and variance.
    eps : float, default 1e-5

    Returns
    -------
    y ``[rows, width]``, mean ``[width]``, var ``[width]`` (biased)
    """
    eps = _check.real("batch_norm", "eps", eps, 0.0)
    return _core.ops.batch_norm(x, gamma, beta, sample_weight, eps, _threads("batch_norm", threads))


def batch_norm_inference(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    eps: float = 1e-5,
    threads: int = 0,
) -> Array:
    """Normalize with given statistics: y = gamma (x - mean) / sqrt(var + eps) + beta.

    Parameters
    ----------
    x : array ``[rows, width]``
    gamma, beta, mean, var : array ``[width]``
    eps : float, default 1e-5

    Returns
    -------
    array ``[rows, width]``
    """
    eps = _check.real("batch_norm_inference", "eps", eps, 0.0)
    count = _threads("batch_norm_inference", threads)
    return _core.ops.batch_norm_inference(x, gamma, beta, mean, var, eps, count)


def batch_norm_backward(
    x: ArrayLike,
    gamma: ArrayLike,
    dy: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    eps: float = 1e-5,
    threads: int = 0,
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm`, through its statistics too.

    Parameters
    ----------
    x, dy : array ``[rows, width]``
    gamma : array ``[width]``
    sample_weight : array ``[rows]``, optional
    eps : float, default 1e-5

    Returns
    -------
    dx ``[rows, width]``, dgamma ``[width]``, dbeta ``[width]``
    """
    eps = _check.real("batch_norm_backward", "eps", eps, 0.0)
    count = _threads("batch_norm_backward", threads)
    return _core.ops.batch_norm_backward(x, gamma, dy, sample_weight, eps, count)


def activation(
    name: str, z: ArrayLike, *, parameter: float | None = None, threads: int = 0
) -> Array:
    """An activation function of the list, elementwise.

    Parameters
    ----------
    name : str
        "identity", "relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus".
    z : array ``[rows, width]``
    parameter : float, optional
        Slope of leaky_relu, alpha of elu; None takes the default.

    Returns
    -------
    array ``[rows, width]``

    Examples
    --------
    >>> activation("leaky_relu", [[-1.0, 2.0]], parameter=0.5)
    array([[-0.5,  2. ]])
    """
    value = _parameter("activation", activation_table(), name, parameter)
    return _core.ops.activation(name, z, value, _threads("activation", threads))


def activation_backward(
    name: str, z: ArrayLike, dy: ArrayLike, *, parameter: float | None = None, threads: int = 0
) -> Array:
    """Gradient of `activation`: dy times its derivative at z.

    Parameters
    ----------
    name : str
        As for `activation`.
    z, dy : array ``[rows, width]``
    parameter : float, optional

    Returns
    -------
    array ``[rows, width]``
    """
    value = _parameter("activation_backward", activation_table(), name, parameter)
    count = _threads("activation_backward", threads)
    return _core.ops.activation_backward(name, z, dy, value, count)


def dropout(
    x: ArrayLike,
    p: float,
    *,
    seed: int = 0,
    step: int = 0,
    stream: int = 0,
    first_row: int = 0,
    threads: int = 0,
) -> Array:
    """Multiply by a random mask of 0 (probability p) and 1 / (1 - p); its own backward pass.

    Element (r, c) is decided by Philox4x32-10 at element ``(first_row + r) * width + c``.

    Parameters
    ----------
    x : array ``[rows, width]``
    p : float
        0 <= p < 1.
    seed, step : int, default 0
        64 bits each.
    stream : int, default 0
        16 bits.
    first_row : int, default 0
        Row of the whole minibatch where x begins.

    Returns
    -------
    array ``[rows, width]``
    """
    p = _check.real("dropout", "p", p, 0.0, 1.0)
    if p == 1.0:
        raise ValueError("[dropout] expected p < 1, got 1.0")
    limits = {"seed": (seed, 2**64), "step": (step, 2**64), "stream": (stream, 2**16)}
    for name, (value, limit) in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(
                f"[dropout] expected {name} to be an integer, got {_check.shown(value)}"
            )
        if not 0 <= value < limit:
            raise ValueError(f"[dropout] expected {name} in [0, {limit}), got {value}")
    first = _check.integer("dropout", "first_row", first_row, 0)
    count = _threads("dropout", threads)
    return _core.ops.dropout(x, p, int(seed), int(step), int(stream), first, count)


def maxout(z: ArrayLike, pieces: int, *, threads: int = 0) -> Array:
    """Maximum over groups of `pieces` neighbouring columns (Goodfellow et al. 2013).

    Parameters
    ----------
    z : array ``[rows, units * pieces]``
    pieces : int
        At least 1.

    Returns
    -------
    array ``[rows, units]``

    Examples
    --------
    >>> maxout([[1.0, 5.0, 3.0, 2.0]], 2)
    array([[5., 3.]])
    """
    count = _check.integer("maxout", "pieces", pieces, 1)
    return _core.ops.maxout(z, count, _threads("maxout", threads))


def maxout_backward(z: ArrayLike, dy: ArrayLike, pieces: int, *, threads: int = 0) -> Array:
    """Gradient of `maxout`: dy at the first maximum of each group, zero elsewhere.

    Parameters
    ----------
    z : array ``[rows, units * pieces]``
    dy : array ``[rows, units]``
    pieces : int

    Returns
    -------
    array ``[rows, units * pieces]``
    """
    count = _check.integer("maxout_backward", "pieces", pieces, 1)
    return _core.ops.maxout_backward(z, dy, count, _threads("maxout_backward", threads))


def softmax(logits: ArrayLike, *, threads: int = 0) -> Array:
    """exp(z) / sum(exp(z)) of every row, finite for any finite logits.

    Parameters
    ----------
    logits : array ``[rows, classes]``

    Returns
    -------
    array ``[rows, classes]``
    """
    return _core.ops.softmax(logits, _threads("softmax", threads))


def softmax_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    threads: int = 0,
) -> tuple[float, Array]:
    """Weighted mean of log(sum(exp(z))) - z[label], and its gradient.

    Parameters
    ----------
    logits : array ``[rows, classes]``
    target : array ``[rows]`` of integers in [0, classes), or probabilities ``[rows, classes]``
    sample_weight : array ``[rows]``, optional
    label_smoothing : float, default 0.0

    Returns
    -------
    value : float
    gradient : array ``[rows, classes]``
    """
    where = "softmax_cross_entropy"
    smoothing = _check.real(where, "label_smoothing", label_smoothing, 0.0, 1.0)
    count = _threads(where, threads)
    return _core.ops.softmax_cross_entropy(logits, target, sample_weight, smoothing, count)


def loss(
    name: str,
    output: ArrayLike,
    target: ArrayLike,
    *,
    parameter: float | None = None,
    reduction: str = "batch_mean",
    sample_weight: ArrayLike | None = None,
    threads: int = 0,
) -> tuple[float, Array]:
    """An elementwise loss of the list, and its gradient with respect to the output.

    Parameters
    ----------
    name : str
        "squared_error", "huber", "binary_cross_entropy", "logistic" or "exponential".
    output, target : array ``[rows, out]``
    parameter : float, optional
        delta of huber; None takes the default.
    reduction : str, default "batch_mean"
        "batch_mean", "sum" or "element_mean".
    sample_weight : array ``[rows]``, optional

    Returns
    -------
    value : float
    gradient : array ``[rows, out]``

    Examples
    --------
    >>> loss("squared_error", [[1.0], [3.0]], [[0.0], [0.0]])
    (5.0, array([[1.],
           [3.]]))
    """
    value = _parameter("loss", loss_table(), name, parameter)
    reductions = ("batch_mean", "sum", "element_mean")
    chosen = _check.choice("loss", "reduction", reduction, reductions)
    count = _threads("loss", threads)
    return _core.ops.elementwise_loss(name, output, target, value, chosen, sample_weight, count)


def optimizer_step(
    name: str,
    p: ArrayLike,
    g: ArrayLike,
    slots: Sequence[ArrayLike] | None = None,
    *,
    t: int,
    next_hyper: Mapping[str, float] | None = None,
    threads: int = 0,
    **hyper: float,
) -> tuple[Array, tuple[Array, ...]]:
    """One update of a flat vector of parameters.

    Parameters
    ----------
    name : str
        "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "rmsprop_nesterov", "adadelta", "adam"
        or "adamw"; the formulas are in `thalweg.optim`.
    p, g : array ``[n]``
        Parameters and gradient.
    slots : sequence of array ``[n]``, optional
        State of the optimizer; zeros when None.
    t : int
        Number of this update, from 1.
    next_hyper : mapping, optional
        Hyper-parameters of update t + 1 where they differ; look-ahead methods use its momentum.
    **hyper : float
        Hyper-parameters by name; missing ones take their defaults.

    Returns
    -------
    p : array ``[n]``
    slots : tuple of array ``[n]``

    Examples
    --------
    >>> optimizer_step("momentum", np.zeros(2), np.ones(2), t=1, lr=0.5)[0]
    array([-0.5, -0.5])
    """
    where = "optimizer_step"
    table = optimizer_table()
    entry = table[_check.choice(where, "name", name, table)]
    rows = entry["parameters"]

    def values(given: Mapping[str, float], defaults: Mapping[str, float]) -> list[float]:
        for key in given:
            _check.choice(where, "a hyper-parameter", key, rows)
        merged = {**defaults, **given}
        return [
            float(_check.flag(where, key, merged[key]))
            if row["kind"] == "flag"
            else _check.real(where, key, merged[key], row["lowest"], row["highest"])
            for key, row in rows.items()
        ]

    defaults = {
        key: bool(row["default"]) if row["kind"] == "flag" else row["default"]
        for key, row in rows.items()
    }
    now = values(hyper, defaults)
    then = values(next_hyper or {}, {**defaults, **hyper})
    given = [np.zeros(np.shape(p)) for _ in entry["slots"]] if slots is None else list(slots)
    if len(given) != len(entry["slots"]):
        raise ValueError(
            f"[{where}] expected {len(entry['slots'])} slots for {name!r} "
            f"({', '.join(entry['slots']) or 'none'}), got {len(given)}"
        )
    update = _check.integer(where, "t", t, 1)
    count = _threads(where, threads)
    return _core.ops.optimizer_step(name, now, then, update, p, g, given, count)


def clip_by_global_norm(g: ArrayLike, max_norm: float, *, threads: int = 0) -> tuple[Array, float]:
    """Scale a gradient down to a norm of at most `max_norm` (Pascanu et al. 2013).

    Parameters
    ----------
    g : array ``[n]``
    max_norm : float
        > 0.

    Returns
    -------
    clipped : array ``[n]``
    norm : float
        Euclidean norm of g, computed in float64.

    Examples
    --------
    >>> clip_by_global_norm(np.array([3.0, 4.0]), 1.0)
    (array([0.6, 0.8]), 5.0)
    """
    limit = _check.real("clip_by_global_norm", "max_norm", max_norm, 0.0)
    return _core.ops.clip_by_global_norm(g, limit, _threads("clip_by_global_norm", threads))
