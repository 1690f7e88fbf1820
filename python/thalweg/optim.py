"""Optimizers, methods on a whole objective, parameter groups and parameter averaging.

An optimizer is an immutable description; its formulas run in one fused pass of the engine. theta is
the vector of parameters, g the gradient, e the learning rate `lr`; all operations are elementwise.
`lr` and `momentum` take a number or a schedule of `thalweg.schedules`.

Every elementwise optimizer also takes, as keywords:

weight_decay : float, default 0.0
    Adds weight_decay * theta to g (L2 penalty); `AdamW` shrinks theta directly instead.
groups : sequence of Group, default ()
    Other learning rates, decay or freezing for parameters by name; the first match wins.

A `Method` sees the objective itself, not one element of a gradient: it may search along a line or
use second derivatives. In training, each update is one step of the method on that minibatch, batch
statistics and dropout masks included; ``batch_size=len(x)`` minimizes the loss of all rows.
`thalweg.minimize` runs methods and optimizers alike on a function of an array.

Examples
--------
>>> from thalweg import optim
>>> optim.Adam(1e-3, weight_decay=1e-4, groups=[optim.Group("*.bias", weight_decay=0.0)]).lr
0.001
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from thalweg import _check
from thalweg._description import (
    Description,
    build,
    by_type,
    check_parameters,
    method_table,
    optimizer_table,
)
from thalweg.schedules import Schedule, resolve

__all__ = [
    "BFGS",
    "EMA",
    "LBFGS",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Averaging",
    "CoordinateDescent",
    "DampedNewton",
    "Elementwise",
    "Group",
    "LinearCG",
    "Method",
    "Momentum",
    "Nesterov",
    "Newton",
    "NonlinearCG",
    "Optimizer",
    "PathSGD",
    "Polyak",
    "RMSProp",
    "RMSPropNesterov",
    "SaddleFreeNewton",
    "SteepestDescent",
    "averaging_from_dict",
    "from_dict",
]

_SCHEDULED = ("lr", "momentum")


@dataclass(frozen=True)
class Group(Description):
    """Settings for the parameters whose name matches a pattern.

    Parameters
    ----------
    match : str
        Shell pattern over parameter names, such as ``"*.bias"`` or ``"layers.0.*"``.
    lr_scale : float, default 1.0
        Multiplies the learning rate, >= 0.
    weight_decay : float, optional
        Replaces the optimizer's weight decay; None keeps it.
    frozen : bool, default False
        Leaves the parameters as they are.

    Examples
    --------
    >>> Group("layers.0.*", frozen=True).frozen
    True
    """

    match: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.match, str) or not self.match:
            raise TypeError(
                "[Group] expected match to be a pattern such as '*.bias', "
                f"got {_check.shown(self.match)}"
            )
        self._set("lr_scale", _check.real("Group", "lr_scale", self.lr_scale, 0.0))
        if self.weight_decay is not None:
            decay = _check.real("Group", "weight_decay", self.weight_decay, 0.0)
            self._set("weight_decay", decay)
        self._set("frozen", _check.flag("Group", "frozen", self.frozen))

    def to_dict(self) -> dict[str, Any]:
        """The group as plain values."""
        return {
            "match": self.match,
            "lr_scale": self.lr_scale,
            "weight_decay": self.weight_decay,
            "frozen": self.frozen,
        }


@dataclass(frozen=True)
class Optimizer(Description):
    """Base of everything that `Model` and `minimize` take as optimizer."""


@dataclass(frozen=True)
class Elementwise(Optimizer):
    """Base of the elementwise optimizers; the engine's table has the ranges of their parameters."""

    weight_decay: float = field(default=0.0, kw_only=True)
    groups: Sequence[Group] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        where = type(self).__name__
        rows = dict(optimizer_table()[self.type]["parameters"])
        for name in _SCHEDULED:
            if name in rows:
                value = resolve(where, name, getattr(self, name))
                self._set(name, value)
                if isinstance(value, Schedule):
                    del rows[name]
        check_parameters(self, rows)
        if isinstance(self.groups, (Group, str, Mapping)) or not isinstance(self.groups, Sequence):
            raise TypeError(
                f"[{where}] expected groups to be a list of optim.Group, "
                f"got {_check.shown(self.groups)}"
            )
        groups = (Group(**g) if isinstance(g, Mapping) else g for g in self.groups)
        hint = "an optim.Group, e.g. optim.Group('*.bias', weight_decay=0.0),"
        checked = tuple(_check.instance(where, "a group", g, Group, hint) for g in groups)
        self._set("groups", checked)


@dataclass(frozen=True)
class SGD(Elementwise):
    """theta -= e * g (Robbins and Monro 1951).

    Parameters
    ----------
    lr : float or Schedule, default 0.1
        Learning rate.

    Examples
    --------
    >>> from thalweg import schedules
    >>> SGD(schedules.Linear(0.1, tau=1000)).weight_decay
    0.0
    """

    lr: float | Schedule = 0.1
    type: ClassVar[str] = "sgd"


@dataclass(frozen=True)
class Momentum(Elementwise):
    """v = momentum * v - e * g; theta += v (Polyak 1964).

    Parameters
    ----------
    lr : float or Schedule, default 0.1
        Learning rate.
    momentum : float or Schedule, default 0.9
        Share of the velocity that survives an update, in [0, 1).
    torch_compat : bool, default False
        Keep e outside v, as PyTorch does: v = momentum * v + g; theta -= e * v. The two differ only
        while e changes.
    """

    lr: float | Schedule = 0.1
    momentum: float | Schedule = 0.9
    torch_compat: bool = False
    type: ClassVar[str] = "momentum"


@dataclass(frozen=True)
class Nesterov(Elementwise):
    """g at theta + momentum * v; v = momentum * v - e * g; theta += v (Sutskever et al. 2013).

    The model stores the point of the gradient, p = theta + momentum * v; `Model.theta` gives theta.

    Parameters
    ----------
    lr : float or Schedule, default 0.1
        Learning rate.
    momentum : float or Schedule, default 0.9
        In [0, 1); `schedules.NesterovConvex` keeps the O(1/k^2) bound on convex functions.
    torch_compat : bool, default False
        Keep e outside v, as PyTorch does.
    """

    lr: float | Schedule = 0.1
    momentum: float | Schedule = 0.9
    torch_compat: bool = False
    type: ClassVar[str] = "nesterov"


@dataclass(frozen=True)
class AdaGrad(Elementwise):
    """r += g^2; theta -= e * g / (delta + sqrt(r)) (Duchi et al. 2011).

    Parameters
    ----------
    lr : float or Schedule, default 0.01
        Learning rate.
    delta : float, default 1e-7
        Guard of the division, > 0.
    """

    lr: float | Schedule = 0.01
    delta: float = 1e-7
    type: ClassVar[str] = "adagrad"


@dataclass(frozen=True)
class RMSProp(Elementwise):
    """r = rho * r + (1 - rho) * g^2; theta -= e * g / (delta + sqrt(r)) (Tieleman and Hinton 2012).

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
        Learning rate.
    rho : float, default 0.9
        Decay of the average of g^2, in [0, 1).
    delta : float, default 1e-6
        Guard of the division, > 0.
    delta_inside : bool, default False
        Divide by sqrt(r + delta) instead.
    """

    lr: float | Schedule = 1e-3
    rho: float = 0.9
    delta: float = 1e-6
    delta_inside: bool = False
    type: ClassVar[str] = "rmsprop"


@dataclass(frozen=True)
class RMSPropNesterov(Elementwise):
    """`RMSProp` with Nesterov's momentum: g at theta + momentum * v.

    v = momentum * v - e * g / (delta + sqrt(r)); theta += v. The model stores theta + momentum * v.

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
        Learning rate.
    rho : float, default 0.9
        Decay of the average of g^2, in [0, 1).
    momentum : float or Schedule, default 0.9
        In [0, 1).
    delta : float, default 1e-6
        Guard of the division, > 0.
    """

    lr: float | Schedule = 1e-3
    rho: float = 0.9
    momentum: float | Schedule = 0.9
    delta: float = 1e-6
    type: ClassVar[str] = "rmsprop_nesterov"


@dataclass(frozen=True)
class AdaDelta(Elementwise):
    """Steps in the units of theta, without a learning rate to tune (Zeiler 2012).

    r = rho * r + (1 - rho) * g^2; d = -sqrt(s + delta) / sqrt(r + delta) * g;
    s = rho * s + (1 - rho) * d^2; theta += e * d.

    Parameters
    ----------
    lr : float or Schedule, default 1.0
        Multiplies the step.
    rho : float, default 0.95
        Decay of both averages, in [0, 1).
    delta : float, default 1e-6
        Guard of the division, > 0.
    """

    lr: float | Schedule = 1.0
    rho: float = 0.95
    delta: float = 1e-6
    type: ClassVar[str] = "adadelta"


@dataclass(frozen=True)
class Adam(Elementwise):
    """Averages of g and g^2, corrected for their start at zero (Kingma and Ba 2015).

    s = beta1 * s + (1 - beta1) * g; r = beta2 * r + (1 - beta2) * g^2;
    theta -= e * s / (1 - beta1^t) / (sqrt(r / (1 - beta2^t)) + delta) at update t = 1, 2, ...

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
        Learning rate.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the averages, in [0, 1).
    delta : float, default 1e-8
        Guard of the division, > 0.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    delta: float = 1e-8
    type: ClassVar[str] = "adam"


@dataclass(frozen=True)
class AdamW(Elementwise):
    """`Adam` with decoupled decay: theta *= 1 - e * weight_decay first (Loshchilov, Hutter 2017).

    Parameters
    ----------
    lr : float or Schedule, default 1e-3
        Learning rate.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the averages, in [0, 1).
    delta : float, default 1e-8
        Guard of the division, > 0.
    weight_decay : float, default 0.01
        Keyword only.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    delta: float = 1e-8
    weight_decay: float = field(default=0.01, kw_only=True)
    type: ClassVar[str] = "adamw"


@dataclass(frozen=True)
class Method(Optimizer):
    """Base of the methods on a whole objective; the engine's table has the ranges."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        rows = dict(method_table()[self.type]["parameters"])
        if "lr" in rows:
            value = resolve(where, "lr", getattr(self, "lr"))  # noqa: B009
            self._set("lr", value)
            if isinstance(value, Schedule):
                del rows["lr"]
        check_parameters(self, rows)


@dataclass(frozen=True)
class SteepestDescent(Method):
    """Steepest descent in a norm: theta += e * d, d the minimizer of g'd + norm(d)^2 / 2.

    l2: d = -g, gradient descent. l1: d = -g_j in the coordinate j of the largest abs(g_j). linf:
    d = -sum(abs(g)) * sign(g). With `normalized`, d minimizes g'd over the ball of radius 1: the
    same divided by the dual norm of g (Boyd and Vandenberghe 2004, section 9.4). Each norm has its
    own implicit bias (Gunasekar et al. 2018).

    Parameters
    ----------
    lr : float or Schedule, default 0.1
        Step size e with ``step="fixed"``, and the first trial of the line search.
    norm : {"l2", "l1", "linf"}, default "l2"
        The norm.
    normalized : bool, default False
        Directions of norm 1.
    step : {"fixed", "exact", "wolfe"}, default "fixed"
        ``"exact"``: -g'd / d'Hd, the minimizer along d of a quadratic function; H d is the
        difference of two gradients where no Hessian-vector product is given. ``"wolfe"``: a line
        search for the strong Wolfe conditions.
    c1, c2 : float, default 1e-4 and 0.9
        Of the strong Wolfe conditions, 0 < c1 < c2 < 1.
    """

    lr: float | Schedule = 0.1
    norm: str = "l2"
    normalized: bool = False
    step: str = "fixed"
    c1: float = 1e-4
    c2: float = 0.9
    type: ClassVar[str] = "steepest_descent"


@dataclass(frozen=True)
class CoordinateDescent(Method):
    """One coordinate per step: theta_j -= g_j / H_jj (exact), or e * g_j.

    Parameters
    ----------
    lr : float or Schedule, default 0.1
        Step size e with ``step="fixed"``.
    order : {"greedy", "cyclic"}, default "greedy"
        The coordinate of the largest abs(g_j) (Gauss-Southwell), or all in turn.
    step : {"exact", "fixed"}, default "exact"
        ``"exact"`` minimizes a quadratic function along the coordinate.
    """

    lr: float | Schedule = 0.1
    order: str = "greedy"
    step: str = "exact"
    type: ClassVar[str] = "coordinate_descent"


@dataclass(frozen=True)
class NonlinearCG(Method):
    """Conjugate gradients of Polak and Ribiere, d = -g + beta * d with a strong Wolfe search.

    beta = max(0, g'(g - g_before) / g_before'g_before) (PR+: Gilbert and Nocedal 1992), 0 when
    consecutive gradients are far from orthogonal (Powell 1977).

    Parameters
    ----------
    c1, c2 : float, default 1e-4 and 0.1
        Of the strong Wolfe conditions, 0 < c1 < c2 < 1.
    restart_every : int, default 0
        Steps after which beta is 0; 0 means the number of variables.
    """

    c1: float = 1e-4
    c2: float = 0.1
    restart_every: int = 0
    type: ClassVar[str] = "nonlinear_cg"


@dataclass(frozen=True)
class LinearCG(Method):
    """Conjugate gradients on a quadratic function, with exact steps (Hestenes and Stiefel 1952).

    At most n steps in exact arithmetic. H d is the difference of two gradients where no
    Hessian-vector product is given, which on a quadratic is the same.
    """

    type: ClassVar[str] = "linear_cg"


@dataclass(frozen=True)
class BFGS(Method):
    """Quasi-Newton with a dense inverse Hessian B and a strong Wolfe search.

    d = -B g; B = (I - s y'/y's) B (I - y s'/y's) + s s'/y's (Broyden, Fletcher, Goldfarb, Shanno
    1970), first scaled by y's / y'y. For up to 20,000 variables.

    Parameters
    ----------
    c1, c2 : float, default 1e-4 and 0.9
        Of the strong Wolfe conditions, 0 < c1 < c2 < 1.
    """

    c1: float = 1e-4
    c2: float = 0.9
    type: ClassVar[str] = "bfgs"


@dataclass(frozen=True)
class LBFGS(Method):
    """`BFGS` from the last pairs of step and gradient change (Nocedal 1980; Liu, Nocedal 1989).

    Parameters
    ----------
    history : int, default 10
        Pairs kept, >= 1.
    c1, c2 : float, default 1e-4 and 0.9
        Of the strong Wolfe conditions, 0 < c1 < c2 < 1.
    """

    history: int = 10
    c1: float = 1e-4
    c2: float = 0.9
    type: ClassVar[str] = "lbfgs"


@dataclass(frozen=True)
class Newton(Method):
    """theta -= e * (H + damping * I)^-1 g; goes to the next critical point, saddles included.

    Parameters
    ----------
    lr : float or Schedule, default 1.0
        Share e of the step.
    damping : float, default 0.0
        Added to the eigenvalues, >= 0. Directions in which the sum is zero to working precision are
        left out and counted as the fallback ``"singular"``.
    damping_search : bool, default False
        Take the damping of 1e-4, 1e-3, ..., 10 with the lowest value (Dauphin et al. 2014); larger
        ones, counted as ``"damping"``, when none of them decreases the value.
    curvature : {"hessian", "gauss_newton"}, default "hessian"
        The matrix H.
    krylov : int, default 50
        Dimension of the Krylov space that g starts, used from `exact_below` variables on.
    exact_below : int, default 300
        Up to this number of variables the whole matrix is decomposed.
    """

    lr: float | Schedule = 1.0
    damping: float = 0.0
    damping_search: bool = False
    curvature: str = "hessian"
    krylov: int = 50
    exact_below: int = 300
    type: ClassVar[str] = "newton"


@dataclass(frozen=True)
class SaddleFreeNewton(Newton):
    """`Newton` with the eigenvalues' magnitudes: theta -= e * (abs(H) + damping * I)^-1 g.

    Descends along negative curvature instead of climbing to the saddle, and equals `Newton` where H
    is positive definite (Dauphin et al. 2014).

    Parameters
    ----------
    lr, damping, damping_search, curvature, krylov, exact_below
        As of `Newton`.
    """

    type: ClassVar[str] = "saddle_free_newton"


@dataclass(frozen=True)
class DampedNewton(Method):
    """(H + mu * I) d = -g, mu by Marquardt's rule (Levenberg 1944; Marquardt 1963).

    mu is divided by 3 when the decrease is more than 0.75 of what the quadratic model predicts, and
    multiplied by 4 when it is less than 0.25 or H + mu * I is not positive definite (the fallback
    ``"damping"``). A step that does not decrease the value is not made.

    Parameters
    ----------
    damping : float, default 1e-3
        First mu, > 0.
    curvature : {"hessian", "gauss_newton"}, default "hessian"
        The matrix H.
    exact_below : int, default 300
        Up to this number of variables by Cholesky's factor, then by conjugate gradients.
    cg_iterations : int, default 100
        Most products of one such solution.
    cg_tolerance : float, default 1e-6
        Its residual, relative to norm(g).
    """

    damping: float = 1e-3
    curvature: str = "hessian"
    exact_below: int = 300
    cg_iterations: int = 100
    cg_tolerance: float = 1e-6
    type: ClassVar[str] = "damped_newton"


@dataclass(frozen=True)
class PathSGD(Method):
    """theta -= e * g / kappa, kappa the squared path sums into and out of a weight.

    Invariant under the rescaling of ReLU units (Neyshabur, Salakhutdinov and Srebro 2015). A weight
    on no path is not updated. Only networks have paths.

    Parameters
    ----------
    lr : float or Schedule, default 0.01
        Learning rate e.
    """

    lr: float | Schedule = 0.01
    type: ClassVar[str] = "path_sgd"


class Averaging(Description):
    """An average of theta over the updates, kept next to the parameters; see `Model.averaged`."""


@dataclass(frozen=True)
class Polyak(Averaging):
    """The plain mean of theta over all updates from `start` on (Polyak and Juditsky 1992).

    Parameters
    ----------
    start : int, default 0
        Updates done before the average begins, >= 0.
    """

    start: int = 0
    type: ClassVar[str] = "polyak"

    def __post_init__(self) -> None:
        self._set("start", _check.integer("Polyak", "start", self.start, 0))


@dataclass(frozen=True)
class EMA(Averaging):
    """Exponential moving average: a = decay * a + (1 - decay) * theta.

    Parameters
    ----------
    decay : float, default 0.999
        In [0, 1).
    """

    decay: float = 0.999
    type: ClassVar[str] = "ema"

    def __post_init__(self) -> None:
        self._set("decay", _check.real("EMA", "decay", self.decay, 0.0, 1.0))
        if self.decay == 1.0:
            raise ValueError("[EMA] expected decay < 1, got 1.0; the average would never move")


_BY_TYPE: dict[str, type[Elementwise]] = by_type(
    [SGD, Momentum, Nesterov, AdaGrad, RMSProp, RMSPropNesterov, AdaDelta, Adam, AdamW]
)
_METHODS: dict[str, type[Method]] = by_type(
    [
        SteepestDescent,
        CoordinateDescent,
        NonlinearCG,
        LinearCG,
        BFGS,
        LBFGS,
        Newton,
        DampedNewton,
        SaddleFreeNewton,
        PathSGD,
    ]
)
_ALL: dict[str, type[Optimizer]] = {**_BY_TYPE, **_METHODS}
_AVERAGING: dict[str, type[Averaging]] = by_type([Polyak, EMA])


def from_dict(value: Mapping[str, Any]) -> Optimizer:
    """The optimizer that a dict describes; missing keys take their defaults.

    Examples
    --------
    >>> from_dict({"type": "sgd", "lr": 0.5})
    SGD(weight_decay=0.0, groups=(), lr=0.5)
    """
    return build("optimizer", _ALL, value)


def averaging_from_dict(value: Mapping[str, Any]) -> Averaging:
    """The averaging that a dict describes.

    Examples
    --------
    >>> averaging_from_dict({"type": "ema", "decay": 0.99})
    EMA(decay=0.99)
    """
    return build("averaging", _AVERAGING, value)


def resolve_optimizer(value: Optimizer | str | Mapping[str, Any] | None) -> Optimizer:
    """The optimizer that a user names: an object, a name of the list, a dict, or None for Adam."""
    if value is None:
        return Adam()
    if isinstance(value, str):
        return _ALL[_check.choice("Model", "optimizer", value, _ALL)]()
    if isinstance(value, Mapping):
        return from_dict(value)
    hint = "an optimizer of thalweg.optim, e.g. optim.Adam(1e-3), or its name"
    return _check.instance("Model", "optimizer", value, Optimizer, hint)


def resolve_method(where: str, value: Optimizer | str, options: Mapping[str, Any]) -> Optimizer:
    """What a user names for a bare function: an object, or a name with its parameters."""
    if isinstance(value, str):
        name = _check.choice(where, "method", value, _ALL)
        known = list(method_table()[name]["parameters"])
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise TypeError(f"[{where}] expected options of {value!r} ({known}), got {unknown}")
        return _ALL[name](**options)
    hint = "a method or optimizer of thalweg.optim, e.g. optim.LBFGS(), or its name"
    _check.instance(where, "method", value, Optimizer, hint)
    if options:
        raise TypeError(
            f"[{where}] expected no options beside a method object, got {sorted(options)}; "
            f"give them to {type(value).__name__}"
        )
    if isinstance(value, Elementwise) and value.groups:
        raise ValueError(
            f"[{where}] expected an optimizer without groups, got {len(value.groups)}; "
            "a bare function has no named parameters"
        )
    return value
