"""Schedules: hyper-parameters as functions of k, the number of updates already done.

Every optimizer takes a schedule for its learning rate, and for its momentum where it has one. A
schedule is callable, and evaluated by the same code that training runs.

Examples
--------
>>> from thalweg import optim, schedules
>>> decay = schedules.Linear(0.1, 0.001, tau=100)
>>> decay(0), decay(100), decay(5000)
(0.1, 0.001, 0.001)
>>> optimizer = optim.SGD(schedules.Warmup(decay, steps=10))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from thalweg import _check, _core
from thalweg._description import Description, build, by_type

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "NesterovConvex",
    "OneCycle",
    "RobbinsMonro",
    "Schedule",
    "Step",
    "Warmup",
    "from_dict",
]


class Schedule(Description):
    """A hyper-parameter as a function of the number of updates done."""

    type_key: ClassVar[str] = "schedule"

    def __call__(self, k: int, *, steps_per_epoch: float | None = None) -> float:
        """Value after k updates.

        Parameters
        ----------
        k : int
            Updates already done, >= 0.
        steps_per_epoch : float, optional
            Updates per epoch; needed by schedules in epochs.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            For negative k, or a schedule in epochs without `steps_per_epoch`.
        """
        updates = _check.integer(type(self).__name__, "k", k, 0)
        per_epoch = 0.0 if steps_per_epoch is None else float(steps_per_epoch)
        return _core.schedule_value(json.dumps(self.to_dict()), updates, per_epoch)

    def _check_reals(self, *names: str, lowest: float = 0.0) -> None:
        for name in names:
            where = type(self).__name__
            self._set(name, _check.real(where, name, getattr(self, name), lowest))

    def _check_counts(self, *names: str) -> None:
        for name in names:
            self._set(name, _check.integer(type(self).__name__, name, getattr(self, name), 1))


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every update.

    Parameters
    ----------
    value : float
    """

    value: float
    type: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        self._check_reals("value")


@dataclass(frozen=True)
class Linear(Schedule):
    """(1 - k/tau) start + (k/tau) end up to k = tau, then `end`.

    Parameters
    ----------
    start : float
        Value at k = 0.
    end : float, optional
        Value from tau on; 0.01 * start when None.
    tau : float, optional
        Length in updates.
    tau_epochs : float, optional
        Length in epochs; exactly one of `tau` and `tau_epochs` is needed.

    Examples
    --------
    >>> round(Linear(1.0, tau=10)(5), 4)
    0.505
    """

    start: float
    end: float | None = None
    tau: float | None = field(default=None, kw_only=True)
    tau_epochs: float | None = field(default=None, kw_only=True)
    type: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        self._check_reals("start")
        if self.end is None:
            self._set("end", 0.01 * self.start)
        self._check_reals("end")
        if (self.tau is None) == (self.tau_epochs is None):
            raise ValueError(
                "[Linear] expected exactly one of tau and tau_epochs, "
                f"got tau={self.tau}, tau_epochs={self.tau_epochs}"
            )
        self._check_reals("tau" if self.tau_epochs is None else "tau_epochs", lowest=1e-12)


@dataclass(frozen=True)
class RobbinsMonro(Schedule):
    """start / (1 + k/k0)^power (Robbins and Monro 1951).

    Parameters
    ----------
    start : float
        Value at k = 0.
    k0 : float
        Updates after which the value is divided by 2^power.
    power : float, default 1.0
        In [0, 1]. Above 1/2 the squares are summable; 1/2 is for averages on convex functions.
    """

    start: float
    k0: float
    power: float = 1.0
    type: ClassVar[str] = "robbins_monro"

    def __post_init__(self) -> None:
        self._check_reals("start")
        self._check_reals("k0", lowest=1e-12)
        self._set("power", _check.real("RobbinsMonro", "power", self.power, 0.0, 1.0))


@dataclass(frozen=True)
class Step(Schedule):
    """start * factor^floor(k / every).

    Parameters
    ----------
    start : float
        Value at k = 0.
    factor : float
        Multiplier, >= 0.
    every : int
        Updates between multiplications.
    """

    start: float
    factor: float
    every: int
    type: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        self._check_reals("start", "factor")
        self._check_counts("every")


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from start to end, then `end` (Loshchilov and Hutter 2016).

    Parameters
    ----------
    start : float
        Value at k = 0.
    steps : int
        Length in updates.
    end : float, default 0.0
        Value from k = steps on.
    """

    start: float
    steps: int
    end: float = 0.0
    type: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        self._check_reals("start", "end")
        self._check_counts("steps")


@dataclass(frozen=True)
class Warmup(Schedule):
    """Rises linearly to the first value of another schedule, then follows it.

    Parameters
    ----------
    then : Schedule or float
        What follows, counted from its own k = 0.
    steps : int
        Length of the rise in updates; update k has the share (k + 1) / steps.

    Examples
    --------
    >>> [round(Warmup(0.4, steps=4)(k), 2) for k in range(6)]
    [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    """

    then: Schedule | float
    steps: int
    type: ClassVar[str] = "warmup"

    def __post_init__(self) -> None:
        self._check_counts("steps")
        then = resolve("Warmup", "then", self.then)
        self._set("then", then if isinstance(then, Schedule) else Constant(then))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Cosine rise to a peak, then a cosine fall far below the start (Smith and Topin 2018).

    Parameters
    ----------
    peak : float
        Largest value.
    steps : int
        Length of the whole cycle in updates.
    start_fraction : float, default 0.3
        Share of the cycle that rises.
    initial_divisor : float, default 25.0
        The first value is peak / initial_divisor.
    final_divisor : float, default 1e4
        The last value is the first divided by this.
    """

    peak: float
    steps: int
    start_fraction: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4
    type: ClassVar[str] = "one_cycle"

    def __post_init__(self) -> None:
        self._check_reals("peak")
        self._check_counts("steps")
        fraction = _check.real("OneCycle", "start_fraction", self.start_fraction, 0.0, 1.0)
        self._set("start_fraction", fraction)
        self._check_reals("initial_divisor", "final_divisor", lowest=1.0)


@dataclass(frozen=True)
class NesterovConvex(Schedule):
    """k / (k + 3): the momentum that keeps Nesterov's O(1/k^2) bound on smooth convex functions."""

    type: ClassVar[str] = "nesterov_convex"


_BY_TYPE: dict[str, type[Schedule]] = by_type(
    [Constant, Linear, RobbinsMonro, Step, Cosine, Warmup, OneCycle, NesterovConvex]
)


def from_dict(value: Mapping[str, Any]) -> Schedule:
    """The schedule that a dict describes; see `Schedule.to_dict`.

    Examples
    --------
    >>> from_dict({"schedule": "constant", "value": 0.5})
    Constant(value=0.5)
    """
    return build("schedule", _BY_TYPE, value)


def resolve(where: str, name: str, value: object) -> Schedule | float:
    """A number or a schedule from what a user or a description gives."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        return from_dict(value)
    return _check.real(where, name, value, 0.0)
