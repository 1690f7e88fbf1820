"""Minimization of a function of an array by the methods of `thalweg.optim`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg import _check, _core
from thalweg._description import method_table, plain
from thalweg.objective import Objective
from thalweg.optim import Optimizer, resolve_method

__all__ = ["MinimizeProgress", "MinimizeResult", "minimize"]

_WHERE = "minimize"
# Rounding error of a value: a few units in the last place.
_NOISE = {"float32": 2.0**-20, "float64": 2.0**-50}

Array = NDArray[Any]


@dataclass(frozen=True)
class MinimizeProgress:
    """What a callback sees after an iteration.

    Attributes
    ----------
    x : ndarray
        The iterate; a copy.
    fun : float
        Its value.
    gradient_norm : float
        Euclidean norm of its gradient.
    nit : int
        Iterations done.
    """

    x: Array
    fun: float
    gradient_norm: float
    nit: int


@dataclass(frozen=True)
class MinimizeResult:
    """What `minimize` found.

    Attributes
    ----------
    x : ndarray
        The last iterate, in the shape and dtype of x0.
    fun : float
        Its value.
    grad : ndarray
        Its gradient.
    converged : bool
        Whether a tolerance ended the iteration.
    status : str
        ``"converged"``: max(abs(grad)) <= gtol. ``"small_change"``: ftol. ``"max_iterations"``,
        ``"max_evaluations"``, ``"stopped"`` (by the callback). ``"no_decrease"``: no step that the
        method knows decreases the value; `message` says why. ``"non_finite"``: a step led to a
        value or gradient that is not finite; x is the iterate before it.
    message : str
        The same for people.
    nit, nfev, njev, nhev : int
        Iterations; evaluations of the value, of the gradient, and products with second derivatives.
    fallbacks : dict of str to int
        How often the method left its rule: ``"approximate_wolfe"`` (a decrease below the rounding
        error of the value), ``"sufficient_decrease"`` (the curvature condition could not be met),
        ``"steepest_descent"`` (a restart along -g), ``"skipped_update"`` (a pair without positive
        curvature), ``"damping"``, ``"singular"``.
    history : dict of str to ndarray
        ``"value"`` and ``"gradient_norm"`` of the start and of every iterate (nit + 1), and
        ``"step_size"`` of every iteration. Look-ahead methods are seen at the gradient's point.
    """

    x: Array
    fun: float
    grad: Array
    converged: bool
    status: str
    message: str
    nit: int
    nfev: int
    njev: int
    nhev: int
    fallbacks: dict[str, int]
    history: dict[str, Array]

    @property
    def success(self) -> bool:
        """SciPy's name of `converged`."""
        return self.converged

    @property
    def jac(self) -> Array:
        """SciPy's name of `grad`."""
        return self.grad

    def to_json(self) -> str:
        """The result as JSON text, arrays as nested lists."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["history"] = {name: array.tolist() for name, array in self.history.items()}
        return json.dumps({**values, "x": self.x.tolist(), "grad": self.grad.tolist()})


def _start(x0: ArrayLike) -> Array:
    x = _check.array(_WHERE, "x0", x0)
    if x.dtype.kind not in "iuf":
        raise TypeError(f"[{_WHERE}] expected x0 of real numbers, got dtype {x.dtype}")
    x = np.array(x, dtype=np.float32 if x.dtype == np.float32 else np.float64)
    if x.size == 0:
        raise ValueError(f"[{_WHERE}] expected x0 with at least one element, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"[{_WHERE}] expected x0 to be finite, got NaN or infinity")
    return x


def _number(name: str, value: Any) -> float:
    array = _check.array(_WHERE, name, value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"[{_WHERE}] expected {name} to be a number, got {_check.shown(value)}")
    if array.shape != ():
        raise ValueError(f"[{_WHERE}] expected {name} to be a number, got shape {array.shape}")
    return float(array)


def _array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _check.array(_WHERE, name, value)
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"[{_WHERE}] expected {name} to be an array of real numbers, got {_check.shown(value)}"
        )
    if array.shape != shape:
        raise ValueError(f"[{_WHERE}] expected {name} of shape {shape}, got {array.shape}")
    return np.ascontiguousarray(array, dtype=np.float64).ravel()


class _Callables:
    """The user's functions, on the flat float64 vectors of the engine."""

    def __init__(self, x0: Array, args: Sequence[Any]) -> None:
        if isinstance(args, str) or not isinstance(args, Sequence):
            raise TypeError(
                f"[{_WHERE}] expected args to be a tuple or list, got {_check.shown(args)}"
            )
        self._shape, self._dtype, self._args = x0.shape, x0.dtype, tuple(args)

    def array(self, flat: Array) -> Array:
        """A vector of the engine in the shape and dtype of x0."""
        return flat.reshape(self._shape).astype(self._dtype, copy=False)

    def combined(self, fun: Callable[..., Any]) -> Callable[[Array], tuple[float, Array]]:
        def evaluate(flat: Array) -> tuple[float, Array]:
            result = fun(self.array(flat), *self._args)
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                raise TypeError(
                    f"[{_WHERE}] expected fun to return (value, gradient), "
                    f"got {_check.shown(result)}; give jac= a function of its own otherwise"
                )
            value = _number("the value of fun", result[0])
            return value, _array("the gradient", result[1], self._shape)

        return evaluate

    def value(self, fun: Callable[..., Any]) -> Callable[[Array], float]:
        return lambda flat: _number("the value of fun", fun(self.array(flat), *self._args))

    def joined(
        self, fun: Callable[..., Any], jac: Callable[..., Any]
    ) -> Callable[[Array], tuple[float, Array]]:
        def evaluate(flat: Array) -> tuple[float, Array]:
            value = _number("the value of fun", fun(self.array(flat.copy()), *self._args))
            gradient = jac(self.array(flat), *self._args)
            return value, _array("the gradient", gradient, self._shape)

        return evaluate

    def product(self, name: str, function: Callable[..., Any]) -> Callable[[Array, Array], Array]:
        def multiply(flat: Array, vector: Array) -> Array:
            result = function(self.array(flat), self.array(vector), *self._args)
            return _array(f"the result of {name}", result, self._shape)

        return multiply

    def matrix_product(self, hess: Callable[..., Any]) -> Callable[[Array, Array], Array]:
        """Products with the matrix of `hess`, which is called once per point."""
        at, matrix = b"", np.zeros((0, 0))

        def multiply(flat: Array, vector: Array) -> Array:
            nonlocal at, matrix
            key = flat.tobytes()
            if key != at:
                n = flat.size
                result = hess(self.array(flat), *self._args)
                matrix = _array("the result of hess", result, (n, n)).reshape(n, n)
                at = key
            product: Array = matrix @ vector
            return product

        return multiply


def _callable(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"[{_WHERE}] expected {name} to be a function, got {_check.shown(value)}")
    function: Callable[..., Any] = value
    return function


class _Parts(NamedTuple):
    """What the engine calls, on flat float64 vectors."""

    value_and_gradient: Callable[[Array], tuple[float, Array]]
    value: Callable[[Array], float] | None = None
    hvp: Callable[[Array, Array], Array] | None = None
    ggnvp: Callable[[Array, Array], Array] | None = None
    path_scales: Callable[[Array], Array] | None = None


def _parts_of_functions(
    callables: _Callables,
    fun: Callable[..., Any],
    jac: bool | Callable[..., Any],
    hvp: Callable[..., Any] | None,
    hess: Callable[..., Any] | None,
    ggnvp: Callable[..., Any] | None,
) -> _Parts:
    function = _callable("fun", fun)
    if jac is True:
        parts = _Parts(callables.combined(function))
    elif callable(jac):
        parts = _Parts(callables.joined(function, jac), callables.value(function))
    else:
        raise TypeError(
            f"[{_WHERE}] expected jac to be True or a function, got {_check.shown(jac)}; "
            "gradients are not approximated"
        )
    if hvp is not None and hess is not None:
        raise ValueError(f"[{_WHERE}] expected one of hvp and hess, got both")
    if hvp is not None:
        parts = parts._replace(hvp=callables.product("hvp", _callable("hvp", hvp)))
    elif hess is not None:
        parts = parts._replace(hvp=callables.matrix_product(_callable("hess", hess)))
    if ggnvp is not None:
        parts = parts._replace(ggnvp=callables.product("ggnvp", _callable("ggnvp", ggnvp)))
    return parts


def _parts_of_objective(objective: Objective) -> _Parts:
    def evaluate(flat: Array) -> tuple[float, Array]:
        value, gradient = objective.value_and_grad(flat)
        return value, gradient.astype(np.float64)

    def path_scales(flat: Array) -> Array:
        return _core.path_scales(objective.model._core, flat, 2.0).astype(np.float64)

    return _Parts(
        evaluate,
        objective.value,
        lambda flat, v: objective.hvp(v, flat).astype(np.float64),
        lambda flat, v: objective.ggnvp(v, flat).astype(np.float64),
        None if objective.model.has_batch_norm else path_scales,
    )


def _reporter(
    callback: Callable[[MinimizeProgress], bool | None], callables: _Callables
) -> Callable[[int, Array, float, float], bool]:
    def report(nit: int, flat: Array, fun: float, gradient_norm: float) -> bool:
        progress = MinimizeProgress(callables.array(flat), fun, gradient_norm, nit)
        try:
            answer = callback(progress)
        except StopIteration:
            return True
        if answer is None:
            return False
        if not isinstance(answer, (bool, np.bool_)):
            raise TypeError(
                f"[{_WHERE}] expected callback to return True, False or None, "
                f"got {_check.shown(answer)}"
            )
        return bool(answer)

    return report


def minimize(
    fun: Callable[..., Any] | Objective,
    x0: ArrayLike | None = None,
    method: str | Optimizer = "lbfgs",
    *,
    args: Sequence[Any] = (),
    jac: bool | Callable[..., Any] = True,
    hvp: Callable[..., Any] | None = None,
    hess: Callable[..., Any] | None = None,
    ggnvp: Callable[..., Any] | None = None,
    max_iterations: int = 1000,
    max_evaluations: int | None = None,
    gtol: float = 1e-6,
    ftol: float | None = None,
    callback: Callable[[MinimizeProgress], bool | None] | None = None,
    **options: Any,
) -> MinimizeResult:
    """Minimize a function of an array, without a network.

    The loop runs in C++, in double precision whatever the dtype of x0, and calls back into Python
    for values. Results are bitwise repeatable if the function's are.

    Parameters
    ----------
    fun : callable or Objective
        ``fun(x, *args)`` returns ``(value, gradient)``: a number, and an array of the shape of x. x
        has the shape and dtype of x0 and is the function's own. An `Objective` is minimized over
        the model's parameters, with its own products and path scales; the model stays as it is, and
        ``model.set_parameters(result.x)`` puts the result into it.
    x0 : array_like
        Start, of any shape. float32 stays float32 on the way to `fun` and in the result; every
        other real dtype becomes float64. None: the parameters of an objective's model.
    method : str or optim.Optimizer, default "lbfgs"
        ``"steepest_descent"``, ``"coordinate_descent"``, ``"nonlinear_cg"``, ``"linear_cg"``,
        ``"bfgs"``, ``"lbfgs"``, ``"newton"``, ``"damped_newton"``, ``"saddle_free_newton"``; an
        elementwise optimizer such as ``"sgd"``, ``"momentum"`` or ``"adam"``; or an object of
        `thalweg.optim`, which may have a schedule.
    args : sequence, default ()
        Further arguments of all functions.
    jac : bool or callable, default True
        True: `fun` returns the gradient as well. A function: ``jac(x, *args)`` returns it, and
        `fun` the value alone. There are no finite differences.
    hvp : callable, optional
        ``hvp(x, v, *args)``, the product of Hessian and v, in the shape of x; for Newton's methods.
    hess : callable, optional
        ``hess(x, *args)``, the Hessian as (x.size, x.size) array, in place of `hvp`.
    ggnvp : callable, optional
        ``ggnvp(x, v, *args)``, the product of Gauss-Newton matrix and v, for
        ``curvature="gauss_newton"``.
    max_iterations : int, default 1000
        Most iterations.
    max_evaluations : int, optional
        No iteration begins after this number of values.
    gtol : float, default 1e-6
        Ends when max(abs(gradient)) is at most this; 0 for an exact zero.
    ftol : float, optional
        Ends when an iteration changes the value by at most ftol * max(1, abs(value)).
    callback : callable, optional
        Called with a `MinimizeProgress` after every iteration; True or StopIteration ends.
    **options
        Parameters of a method that is given by name, such as ``lr=0.1`` or ``history=20``.

    Returns
    -------
    MinimizeResult

    Raises
    ------
    ValueError, TypeError
        For arguments, and results of functions, of a wrong shape, value or type.
    NonFiniteError
        When the function is not finite at x0, or a second derivative is not finite. A step to a
        point where the function is not finite ends with the status ``"non_finite"`` instead; line
        searches avoid such points.

    Examples
    --------
    >>> import numpy as np
    >>> import thalweg as tw
    >>> target = np.array([1.0, -2.0])
    >>> result = tw.minimize(lambda x: (np.sum((x - target) ** 2), 2 * (x - target)), [0.0, 0.0])
    >>> result.x, result.status
    (array([ 1., -2.]), 'converged')
    """
    described = resolve_method(_WHERE, method, options)
    if isinstance(fun, Objective):
        own = {"args": args != (), "jac": jac is not True, "hvp": hvp, "hess": hess, "ggnvp": ggnvp}
        given = [name for name, value in own.items() if value]
        if given:
            raise TypeError(f"[{_WHERE}] expected no {', '.join(given)} beside an Objective")
        start = _start(fun.model.parameters if x0 is None else x0)
        if start.shape != (fun.num_parameters,):
            raise ValueError(
                f"[{_WHERE}] expected x0 of shape ({fun.num_parameters},), got {start.shape}"
            )
        callables = _Callables(start, ())
        parts = _parts_of_objective(fun)
    else:
        if x0 is None:
            raise TypeError(f"[{_WHERE}] expected x0, got None; only an Objective has a start")
        start = _start(x0)
        callables = _Callables(start, args)
        parts = _parts_of_functions(callables, fun, jac, hvp, hess, ggnvp)
    if method_table()[described.type]["needs_curvature"]:
        wanted = getattr(described, "curvature")  # noqa: B009
        product, names = (
            (parts.hvp, "hvp or hess") if wanted == "hessian" else (parts.ggnvp, "ggnvp")
        )
        if product is None:
            raise ValueError(
                f"[{_WHERE}] expected {names} for {described.type!r} with "
                f"curvature={wanted!r}, got none"
            )
    description = {k: v for k, v in described.to_dict().items() if k != "groups"}
    result = _core.minimize(
        json.dumps(plain(description)),
        np.ascontiguousarray(start, dtype=np.float64).ravel(),
        *parts,
        _NOISE[start.dtype.name],
        _check.integer(_WHERE, "max_iterations", max_iterations, 0),
        0
        if max_evaluations is None
        else _check.integer(_WHERE, "max_evaluations", max_evaluations, 1),
        _check.real(_WHERE, "gtol", gtol, 0.0),
        -1.0 if ftol is None else _check.real(_WHERE, "ftol", ftol, 0.0),
        None if callback is None else _reporter(_callable("callback", callback), callables),
    )
    return MinimizeResult(
        x=callables.array(result["x"]),
        fun=result["fun"],
        grad=callables.array(result["grad"]),
        converged=result["status"] in ("converged", "small_change"),
        history={
            "value": result["values"],
            "gradient_norm": result["gradient_norms"],
            "step_size": result["step_sizes"],
        },
        **{k: result[k] for k in ("status", "message", "nit", "nfev", "njev", "nhev", "fallbacks")},
    )
