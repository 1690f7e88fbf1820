"""Sharpness: how much the loss can rise in a small neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check
from thalweg.errors import NonFiniteError
from thalweg.landscape import _arguments
from thalweg.landscape._result import NOT_JSON, Result
from thalweg.objective import Objective

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike

_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class WorstRise(Result):
    """The largest rise of the loss that was found within a ball.

    Attributes
    ----------
    rise : float
        J(theta + d) - J(theta), at least 0: a lower bound of the true maximum.
    loss : float
        J(theta).
    direction : float64 array ``[num_parameters]``
        d.
    radius : float
    norm : float
        2 or infinity: the shape of the ball.
    converged : bool
        Whether `residual` reached the tolerance.
    residual : float
        Relative Frank-Wolfe gap max <g, d' - d> / (radius |g|*) over the d' of the ball: 0 exactly
        where no direction leads up.
    iterations : int
        Gradients computed, all starts together.
    starts : float64 array ``[starts]``
        The rise that each start reached.
    """

    rise: float
    loss: float
    direction: Array = field(repr=False, metadata=NOT_JSON)
    radius: float
    norm: float
    converged: bool
    residual: float
    iterations: int
    starts: Array

    @property
    def keskar(self) -> float:
        """100 rise / (1 + loss), the sharpness of Keskar et al. 2017."""
        return 100.0 * self.rise / (1.0 + self.loss)

    def _draw(self, axes: Any) -> None:
        axes.plot(np.arange(len(self.starts)), self.starts, "o")
        axes.set(xlabel="start", ylabel="rise of the loss", ylim=(0.0, None))


def worst_rise(
    objective: Objective,
    radius: float = 0.05,
    *,
    theta: ArrayLike | None = None,
    norm: float = 2.0,
    starts: int = 3,
    iterations: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> WorstRise:
    """The worst rise of the loss within a ball, max over |d| <= radius of J(theta + d) - J(theta).

    Each iteration moves to the point of the ball that the gradient prefers, radius g / |g| for norm
    2 and radius sign(g) for infinity, or to a point between where that would not climb. The first
    start is the gradient's own direction, which alone is the rise of sharpness-aware minimization
    (Foret et al. 2021); the others are random. Keskar et al., *On large-batch training for deep
    learning*, 2017.

    Parameters
    ----------
    objective : Objective
        Fixes the data, and batch statistics or frozen ones.
    radius : float, default 0.05
        Larger than 0.
    theta : array ``[num_parameters]``, optional
        The centre; None: the model's parameters.
    norm : float, default 2
        2 or ``numpy.inf``.
    starts : int, default 3
    iterations : int, default 50
        Most gradients per start.
    tolerance : float, default 1e-3
        Of the residual.
    seed : int, default 0
        Of the random starts.

    Returns
    -------
    WorstRise

    Raises
    ------
    NonFiniteError
        When the loss at the centre is not finite.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1, bias=False), 1, "squared_error", dtype="float64")
    >>> objective = tw.Objective(model, [[1.0]], [0.0])
    >>> found = worst_rise(objective, 0.5, theta=[1.0])
    >>> found.rise, found.converged
    (1.25, True)
    """
    where = "worst_rise"
    _check.instance(where, "objective", objective, Objective, "a thalweg.Objective")
    size = objective._model.num_parameters
    values = objective._model.parameters if theta is None else theta
    center = _arguments.vector(where, "theta", values, size)
    radius = _check.real(where, "radius", radius, 0.0)
    if radius == 0.0:
        raise ValueError(f"[{where}] expected radius > 0, got 0")
    if norm not in (2.0, np.inf):
        raise ValueError(f"[{where}] expected norm 2 or inf, got {norm!r}")
    count = _check.integer(where, "starts", starts, 1)
    limit = _check.integer(where, "iterations", iterations, 1)
    tolerance = _check.real(where, "tolerance", tolerance, 0.0)
    rng = np.random.default_rng(_check.integer(where, "seed", seed, 0))
    climb = _Climb(objective, center, radius, float(norm), limit, tolerance)
    best: tuple[float, Array, float] | None = None
    reached = np.zeros(count)
    for i in range(count):
        first = climb.gradient if i == 0 and np.any(climb.gradient) else rng.standard_normal(size)
        found = climb.run(climb.farthest(first))
        reached[i] = found[0]
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    rise, direction, residual = best
    return WorstRise(
        rise,
        climb.loss,
        direction,
        radius,
        float(norm),
        residual <= tolerance,
        residual,
        climb.gradients,
        reached,
    )


class _Climb:
    """Ascent within one ball."""

    def __init__(
        self,
        objective: Objective,
        center: Array,
        radius: float,
        norm: float,
        limit: int,
        tolerance: float,
    ) -> None:
        self._objective, self._center = objective, center
        self._radius, self._norm = radius, norm
        self._limit, self._tolerance = limit, tolerance
        self.gradients = 1
        loss, gradient = objective.value_and_grad(center)
        self.loss, self.gradient = float(loss), np.asarray(gradient, dtype=np.float64)
        if not (np.isfinite(self.loss) and np.isfinite(self.gradient).all()):
            raise NonFiniteError("[worst_rise] expected a finite loss at the centre, got none")

    def farthest(self, direction: Array) -> Array:
        """The point of the ball that is farthest in a direction."""
        if self._norm == 2.0:
            return direction * (self._radius / float(np.linalg.norm(direction)))
        return self._radius * np.sign(direction)

    def _dual(self, gradient: Array) -> float:
        return float(np.linalg.norm(gradient, 2 if self._norm == 2.0 else 1))

    def _value(self, d: Array) -> float:
        rise = float(self._objective.value(self._center + d)) - self.loss
        return rise if np.isfinite(rise) else np.inf

    def run(self, d: Array) -> tuple[float, Array, float]:
        """Rise, point and residual where an ascent from `d` ends."""
        rise, residual = self._value(d), np.inf
        for _ in range(self._limit):
            if not np.isfinite(rise):
                return rise, d, residual
            gradient = self._objective.grad(self._center + d).astype(np.float64)
            self.gradients += 1
            size = self._dual(gradient)
            if not np.isfinite(size):
                residual = np.inf
                break
            if size == 0.0:
                residual = 0.0
                break
            target = self.farthest(gradient)
            residual = float(gradient @ (target - d)) / (self._radius * size)
            if residual <= self._tolerance:
                break
            step = 1.0
            for _ in range(_HALVINGS):
                candidate = d + step * (target - d)
                higher = self._value(candidate)
                if higher > rise:
                    d, rise = candidate, higher
                    break
                step /= 2.0
            else:
                break
        if rise < 0.0:
            return 0.0, np.zeros_like(d), float(np.any(self.gradient))
        return rise, d, residual
