"""The curvature of a loss: extreme eigenvalues, spectra, critical points, and what they predict.

Formulas: `docs/landscape.md`. Everything rests on products with the Hessian, which `Objective`
gives exactly; the Krylov methods run in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, _core, optim
from thalweg._minimize import MinimizeProgress, minimize
from thalweg.errors import NonFiniteError
from thalweg.landscape import _arguments
from thalweg.landscape._result import NOT_JSON, Result
from thalweg.objective import Objective

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike

__all__ = [
    "CriticalPoint",
    "Eigenpairs",
    "GradientFlow",
    "SpectralDensity",
    "StepPrediction",
    "critical_point",
    "eigenpairs",
    "find_critical_point",
    "gradient_flow",
    "predict_step",
    "spectral_density",
]

_MATRICES = ("hessian", "gauss_newton")


def _operator(
    where: str, operator: Any, theta: Any, n: Any, matrix: Any
) -> tuple[Callable[[Array], Array], int]:
    """Products with a matrix, as a function of float64 vectors, and its dimension."""
    _check.choice(where, "matrix", matrix, _MATRICES)
    if isinstance(operator, Objective):
        if n is not None:
            raise ValueError(f"[{where}] expected no n with an objective, got {n!r}")
        product = operator.hvp if matrix == "hessian" else operator.ggnvp
        at = None if theta is None else _point(where, operator, theta)
        return (
            lambda v: np.asarray(product(v, at), dtype=np.float64),
            operator.num_parameters,
        )
    if not callable(operator):
        raise TypeError(
            f"[{where}] expected operator to be a thalweg.Objective or a function v -> A v, got "
            f"{_check.shown(operator)}"
        )
    if theta is not None or matrix != "hessian":
        raise ValueError(f"[{where}] expected neither theta nor matrix with a function, got one")
    if n is None:
        raise ValueError(f"[{where}] expected n, the dimension, with a function, got None")
    size = _check.integer(where, "n", n, 1)

    def apply(v: Array) -> Array:
        image = _check.array(where, "the result of the operator", operator(v))
        if image.dtype.kind not in "biuf" or image.shape != (size,):
            raise ValueError(
                f"[{where}] expected the operator to return {size} real numbers, got shape "
                f"{image.shape} and dtype {image.dtype}"
            )
        return image.astype(np.float64)

    return apply, size


def _point(where: str, objective: Objective, theta: Any) -> Array:
    values = objective.model.parameters if theta is None else theta
    return _arguments.vector(where, "theta", values, objective.num_parameters)


def _objective(where: str, value: Any) -> Objective:
    return _check.instance(where, "objective", value, Objective, "a thalweg.Objective")


# ---- eigenpairs ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """Extreme eigenpairs of a symmetric matrix.

    Attributes
    ----------
    values : float64 array ``[top + bottom]``
        The top ones descending, then the bottom ones ascending.
    vectors : float64 array ``[top + bottom, n]``
        Of norm 1.
    residuals : float64 array ``[top + bottom]``
        norm(A v - value v): an eigenvalue of A lies within it of the value.
    converged : bool
        Whether every residual is within the tolerance.
    top, bottom : int
        How many of each.
    products : int
        Products with the matrix.
    """

    values: Array
    vectors: Array = field(repr=False, metadata=NOT_JSON)
    residuals: Array
    converged: bool
    top: int
    bottom: int
    products: int

    @property
    def largest(self) -> float:
        """The top eigenvalue; of a Hessian at a minimum, its sharpness."""
        return float(self.values[0]) if self.top else float("nan")

    @property
    def smallest(self) -> float:
        """The bottom eigenvalue."""
        return float(self.values[self.top]) if self.bottom else float("nan")

    def escape_direction(self, gradient: ArrayLike | None = None) -> Array:
        """The eigenvector of the most negative eigenvalue, pointing downhill.

        Parameters
        ----------
        gradient : array ``[n]``, optional
            Decides the sign; without it the sign means nothing.

        Returns
        -------
        float64 array ``[n]``

        Raises
        ------
        ValueError
            When the bottom eigenvalue is not negative.
        """
        where = "escape_direction"
        if not self.bottom or self.smallest >= 0.0:
            raise ValueError(
                f"[{where}] expected a negative bottom eigenvalue, got {self.smallest:g}; there is "
                "no direction of negative curvature"
            )
        direction: Array = self.vectors[self.top].copy()
        if gradient is None:
            return direction
        slope = _arguments.vector(where, "gradient", gradient, direction.size)
        return -direction if slope @ direction > 0.0 else direction

    def _draw(self, axes: Any) -> None:
        axes.errorbar(np.arange(len(self.values)), self.values, yerr=self.residuals, fmt="o")
        axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.set(xlabel="eigenpair, top first", ylabel="eigenvalue and residual")


def eigenpairs(
    operator: Objective | Callable[[Array], ArrayLike],
    *,
    theta: ArrayLike | None = None,
    n: int | None = None,
    matrix: str = "hessian",
    top: int = 1,
    bottom: int = 1,
    method: str = "lanczos",
    max_steps: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Eigenpairs:
    """The top and bottom eigenpairs of a Hessian, or of any symmetric matrix known by products.

    Parameters
    ----------
    operator : Objective, or a function v -> A v
    theta : array ``[num_parameters]``, optional
        Where; None: at the model's parameters. For objectives.
    n : int, optional
        Dimension; for functions.
    matrix : str, default "hessian"
        "hessian" or "gauss_newton"; for objectives.
    top, bottom : int, default 1
        How many eigenpairs of the upper and of the lower end.
    method : str, default "lanczos"
        "lanczos": Lanczos' process with full reorthogonalization; finds several and multiple ones.
        "power": power iteration on A + s I for the top one and A - s I for the bottom one, s the
        running maximum of norm(A v); one of each. Without the shift it would find the eigenvalue of
        largest magnitude, which is neither.
    max_steps : int, default 100
        Most products per end (power) or in all (Lanczos).
    tolerance : float, default 1e-3
        Of a residual, relative to the largest eigenvalue's magnitude.
    seed : int, default 0
        Of the starting vector.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    NonFiniteError
        When a product is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> spectrum = np.array([-10.0, 0.1, 0.2, 0.5])
    >>> found = eigenpairs(lambda v: spectrum * v, n=4)
    >>> round(found.largest, 6), round(found.smallest, 6)
    (0.5, -10.0)
    """
    where = "eigenpairs"
    product, size = _operator(where, operator, theta, n, matrix)
    _check.choice(where, "method", method, ("lanczos", "power"))
    highest = _check.integer(where, "top", top, 0)
    lowest = _check.integer(where, "bottom", bottom, 0)
    steps = _check.integer(where, "max_steps", max_steps, 1)
    tolerance = _check.real(where, "tolerance", tolerance, 1e-15)
    seed = _check.integer(where, "seed", seed, 0)
    if method == "power" and max(highest, lowest) > 1:
        raise ValueError(
            f"[{where}] expected top and bottom <= 1 with method 'power', got {highest} and "
            f"{lowest}; 'lanczos' finds several"
        )
    power = method == "power"
    ends = [(highest, 0), (0, lowest)] if power else [(highest, lowest)]
    found = [
        _core.eigenpairs(product, size, a, b, steps, tolerance, seed, power)
        for a, b in ends
        if a + b or not power
    ]
    if not found:
        raise ValueError(f"[{where}] expected at least one eigenpair, got top=0 and bottom=0")
    return Eigenpairs(
        np.concatenate([part["values"] for part in found]),
        np.concatenate([part["vectors"].reshape(-1, size) for part in found]),
        np.concatenate([part["residuals"] for part in found]),
        all(all(part["converged"]) for part in found),
        highest,
        lowest,
        sum(part["products"] for part in found),
    )


# ---- the whole spectrum --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SpectralDensity(Result):
    """The distribution of a matrix' eigenvalues.

    Attributes
    ----------
    nodes, weights : float64 arrays
        The distribution as points with probabilities, all probes together; the weights sum to 1.
    grid, density : float64 arrays ``[points]``
        Smoothed with a normal density of standard deviation `width`.
    width : float
    n : int
        Dimension: n times a probability is a number of eigenvalues.
    standard_error : float
        Of the mean eigenvalue, from the spread over the probes; NaN with one probe.
    products : int
    """

    nodes: Array
    weights: Array
    grid: Array
    density: Array
    width: float
    n: int
    standard_error: float
    products: int

    @property
    def trace(self) -> float:
        """Estimate of the trace (Hutchinson 1990)."""
        return self.n * self.moment(1)

    def moment(self, power: int) -> float:
        """Mean of the eigenvalues to a power, tr(A^power) / n.

        Parameters
        ----------
        power : int
        """
        return float(self.weights @ self.nodes**power)

    def share_below(self, value: float) -> float:
        """Share of the eigenvalues below a value.

        Parameters
        ----------
        value : float
        """
        return float(self.weights[self.nodes < value].sum())

    def _draw(self, axes: Any) -> None:
        axes.semilogy(self.grid, np.maximum(self.density, 1e-12 * self.density.max()))
        axes.set(xlabel="eigenvalue", ylabel="density")


def spectral_density(
    operator: Objective | Callable[[Array], ArrayLike],
    *,
    theta: ArrayLike | None = None,
    n: int | None = None,
    matrix: str = "hessian",
    steps: int = 80,
    probes: int = 10,
    points: int = 400,
    width: float | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """The distribution of all eigenvalues by stochastic Lanczos quadrature.

    For a random sign vector v of norm 1, k steps of Lanczos give nodes and weights with
    v' f(A) v = sum weights f(nodes), exactly for polynomials of degree 2 k - 1; the mean over v is
    tr f(A) / n (Golub and Welsch 1969; Ubaru, Chen, Saad, *Fast estimation of tr(f(A)) via
    stochastic Lanczos quadrature*, 2017; Ghorbani, Krishnan, Xiao 2019).

    Parameters
    ----------
    operator : Objective, or a function v -> A v
    theta, n, matrix
        As in `eigenpairs`.
    steps : int, default 80
        Of Lanczos per probe.
    probes : int, default 10
        Random vectors.
    points : int, default 400
        Of the grid.
    width : float, optional
        Standard deviation of the smoothing; None takes 1/100 of the range of the nodes.
    seed : int, default 0

    Returns
    -------
    SpectralDensity

    Examples
    --------
    >>> import numpy as np
    >>> spectrum = np.repeat([0.0, 1.0], [30, 10])
    >>> found = spectral_density(lambda v: spectrum * v, n=40)
    >>> round(found.share_below(0.5), 2), round(found.trace, 2)
    (0.75, 10.0)
    """
    where = "spectral_density"
    product, size = _operator(where, operator, theta, n, matrix)
    count = _check.integer(where, "probes", probes, 1)
    grid_points = _check.integer(where, "points", points, 2)
    found = _core.spectral_quadrature(
        product,
        size,
        min(size, _check.integer(where, "steps", steps, 1)),
        count,
        _check.integer(where, "seed", seed, 0),
    )
    nodes = np.concatenate([part[0] for part in found])
    weights = np.concatenate([part[1] for part in found]) / count
    spread = float(nodes.max() - nodes.min()) or max(1.0, float(np.abs(nodes).max()))
    sigma = 0.01 * spread if width is None else _check.real(where, "width", width, 1e-300)
    grid = np.linspace(nodes.min() - 4.0 * sigma, nodes.max() + 4.0 * sigma, grid_points)
    bumps = np.exp(-0.5 * ((grid[:, None] - nodes) / sigma) ** 2) / (sigma * np.sqrt(2.0 * np.pi))
    means = np.array([part[0] @ part[1] for part in found])
    error = float(means.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return SpectralDensity(
        nodes,
        weights,
        grid,
        bumps @ weights,
        sigma,
        size,
        error,
        sum(len(part[0]) for part in found),
    )


# ---- critical points -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CriticalPoint(Result):
    """A point, the spectrum of the Hessian there, and its index.

    Attributes
    ----------
    theta : float64 array ``[num_parameters]``
    loss, gradient_norm : float
    eigenvalues : float64 array ``[num_parameters]``
        Ascending.
    negative, null, positive : int
        Eigenvalues below, within and above the tolerance.
    tolerance : float
        Null means magnitude <= tolerance.
    converged : bool
        Whether `gradient_norm` is small enough for a critical point.
    residual : float
        `gradient_norm`.
    iterations : int
        Of the search; 0 where there was none.
    """

    theta: Array = field(repr=False, metadata=NOT_JSON)
    loss: float
    gradient_norm: float
    eigenvalues: Array = field(repr=False)
    negative: int
    null: int
    positive: int
    tolerance: float
    converged: bool
    residual: float
    iterations: int

    @property
    def index(self) -> float:
        """Share of negative eigenvalues; null directions are not counted as such."""
        return self.negative / len(self.eigenvalues)

    def _draw(self, axes: Any) -> None:
        axes.plot(self.eigenvalues, ".")
        axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.set(xlabel="eigenvalue, ascending", ylabel="value")


def critical_point(
    objective: Objective,
    theta: ArrayLike | None = None,
    *,
    gradient_tolerance: float = 1e-6,
    null_tolerance: float | None = None,
) -> CriticalPoint:
    """The index of a point: which share of the Hessian's eigenvalues is negative.

    Null directions (every symmetry of the network makes some) are reported apart: counted by their
    sign, a minimum with 20 of them would have index 0.1 by rounding alone. Dauphin et al.,
    *Identifying and attacking the saddle point problem*, 2014.

    Parameters
    ----------
    objective : Objective
        Of a small network: the Hessian is formed and decomposed.
    theta : array ``[num_parameters]``, optional
        None: the model's parameters.
    gradient_tolerance : float, default 1e-6
        Largest gradient norm of a critical point.
    null_tolerance : float, optional
        Magnitude of null eigenvalues, relative to the largest; None takes 1e-10 for float64 and
        1e-5 for float32.

    Returns
    -------
    CriticalPoint

    Examples
    --------
    >>> import thalweg as tw
    >>> chain = [tw.nn.Dense(1, bias=False), tw.nn.Dense(1, bias=False)]
    >>> model = tw.Model(chain, 1, "squared_error", dtype="float64")
    >>> found = critical_point(tw.Objective(model, [[1.0]], [1.0]), [0.0, 0.0])
    >>> found.index, found.converged, found.eigenvalues
    (0.5, True, array([-2.,  2.]))
    """
    where = "critical_point"
    _objective(where, objective)
    limit = _check.real(where, "gradient_tolerance", gradient_tolerance, 0.0)
    relative = _null_tolerance(where, objective, null_tolerance)
    return _examined(objective, _point(where, objective, theta), limit, relative, 0)


def _null_tolerance(where: str, objective: Objective, value: Any) -> float:
    if value is None:
        return 1e-10 if objective.model.dtype == np.float64 else 1e-5
    return _check.real(where, "null_tolerance", value, 0.0)


def _examined(
    objective: Objective, at: Array, limit: float, relative: float, iterations: int
) -> CriticalPoint:
    loss, gradient = objective.value_and_grad(at)
    values = np.linalg.eigvalsh(objective.hessian(at).astype(np.float64))
    tolerance = relative * float(np.abs(values).max())
    negative = int(np.sum(values < -tolerance))
    positive = int(np.sum(values > tolerance))
    size = float(np.linalg.norm(gradient.astype(np.float64)))
    return CriticalPoint(
        at,
        float(loss),
        size,
        values,
        negative,
        len(values) - negative - positive,
        positive,
        tolerance,
        size <= limit,
        size,
        iterations,
    )


def find_critical_point(
    objective: Objective,
    theta: ArrayLike | None = None,
    *,
    gradient_tolerance: float = 1e-6,
    null_tolerance: float | None = None,
    damping: float = 1e-3,
    max_iterations: int = 500,
) -> CriticalPoint:
    """The critical point, of any index, that a search from `theta` runs into.

    Minimizes |g|^2 / 2 by steps -(H^2 + mu I)^-1 H g with mu by Marquardt's rule
    (`optim.DampedNewton` on the Gauss-Newton matrix H^2 of the gradient): it neither climbs nor
    descends, so that saddles attract it as well as minima.

    Parameters
    ----------
    objective : Objective
        Of a small network in float64.
    theta : array ``[num_parameters]``, optional
        Where to start; None: the model's parameters.
    gradient_tolerance : float, default 1e-6
        Ends the search.
    null_tolerance : float, optional
        As in `critical_point`.
    damping : float, default 1e-3
        First mu, > 0.
    max_iterations : int, default 500

    Returns
    -------
    CriticalPoint
        Where the search ended; `converged` says whether it is critical.

    Examples
    --------
    >>> import thalweg as tw
    >>> chain = [tw.nn.Dense(1, bias=False), tw.nn.Dense(1, bias=False)]
    >>> model = tw.Model(chain, 1, "squared_error", dtype="float64")
    >>> found = find_critical_point(tw.Objective(model, [[1.0]], [1.0]), [0.3, 0.2])
    >>> found.converged, found.index
    (True, 0.5)
    """
    where = "find_critical_point"
    _objective(where, objective)
    limit = _check.real(where, "gradient_tolerance", gradient_tolerance, 0.0)
    relative = _null_tolerance(where, objective, null_tolerance)

    def half_square(at: Array) -> tuple[float, Array]:
        gradient = objective.grad(at).astype(np.float64)
        return 0.5 * float(gradient @ gradient), objective.hvp(gradient, at).astype(np.float64)

    cached: tuple[bytes, Array] = (b"", np.zeros((0, 0)))

    def squared_hessian(at: Array, v: Array) -> Array:
        nonlocal cached
        if cached[0] != at.tobytes():
            cached = at.tobytes(), objective.hessian(at).astype(np.float64)
        image: Array = cached[1] @ (cached[1] @ v)
        return image

    def reached(progress: MinimizeProgress) -> bool:
        return progress.fun <= 0.5 * limit * limit

    result = minimize(
        half_square,
        _point(where, objective, theta),
        optim.DampedNewton(damping=damping, curvature="gauss_newton"),
        ggnvp=squared_hessian,
        max_iterations=_check.integer(where, "max_iterations", max_iterations, 1),
        gtol=0.0,
        callback=reached,
    )
    return _examined(objective, result.x, limit, relative, result.nit)


# ---- what the quadratic model predicts -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StepPrediction(Result):
    """What the quadratic model says of a gradient step, beside what happens.

    Attributes
    ----------
    rates : float64 array ``[rates]``
        Learning rates e.
    first_order : float64 array ``[rates]``
        e g'g, the decrease to first order.
    second_order : float64 array ``[rates]``
        e^2 / 2 g'Hg, by which curvature reduces it.
    actual : float64 array ``[rates]``
        J(theta - e g) - J(theta).
    gradient_square, curvature : float
        g'g and g'Hg.
    loss : float
    """

    rates: Array
    first_order: Array
    second_order: Array
    actual: Array
    gradient_square: float
    curvature: float
    loss: float

    @property
    def predicted(self) -> Array:
        """Change of the loss in the quadratic model, -e g'g + e^2 / 2 g'Hg."""
        return self.second_order - self.first_order

    @property
    def best_rate(self) -> float:
        """G'g / g'Hg, the minimum of the model; infinite along negative curvature."""
        return self.gradient_square / self.curvature if self.curvature > 0.0 else float("inf")

    @property
    def critical_rate(self) -> float:
        """2 g'g / g'Hg: larger steps raise the loss, as far as the model holds."""
        return 2.0 * self.best_rate

    def _draw(self, axes: Any) -> None:
        axes.plot(self.rates, self.actual, "o-", label="actual")
        axes.plot(self.rates, self.predicted, label="second order")
        axes.plot(self.rates, -self.first_order, label="first order")
        axes.set(xlabel="learning rate", ylabel="change of the loss")
        axes.legend()


def predict_step(
    objective: Objective, rates: ArrayLike, *, theta: ArrayLike | None = None
) -> StepPrediction:
    """What a step theta - e g does to the loss, predicted and actual.

    J(theta - e g) = J - e g'g + e^2 / 2 g'Hg + O(e^3): the step raises the loss when
    e g'Hg / 2 > g'g (Goodfellow, Bengio, Courville, *Deep Learning*, equation 4.9).

    Parameters
    ----------
    objective : Objective
    rates : float or array ``[rates]``
        Learning rates.
    theta : array ``[num_parameters]``, optional
        None: the model's parameters.

    Returns
    -------
    StepPrediction

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1, bias=False), 1, "squared_error", dtype="float64")
    >>> found = predict_step(tw.Objective(model, [[1.0]], [0.0]), [0.25, 2.0], theta=[1.0])
    >>> found.predicted, found.actual, found.critical_rate
    (array([-0.75,  8.  ]), array([-0.75,  8.  ]), 1.0)
    """
    where = "predict_step"
    _objective(where, objective)
    at = _point(where, objective, theta)
    steps = np.atleast_1d(_arguments.reals(where, "rates", rates))
    if steps.ndim != 1:
        raise ValueError(f"[{where}] expected rates [rates], got shape {steps.shape}")
    loss, slope = objective.value_and_grad(at)
    gradient = slope.astype(np.float64)
    square = float(gradient @ gradient)
    curvature = float(gradient @ objective.hvp(gradient, at).astype(np.float64))
    return StepPrediction(
        steps,
        steps * square,
        0.5 * steps**2 * curvature,
        np.array([objective.value(at - e * gradient) - loss for e in steps]),
        square,
        curvature,
        float(loss),
    )


@dataclass(frozen=True, eq=False)
class GradientFlow(Result):
    """The path of gradient flow in the quadratic model of a loss.

    Attributes
    ----------
    times : float64 array ``[times]``
    theta : float64 array ``[times, num_parameters]``
    loss : float64 array ``[times]``
        Of the quadratic model.
    eigenvalues : float64 array ``[num_parameters]``
        Of the Hessian, ascending.
    """

    times: Array
    theta: Array = field(repr=False, metadata=NOT_JSON)
    loss: Array
    eigenvalues: Array = field(repr=False)

    def _draw(self, axes: Any) -> None:
        axes.plot(self.times, self.loss)
        axes.set(xlabel="time", ylabel="loss of the quadratic model")


def gradient_flow(
    objective: Objective, times: ArrayLike | Sequence[float], *, theta: ArrayLike | None = None
) -> GradientFlow:
    """Where gradient flow d theta / dt = -grad goes in the quadratic model at `theta`.

    With H = Q diag(lam) Q', theta(t) = theta - Q diag((1 - exp(-lam t)) / lam) Q' g, and t in place
    of the fraction where lam = 0. Along negative curvature it grows exponentially: gradient descent
    leaves saddles, which Newton's method seeks (Goodfellow, Vinyals, Saxe 2015).

    Parameters
    ----------
    objective : Objective
        Of a small network: the Hessian is formed and decomposed.
    times : array ``[times]``
        Not negative; a step of rate e is a time of e.
    theta : array ``[num_parameters]``, optional
        None: the model's parameters.

    Returns
    -------
    GradientFlow

    Raises
    ------
    NonFiniteError
        When the path leaves the floating-point numbers, as it does along negative curvature.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1, bias=False), 1, "squared_error", dtype="float64")
    >>> flow = gradient_flow(tw.Objective(model, [[1.0]], [0.0]), [0.0, 100.0], theta=[1.0])
    >>> flow.theta[:, 0], flow.loss
    (array([1., 0.]), array([1., 0.]))
    """
    where = "gradient_flow"
    _objective(where, objective)
    at = _point(where, objective, theta)
    moments = _arguments.reals(where, "times", times, 1)
    if np.any(moments < 0.0):
        raise ValueError(f"[{where}] expected times >= 0, got {moments.min():g}")
    loss, slope = objective.value_and_grad(at)
    values, vectors = np.linalg.eigh(objective.hessian(at).astype(np.float64))
    part = vectors.T @ slope.astype(np.float64)
    safe = np.where(values == 0.0, 1.0, values)
    with np.errstate(over="ignore", invalid="ignore"):
        decay = -np.expm1(-np.outer(moments, values)) / safe
        factors = np.where(values == 0.0, moments[:, None], decay)
        moved = -factors * part
        change = moved @ part + 0.5 * (moved**2) @ values
        path = at + moved @ vectors.T
    lost = ~(np.isfinite(path).all(axis=1) & np.isfinite(change))
    if lost.any():
        raise NonFiniteError(
            f"[{where}] expected times at which the path is finite, got {moments[lost].min():g}; "
            f"along the eigenvalue {values[0]:g} it grows like exp({-values[0]:g} t)"
        )
    return GradientFlow(moments, path, loss + change, values)
