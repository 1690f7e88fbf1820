"""Margins: by how much rows are on the right side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.landscape import _arguments
from thalweg.landscape._result import Result

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike, Model

_NORMS = (1.0, 2.0, np.inf)


@dataclass(frozen=True, eq=False)
class Margins(Result):
    """Margins of the rows of a data set.

    Attributes
    ----------
    values : float64 array ``[rows]``
        Negative where the decision is wrong.
    norm : float
        The norm of the weights that the margins are divided by: 1, 2 or infinity; NaN for the
        margins of outputs, which are not divided.
    """

    values: Array
    norm: float

    @property
    def margin(self) -> float:
        """The least of the rows: positive when all are right."""
        return float(self.values.min())

    @property
    def errors(self) -> float:
        """Share of rows that are wrong or undecided."""
        return float(np.mean(self.values <= 0.0))

    @property
    def support(self) -> Array:
        """Indices of the rows whose margin is within 1e-3 (relative) of the least."""
        near = self.margin + 1e-3 * abs(self.margin)
        return np.flatnonzero(self.values <= near)

    def _draw(self, axes: Any) -> None:
        axes.hist(self.values, bins=50)
        axes.axvline(0.0, color="grey", linewidth=0.8)
        axes.set(xlabel="margin", ylabel="rows")


def linear_margins(weights: ArrayLike, x: ArrayLike, y: ArrayLike, *, norm: float = 2.0) -> Margins:
    """Margins of a linear classifier, divided by a norm of its weights.

    Two classes: y <w, x> / |w|, with labels -1 and +1. Several: (w_y - max over k != y of w_k) . x
    / |W|, with the entrywise norm of the whole matrix (Crammer and Singer 2001; for norm 2 the
    direction that gradient descent on cross-entropy finds, Soudry et al. 2018). A margin in norm p
    is the distance to the boundary measured in the dual norm: 1 is dual to infinity, 2 to itself.

    Parameters
    ----------
    weights : array ``[features]`` or ``[classes, features]``
        Not zero; there is no bias, append a column of ones to x for one.
    x : array ``[rows, features]``
    y : array ``[rows]``
        -1 or +1; or integer labels when the weights have a row per class.
    norm : float, default 2
        1, 2 or ``numpy.inf``.

    Returns
    -------
    Margins

    Examples
    --------
    >>> found = linear_margins([3.0, 4.0], [[1.0, 1.0], [-1.0, 0.0]], [1, -1])
    >>> found.values, found.margin
    (array([1.4, 0.6]), 0.6)
    """
    where = "linear_margins"
    w = _arguments.reals(where, "weights", weights)
    rows = _arguments.reals(where, "x", x, 2)
    if isinstance(norm, bool) or norm not in _NORMS:
        raise ValueError(f"[{where}] expected norm to be one of 1, 2, inf, got {norm!r}")
    if w.ndim not in (1, 2) or w.shape[-1] != rows.shape[1]:
        raise ValueError(
            f"[{where}] expected weights [features] or [classes, features] with x.shape[1] "
            f"({rows.shape[1]}) features, got shape {w.shape}"
        )
    size = float(np.linalg.norm(w.ravel(), norm))
    if size == 0.0:
        raise ValueError(f"[{where}] expected weights that are not zero, got zeros")
    if w.ndim == 2:
        return Margins(_above_others(where, rows @ w.T, y) / size, float(norm))
    return Margins(_signed(where, rows @ w, y) / size, float(norm))


def output_margins(model: Model, x: ArrayLike, y: ArrayLike) -> Margins:
    """Margins of a network's outputs: z_y - max of the others, or t z for losses with a sign.

    Parameters
    ----------
    model : Model
        With a loss that has classes.
    x : array ``[rows, in_features]``
    y : array ``[rows]``
        Labels; as the loss wants them.

    Returns
    -------
    Margins
        Not divided by any norm.

    Raises
    ------
    NonFiniteError
        When outputs are not finite: their rows would be neither right nor wrong.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(3, bias=False), 1)
    >>> model.set_parameters([1.0, 2.0, 5.0])
    >>> output_margins(model, [[1.0], [1.0]], [2, 1]).values
    array([ 3., -3.])
    """
    where = "output_margins"
    outputs = _arguments.model(where, model).predict(x).astype(np.float64)
    _arguments.all_finite(where, "outputs", outputs)
    kind = model.description["loss"]["type"]
    if kind == "cross_entropy":
        return Margins(_above_others(where, outputs, y), float("nan"))
    if kind not in ("binary_cross_entropy", "logistic", "exponential") or outputs.shape[1] != 1:
        raise ValueError(
            f"[{where}] expected cross_entropy, or a binary loss with one output, got {kind} with "
            f"{outputs.shape[1]}"
        )
    signs = _arguments.reals(where, "y", y).ravel()
    if kind == "binary_cross_entropy":
        signs = 2.0 * signs - 1.0
    return Margins(_signed(where, outputs[:, 0], signs), float("nan"))


def _above_others(where: str, outputs: Array, y: Any) -> Array:
    labels = np.asarray(y)
    rows, classes = outputs.shape
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"[{where}] expected integer labels y [{rows}], got shape {labels.shape} and dtype "
            f"{labels.dtype}"
        )
    if classes < 2 or (rows and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"[{where}] expected labels in [0, {classes}) of at least 2 classes")
    _some_rows(where, rows)
    own = outputs[np.arange(rows), labels]
    others = outputs.copy()
    others[np.arange(rows), labels] = -np.inf
    margins: Array = own - others.max(axis=1)
    return margins


def _signed(where: str, outputs: Array, y: Any) -> Array:
    signs = _arguments.reals(where, "y", y)
    if signs.shape != outputs.shape or not np.isin(signs, (-1.0, 1.0)).all():
        raise ValueError(
            f"[{where}] expected labels -1 or +1 with shape {outputs.shape}, got shape "
            f"{signs.shape}"
        )
    _some_rows(where, len(outputs))
    return signs * outputs


def _some_rows(where: str, rows: int) -> None:
    if not rows:
        raise ValueError(f"[{where}] expected at least one row, got none")
