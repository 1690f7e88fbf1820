"""e23: the plateaus of a deep linear network, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, losses, nn, optim
from thalweg.landscape import Recorder

from .base import Context, Experiment, Outcome, train

_STRENGTHS = np.array([3.0, 2.0, 1.0, 0.5])
_START = 1e-3
_RATE = 5e-5
_TIME = 9.0
_EVERY = 300
_ERROR = 1e-3


def _mode(strength: float, start: float, time: Any) -> Any:
    """a(t) = s E / (E - 1 + s / a0), E = exp(2 s t), of da/dt = 2 a (s - a)."""
    growth = np.expm1(2.0 * strength * time)
    return strength * (growth + 1.0) / (growth + strength / start)


def run(context: Context) -> Outcome:
    """Train a two-layer linear network from a small balanced start and follow its modes."""
    rng = np.random.default_rng(context.seed)
    size = len(_STRENGTHS)
    left, right, inner = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(3))
    target = left @ np.diag(_STRENGTHS) @ right.T
    # The gradient of the sum of squares is twice that of half of it: a step of rate e is 2 e of
    # the time of dW/dt = -grad(|Y - W2 W1|^2 / 2).
    model = Model(
        nn.Sequential(nn.Dense(size, bias=False), nn.Dense(size, bias=False)),
        size,
        losses.SquaredError(reduction="sum"),
        optim.SGD(_RATE),
        seed=context.seed,
        dtype="float64",
        threads=context.threads,
    )
    first, second = np.sqrt(_START) * inner @ right.T, np.sqrt(_START) * left @ inner.T
    model.set_parameters(np.concatenate([first.ravel(), second.ravel()]))
    recorder = Recorder(_EVERY)
    steps = context.steps(round(_TIME / (2.0 * _RATE)))
    x, y = np.eye(size), target.T
    train(model, x, y, steps, size, callbacks=[recorder], callback_every=_EVERY, shuffle=False)
    trajectory = recorder.trajectory()
    time = 2.0 * _RATE * trajectory.steps
    weights = trajectory.parameters.reshape(len(trajectory), 2, size, size)
    products = weights[:, 1] @ weights[:, 0]
    modes = np.einsum("ia,tij,ja->ta", left, products, right)
    expected = np.stack([_mode(s, _START, time) for s in _STRENGTHS], axis=1)
    error = float(np.max(np.abs(modes - expected) / _STRENGTHS))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, strength in enumerate(_STRENGTHS):
            (line,) = axes.plot(time, modes[:, i], label=f"mode {strength:g}")
            axes.plot(time[::8], expected[::8, i], "o", color=line.get_color(), markersize=3)
        axes.set(xlabel="time (steps times twice the rate)", ylabel="strength of the mode")
        axes.legend(title="lines: training, dots: closed form")

    return Outcome(
        f"largest difference from the closed form {error:.1e} of a mode's strength over "
        f"{steps:,} steps",
        {"strengths": _STRENGTHS.tolist(), "error": error, "steps": steps},
        error <= _ERROR,
        draw,
    )


EXPERIMENT = Experiment(
    "e23",
    "Deep linear networks learn in plateaus, in closed form",
    "Each mode of a two-layer linear network waits on a plateau and then rises along "
    "a(t) = s E / (E - 1 + s / a0), E = exp(2 s t): strong modes first.",
    "Saxe, McClelland, Ganguli, Exact solutions to the nonlinear dynamics of learning in deep "
    "linear neural networks, 2013",
    "4-4-4 linear network, modes 3, 2, 1, 0.5, start 0.001 balanced and aligned, full-batch SGD of "
    "rate 5e-5, float64",
    "all modes within 0.001 of the closed form, relative to their strength",
    run,
)
