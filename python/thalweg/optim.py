"""Optimizers, parameter groups and parameter averaging.

An optimizer is an immutable description; its formulas run in one fused pass of the engine. theta is
the vector of parameters, g the gradient, e the learning rate `lr`; all operations are elementwise.
`lr` and `momentum` take a number or a schedule of `thalweg.schedules`.

Every optimizer also takes, as keywords:

weight_decay : float, default 0.0
    Adds weight_decay * theta to g (L2 penalty); `AdamW` shrinks theta directly instead.
groups : sequence of Group, default ()
    Other learning rates, decay or freezing for parameters by name; the first match wins.

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
from thalweg._description import Description, build, by_type, check_parameters, optimizer_table
from thalweg.schedules import Schedule, resolve

__all__ = [
    "EMA",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Averaging",
    "Group",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "Polyak",
    "RMSProp",
    "RMSPropNesterov",
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
    """Base of the optimizers; the engine's table has the ranges of their hyper-parameters."""

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
class SGD(Optimizer):
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
class Momentum(Optimizer):
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
class Nesterov(Optimizer):
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
class AdaGrad(Optimizer):
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
class RMSProp(Optimizer):
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
class RMSPropNesterov(Optimizer):
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
class AdaDelta(Optimizer):
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
class Adam(Optimizer):
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
class AdamW(Optimizer):
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


_BY_TYPE: dict[str, type[Optimizer]] = by_type(
    [SGD, Momentum, Nesterov, AdaGrad, RMSProp, RMSPropNesterov, AdaDelta, Adam, AdamW]
)
_AVERAGING: dict[str, type[Averaging]] = by_type([Polyak, EMA])


def from_dict(value: Mapping[str, Any]) -> Optimizer:
    """The optimizer that a dict describes; missing keys take their defaults.

    Examples
    --------
    >>> from_dict({"type": "sgd", "lr": 0.5})
    SGD(weight_decay=0.0, groups=(), lr=0.5)
    """
    return build("optimizer", _BY_TYPE, value)


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
        return _BY_TYPE[_check.choice("Model", "optimizer", value, _BY_TYPE)]()
    if isinstance(value, Mapping):
        return from_dict(value)
    hint = "an optimizer of thalweg.optim, e.g. optim.Adam(1e-3), or its name"
    return _check.instance("Model", "optimizer", value, Optimizer, hint)
