"""e25: shuffling once is enough."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits, error_rate, train

_MODES = ("stack", "epoch", "iid")
_SEEDS = 5
_STEPS = 1900  # 50 epochs
_BATCH = 32
_TOLERANCE = 0.7


def run(context: Context) -> Outcome:
    """Train with each order of the rows over five seeds."""
    data = digits()
    seeds = range(context.seed, context.seed + (1 if context.quick else _SEEDS))
    errors: dict[str, list[float]] = {mode: [] for mode in _MODES}
    for mode in _MODES:
        for seed in seeds:
            model = Model(
                nn.Sequential(nn.Dense(100), nn.ReLU(), nn.Dense(10)),
                64,
                optimizer=optim.Momentum(0.05, momentum=0.9),
                seed=seed,
                threads=context.threads,
            )
            train(model, data.x_train, data.y_train, context.steps(_STEPS), _BATCH, shuffle=mode)
            errors[mode].append(error_rate(model, data.x_test, data.y_test))
    means = {mode: float(np.mean(values)) for mode, values in errors.items()}
    spread = max(means.values()) - min(means.values())

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for place, mode in enumerate(_MODES):
            axes.plot([place] * len(seeds), errors[mode], "o", color="tab:blue", alpha=0.5)
            axes.plot([place - 0.2, place + 0.2], [means[mode]] * 2, color="black")
        axes.set_xticks(range(len(_MODES)), ["once", "every epoch", "independent draws"])
        axes.set_ylabel("test error, %")

    return Outcome(
        f"mean test error {means['stack']:.2f} % once, {means['epoch']:.2f} % every epoch, "
        f"{means['iid']:.2f} % independent draws",
        {"test_error": errors, "mean": means, "spread": spread},
        spread <= _TOLERANCE,
        draw,
    )


EXPERIMENT = Experiment(
    "e25",
    "Shuffling once is enough",
    "Shuffling the training rows once and then reading them in the same order gives the same test "
    "error as a new order every epoch or as independent draws.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.1.3",
    "digits, 64-100-10 ReLU, SGD with momentum 0.9, rate 0.05, minibatch 32, 1,900 steps, 5 seeds",
    "mean errors within 0.7 percentage points",
    run,
)
