"""e2: networks that are larger than they need to be do not overfit label noise more."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits, error_rate, listed, train

_WIDTHS = (8, 32, 64, 256, 1024)
_NOISE = 0.05
_BATCH = 100
_STEPS = 8000
_SEEDS = 10
_INTERPOLATING_FROM = 32


def _noisy(labels: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    noisy = labels.copy()
    redrawn = rng.choice(len(labels), round(_NOISE * len(labels)), replace=False)
    noisy[redrawn] = rng.integers(0, 10, len(redrawn))
    return noisy


def run(context: Context) -> Outcome:
    """Train one hidden layer of each width to the end and look at the clean test set."""
    data = digits()
    widths = _WIDTHS[:2] if context.quick else _WIDTHS
    seeds = range(context.seed, context.seed + (1 if context.quick else _SEEDS))
    training = np.empty((len(seeds), len(widths)))
    test = np.empty_like(training)
    for i, seed in enumerate(seeds):
        labels = _noisy(data.y_train, seed)
        for j, width in enumerate(widths):
            model = Model(
                nn.Sequential(nn.Dense(width), nn.ReLU(), nn.Dense(10)),
                64,
                optimizer=optim.Momentum(0.1, momentum=0.9),
                seed=seed,
                threads=context.threads,
            )
            train(model, data.x_train, labels, context.steps(_STEPS), _BATCH, stop_at_loss=1e-3)
            training[i, j] = error_rate(model, data.x_train, labels)
            test[i, j] = error_rate(model, data.x_test, data.y_test)
    mean_test = test.mean(axis=0)
    interpolates = all(
        bool(np.all(training[:, j] == 0)) for j, w in enumerate(widths) if w >= _INTERPOLATING_FROM
    )
    falls = bool(np.all(np.diff(mean_test) < 0))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot(widths, training.mean(axis=0), "o-", label="training, noisy labels")
        axes.plot(widths, mean_test, "s-", label="test, clean labels")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="hidden units", ylabel="error, %")
        axes.legend()

    return Outcome(
        f"test error {listed(mean_test.tolist())} % at {listed(list(widths), '{}')} units; "
        f"training error from {_INTERPOLATING_FROM} units: "
        f"{'0' if interpolates else f'{training[:, 1:].max():.2f} %'}",
        {
            "widths": list(widths),
            "test_error": test.tolist(),
            "training_error": training.tolist(),
        },
        interpolates and falls,
        draw,
    )


EXPERIMENT = Experiment(
    "e2",
    "Over-capacity is harmless, even on noise",
    "With 5 % of the training labels redrawn, larger networks fit the noise completely and yet "
    "their error on clean test data keeps falling.",
    "Neyshabur, Tomioka, Srebro, 2015, Figure 2",
    "digits, one hidden ReLU layer, SGD with momentum 0.9, rate 0.1, minibatch 100, up to 8,000 "
    "steps (to a loss of 0.001), mean of 10 seeds",
    "training error 0 from 32 units; test error strictly falling",
    run,
)
