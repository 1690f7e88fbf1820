"""e18: the standard error of a minibatch gradient shrinks as 1 / sqrt(m)."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DRAWS = 100


def run(context: Context) -> Outcome:
    """Compare gradients of random minibatches with the full gradient, at initialization."""
    data = digits()
    model = Model(
        nn.Sequential(nn.Dense(100), nn.ReLU(), nn.Dense(10)),
        64,
        optimizer=optim.SGD(),
        seed=context.seed,
        threads=context.threads,
    )
    rng = np.random.default_rng(context.seed)
    full = model.loss_and_grad(data.x_train, data.y_train)[1]
    errors = []
    for size in _SIZES:
        squares = []
        for _ in range(context.steps(_DRAWS)):
            rows = rng.integers(0, len(data.x_train), size)
            gradient = model.loss_and_grad(data.x_train[rows], data.y_train[rows])[1]
            squares.append(float(np.sum(np.square(gradient - full, dtype=np.float64))))
        errors.append(float(np.sqrt(np.mean(squares))))
    slope = float(np.polyfit(np.log(_SIZES), np.log(errors), 1)[0])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.loglog(_SIZES, errors, "o", label="measured")
        axes.loglog(_SIZES, errors[0] / np.sqrt(_SIZES), color="grey", label="slope -1/2")
        axes.set(xlabel="minibatch size m", ylabel="standard error of the gradient")
        axes.legend()

    return Outcome(
        f"slope {slope:.3f}",
        {"sizes": list(_SIZES), "standard_error": errors, "slope": slope},
        abs(slope + 0.5) <= 0.05,
        draw,
    )


EXPERIMENT = Experiment(
    "e18",
    "The gradient's standard error shrinks as 1/sqrt(m)",
    "A minibatch of m examples estimates the gradient with a standard error proportional to "
    "m^(-1/2): a hundred times the computation for ten times the accuracy.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.1.3",
    "digits, 64-100-10 ReLU at initialization, 100 random minibatches of each size from 1 to 256",
    "slope of log error against log m in -0.5 +- 0.05",
    run,
)
