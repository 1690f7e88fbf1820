"""Gradients and activations: where a network learns, and where it has gone silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, _fit
from thalweg.landscape import _arguments
from thalweg.landscape._result import Result

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike, Model

PERCENTILES = (15, 50, 85)


@dataclass(frozen=True, eq=False)
class GradientDiagnostics(Result):
    """The gradient of a model on a data set.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of `Model.layout`.
    norms : float64 array ``[parameters]``
        Euclidean norm of the gradient by each of them.
    parameter_norms : float64 array ``[parameters]``
    loss, norm : float
        Loss and norm of the whole gradient.
    standard_error : float
        Root mean square distance between the gradient of a minibatch and that of all rows.
    batch_size, draws : int
        Rows of a minibatch, and how many were drawn.
    """

    names: tuple[str, ...]
    norms: Array
    parameter_norms: Array
    loss: float
    norm: float
    standard_error: float
    batch_size: int
    draws: int

    @property
    def noise_scale(self) -> float:
        """Rows at which noise and gradient are of the same size: batch_size (SE / norm)^2.

        McCandlish et al., *An empirical model of large-batch training*, 2018.
        """
        if self.norm == 0.0:
            return float("inf")
        return self.batch_size * (self.standard_error / self.norm) ** 2

    def _draw(self, axes: Any) -> None:
        places = np.arange(len(self.names))
        axes.barh(places, self.norms)
        axes.set_yticks(places, self.names)
        axes.invert_yaxis()
        axes.set(xlabel="norm of the gradient")


def gradient_diagnostics(
    model: Model,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batch_size: int = 32,
    draws: int = 100,
    seed: int = 0,
    training: bool = True,
) -> GradientDiagnostics:
    """Norms of the gradient by parameter, and the standard error of a minibatch.

    The standard error sqrt(mean |g_b - g|^2) over minibatches b, whose rows are drawn with
    replacement, is sqrt(tr(C) / batch_size) with the covariance C of the gradients of single rows.

    Parameters
    ----------
    model : Model
        Is not changed.
    x : array ``[rows, in_features]``
    y : array ``[rows]`` or ``[rows, out_features]``
    batch_size : int, default 32
        At least 2 with batch norm.
    draws : int, default 100
        Minibatches.
    seed : int, default 0
    training : bool, default True
        Batch statistics and dropout, as `Model.loss_and_grad`.

    Returns
    -------
    GradientDiagnostics

    Raises
    ------
    NonFiniteError
        When the gradient of all rows is not finite.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1, bias=False), 1, "squared_error", dtype="float64")
    >>> model.set_parameters([1.0])
    >>> found = gradient_diagnostics(model, [[1.0], [1.0]], [0.0, 2.0], batch_size=1)
    >>> found.norm, found.standard_error
    (0.0, 2.0)
    """
    where = "gradient_diagnostics"
    _arguments.model(where, model)
    size = _check.integer(where, "batch_size", batch_size, 1)
    count = _check.integer(where, "draws", draws, 1)
    rng = np.random.default_rng(_check.integer(where, "seed", seed, 0))
    inputs, targets = np.asarray(x), np.asarray(y)
    rows = _fit.rows_of(inputs)
    if not rows:
        raise ValueError(f"[{where}] expected at least one row, got none")
    loss, gradient = model.loss_and_grad(inputs, targets, training=training)[:2]
    full = gradient.astype(np.float64)
    _arguments.all_finite(where, "loss and gradient", np.append(full, loss))
    scale = rows / size if model.sums_loss else 1.0
    squares = np.empty(count)
    for i in range(count):
        chosen = rng.integers(0, rows, size)
        batch = model.loss_and_grad(inputs[chosen], targets[chosen], training=training)[1]
        squares[i] = np.sum((scale * batch.astype(np.float64) - full) ** 2)
    values = model.parameters.astype(np.float64)
    names, norms, parameter_norms = [], [], []
    for name, offset, shape in model.layout():
        here = slice(offset, offset + int(np.prod(shape)))
        names.append(name)
        norms.append(float(np.linalg.norm(full[here])))
        parameter_norms.append(float(np.linalg.norm(values[here])))
    return GradientDiagnostics(
        tuple(names),
        np.array(norms),
        np.array(parameter_norms),
        float(loss),
        float(np.linalg.norm(full)),
        float(np.sqrt(squares.mean())),
        size,
        count,
    )


@dataclass(frozen=True, eq=False)
class ActivationDiagnostics(Result):
    """Outputs of every top-level layer over a data set.

    Attributes
    ----------
    layers : tuple of str
        Number and type of each layer.
    percentiles : float64 array ``[layers, 3]``
        15th, 50th and 85th percentile over rows and units.
    mean, std : float64 arrays ``[layers]``
    zeros : float64 array ``[layers]``
        Share of outputs that are exactly 0.
    dead : int64 array ``[layers]``
        Units whose output is 0 for every row.
    width : int64 array ``[layers]``
    """

    layers: tuple[str, ...]
    percentiles: Array
    mean: Array
    std: Array
    zeros: Array
    dead: Array
    width: Array

    def _draw(self, axes: Any) -> None:
        places = np.arange(len(self.layers))
        axes.fill_between(places, self.percentiles[:, 0], self.percentiles[:, 2], alpha=0.3)
        axes.plot(places, self.percentiles[:, 1], "o-")
        axes.set_xticks(places, self.layers, rotation=60)
        axes.set(ylabel="outputs, 15th to 85th percentile")


def activation_diagnostics(
    model: Model, x: ArrayLike, *, training: bool = False
) -> ActivationDiagnostics:
    """Percentiles 15, 50 and 85 of the outputs of every layer, and its dead units.

    The percentiles are those with which Ioffe and Szegedy 2015 (Figure 1) follow a network that
    trains: well-scaled layers keep them apart and in place.

    Parameters
    ----------
    model : Model
        Is not changed.
    x : array ``[rows, in_features]``
    training : bool, default False
        Batch statistics and dropout, as `Model.activations`.

    Returns
    -------
    ActivationDiagnostics

    Raises
    ------
    NonFiniteError
        When outputs are not finite; `layer` is the first such layer.

    Examples
    --------
    >>> import thalweg as tw
    >>> network = tw.nn.Sequential(tw.nn.Dense(2), tw.nn.ReLU())
    >>> model = tw.Model(network, 1, "squared_error")
    >>> model.set_parameters([1.0, -1.0, 0.0, 0.0])
    >>> activation_diagnostics(model, [[1.0], [2.0]]).dead
    array([0, 1])
    """
    where = "activation_diagnostics"
    outputs = _arguments.model(where, model).activations(x, training=training)
    names = tuple(f"{i} {layer.type}" for i, layer in enumerate(model.network))
    if not outputs[0].size:
        raise ValueError(f"[{where}] expected at least one row, got none")
    values = [output.astype(np.float64) for output in outputs]
    for i, output in enumerate(values):
        _arguments.all_finite(where, "outputs of every layer", output, f"layers.{i}")
    return ActivationDiagnostics(
        names,
        np.array([np.percentile(v, PERCENTILES) for v in values]),
        np.array([v.mean() for v in values]),
        np.array([v.std() for v in values]),
        np.array([np.mean(v == 0.0) for v in values]),
        np.array([np.sum(np.all(v == 0.0, axis=0)) for v in values], dtype=np.int64),
        np.array([v.shape[1] for v in values], dtype=np.int64),
    )
