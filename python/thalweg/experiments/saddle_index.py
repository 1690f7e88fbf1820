"""e11: the index of critical points rises with their loss."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from thalweg import Model, Objective, nn, optim
from thalweg.landscape import CriticalPoint, critical_point, find_critical_point

from .base import Context, Experiment, Outcome, small_digits, train

_STRENGTHS = (4.0, 3.0, 2.0, 1.0)
_STARTS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000)
_ITERATIONS = 150
_CRITICAL = 1e-4


def _ranks(values: Any) -> Any:
    """Ranks, equal values sharing their mean."""
    values = np.asarray(values)
    less = (values[:, None] > values).sum(axis=1)
    equal = (np.abs(values[:, None] - values) < 1e-12).sum(axis=1)
    return less + 0.5 * (equal - 1)


def _correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _linear(context: Context) -> list[CriticalPoint]:
    """The sixteen kinds of critical points of a 4-4-4 linear network, one of each."""
    size = len(_STRENGTHS)
    model = Model(
        [nn.Dense(size, bias=False), nn.Dense(size, bias=False)],
        size,
        "squared_error",
        dtype="float64",
        threads=context.threads,
    )
    objective = Objective(model, np.eye(size), np.diag(_STRENGTHS))
    mix = np.linalg.qr(np.random.default_rng(context.seed).standard_normal((size, size)))[0]
    points = []
    for chosen in itertools.product((0.0, 1.0), repeat=size):
        root = np.diag(np.sqrt(np.array(_STRENGTHS) * chosen))
        theta = np.concatenate([(mix @ root).ravel(), (root @ mix.T).ravel()])
        points.append(critical_point(objective, theta))
    return points


def _expected_index(chosen: Any) -> int:
    """Free units times missing modes, and kept modes that can turn into stronger missing ones."""
    kept = [s for s, c in zip(_STRENGTHS, chosen, strict=True) if c]
    missing = [s for s, c in zip(_STRENGTHS, chosen, strict=True) if not c]
    return (4 - len(kept)) * len(missing) + sum(m > k for m in missing for k in kept)


def _network(context: Context) -> list[CriticalPoint]:
    """Critical points near a training run of a tanh network with 118 parameters."""
    x, y = small_digits()
    if context.quick:
        x, y = x[:200], y[:200]
    model = Model(
        nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(10)),
        16,
        optimizer=optim.Momentum(0.1),
        seed=context.seed,
        dtype="float64",
        threads=context.threads,
    )
    objective = Objective(model, x, y)
    found = []
    for steps in _STARTS[:2] if context.quick else _STARTS:
        if steps > model.steps_done:
            train(model, x, y, steps - model.steps_done, 100)
        found.append(find_critical_point(objective, max_iterations=context.steps(_ITERATIONS)))
    return [point for point in found if point.gradient_norm < _CRITICAL]


def run(context: Context) -> Outcome:
    """Compare index and loss, exactly for a linear network, by search for a nonlinear one."""
    linear = _linear(context)
    expected = [_expected_index(c) for c in itertools.product((0.0, 1.0), repeat=4)]
    right = sum(point.negative == index for point, index in zip(linear, expected, strict=True))
    index = np.array([point.index for point in linear])
    loss = np.array([point.loss for point in linear])
    spearman = _correlation(_ranks(index), _ranks(loss))
    zero = loss < 1e-20
    network = _network(context)
    network_index = [point.index for point in network]
    network_loss = [point.loss for point in network]
    varied = len(set(network_index)) > 1 and len(set(network_loss)) > 1
    pearson = _correlation(network_index, network_loss) if varied else None
    passed = right == 16 and spearman > 0.9 and bool(np.all((index == 0.0) == zero))

    def draw(figure: Any) -> None:
        left, other = figure.subplots(1, 2)
        left.plot(index, loss, "o")
        left.set(xlabel="index", ylabel="loss", title="4-4-4 linear network")
        other.plot(network_index, network_loss, "o")
        other.set(xlabel="index", ylabel="loss", title="16-4-10 tanh network")

    return Outcome(
        f"linear network: {right} of 16 indices as in theory, rank correlation with the loss "
        f"{spearman:.3f}; tanh network: {len(network)} critical points, correlation "
        + (f"{pearson:.3f}" if pearson is not None else "not defined"),
        {
            "index": index.tolist(),
            "loss": loss.tolist(),
            "spearman": spearman,
            "network_index": network_index,
            "network_loss": network_loss,
            "network_gradient_norm": [point.gradient_norm for point in network],
            "network_pearson": pearson,
        },
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e11",
    "The index of critical points rises with their loss",
    "Critical points with many directions of negative curvature lie high: a local minimum of high "
    "loss is rare, and the error of a saddle says how many ways lead down.",
    "Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio, Identifying and attacking the saddle point "
    "problem, 2014, Figure 1; Baldi, Hornik, Neural networks and principal component analysis, "
    "1989",
    "4-4-4 linear network on modes 4, 3, 2, 1, its 16 kinds of critical points; 16-4-10 tanh "
    "network on the digits at 4 x 4, searches from 9 places of a training run, float64",
    "16 of 16 indices, rank correlation > 0.9, index 0 exactly at loss 0; the tanh network is "
    "reported",
    run,
)
